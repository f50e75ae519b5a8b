"""Random numbers of a step, the same however many processes share it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nas.tasks.noise import noise_levels
from nas.training.distributed import World


class Draws:
    """Random numbers of one step: drawn for the whole batch, of which each process takes its share.

    So several processes make the losses of one.

    Args:
        salt: how often training went back so far, for a stage that makes its random numbers by a formula of its own.
    """

    def __init__(self, generator: torch.Generator, world: World, salt: int = 0) -> None:
        self.generator, self.world, self.salt = generator, world, salt

    def _mine(self, count: int, whole: Callable[[int], Tensor]) -> Tensor:
        drawn = whole(count * self.world.size)
        return drawn[self.world.rank * count : (self.world.rank + 1) * count].to(self.world.device)

    def each(self, count: int, make: Callable[[int, torch.Generator], Tensor]) -> Tensor:
        """This process's ``count`` of what ``make`` draws for the whole batch."""
        return self._mine(count, lambda whole: make(whole, self.generator))

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers, of the shape of this process's clips."""
        shape = like.shape[1:]
        return self._mine(len(like), lambda count: torch.randn((count, *shape), generator=self.generator))

    def levels(self, count: int, mean: float, std: float) -> Tensor:
        """(count,) logit-normal noise levels."""
        return self._mine(count, lambda count: noise_levels(count, mean, std, self.generator))

    def choices(self, count: int, options: int) -> Tensor:
        """(count,) whole numbers below ``options``."""
        return self._mine(count, lambda count: torch.randint(options, (count,), generator=self.generator))

    def dropped(self, captions: Sequence[str], share: float) -> list[str]:
        """The captions with about ``share`` of them emptied."""
        keep = self._mine(len(captions), lambda count: torch.rand(count, generator=self.generator)) >= share
        return [text if kept else "" for text, kept in zip(captions, keep.tolist(), strict=True)]
