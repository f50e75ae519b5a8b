"""The averaged weights of a training: what is scored, sampled, built and kept, while the trained ones go on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Averages:
    """Exponential moving averages of parameters.

    Args:
        parameters: by name. decay: of the average; the first steps, which know little, weigh less.

    Attributes:
        values: the averages, by name.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self._parameters, self._decay = dict(parameters), decay
        self.values: dict[str, Tensor] = {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def take(self, step: int) -> None:
        """Move towards the weights after ``step`` + 1 steps."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for name, parameter in self._parameters.items():
            self.values[name].lerp_(parameter, 1 - decay)

    @torch.no_grad()
    def put(self) -> None:
        """Make the averages the weights."""
        for name, parameter in self._parameters.items():
            parameter.copy_(self.values[name])

    @torch.no_grad()
    def swap(self) -> None:
        """Averages and weights change places."""
        for name, parameter in self._parameters.items():
            held = parameter.detach().clone()
            parameter.copy_(self.values[name])
            self.values[name].copy_(held)

    @contextmanager
    def shown(self, *modules: nn.Module) -> Iterator[None]:
        """The averages in place of the weights, the modules ready to be scored or sampled, while this lasts."""
        self.swap()
        for module in modules:
            module.eval()
        try:
            yield
        finally:
            self.swap()
            for module in modules:
                module.train()
