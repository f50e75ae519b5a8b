"""A stage with one optimiser: a step is as many micro-batches as ``accumulate`` says, and then the optimiser's."""

from __future__ import annotations

import statistics
from abc import abstractmethod
from collections.abc import Callable, Mapping

import torch

from nas.training.config import LoopConfig
from nas.training.draws import Draws
from nas.training.loop import Row, Stage, warmed_rate


class OneOptimizer(Stage):
    """Takes the step; what is learnt from a micro-batch is the subclass's.

    Attributes:
        optimizer: its groups may hold a ``share`` of the learning rate, 1 by default.
    """

    config: LoopConfig
    optimizer: torch.optim.Optimizer

    @abstractmethod
    def learn(self, turn: int, draws: Draws) -> Mapping[str, float]:
        """Add up the gradients of a micro-batch by ``engine.back``; what its row reports, ``loss`` among it."""

    def advance(self, step: int, draws: Draws, sane: Callable[[float], bool]) -> Row | None:
        """One optimiser step; see ``loop.Stage``."""
        count, rate = self.config.accumulate, self.config.learning_rate * warmed_rate(self.config, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("share", 1.0)
        self.optimizer.zero_grad(set_to_none=True)
        passed = [self.learn(step * count + micro, draws) for micro in range(count)]
        norm = self.engine.norm(self.optimizer)
        means = self.engine.world.mean([statistics.fmean(one[name] for one in passed) for name in passed[0]])
        row: Row = dict(zip(passed[0], means, strict=True))
        if not self.engine.usable(row["loss"], norm, sane):
            return None
        self.engine.step(self.optimizer)
        return {**row, "learning_rate": rate, "grad_norm": norm}
