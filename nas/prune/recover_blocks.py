"""A network of fewer and narrower blocks learns to answer as the uncut one does, and its own task beside that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nas.prune.config import PruneConfig
from nas.prune.recover import blended, share_missed
from nas.supernet.supernet import Supernet
from nas.training.distributed import World
from nas.training.draws import Draws
from nas.training.engine import Engine
from nas.training.loader import Loader
from nas.training.single import OneOptimizer
from search_spaces.network import VideoNetwork


class RecoverBlocks(OneOptimizer):
    """Trains a pruned network.

    Args:
        supernet: its baseline is the uncut network, frozen. network: the pruned one, trained in place.
        text: captions to what both read, frozen. clips: that they are shown.

    Source: the task's own loss, the uncut network's answer and what stands behind its last block, as SnapGen++ distils
    (arXiv 2601.08303); each difference is a share of the uncut network's own square (LAPTOP-Diff, arXiv 2404.11098).
    """

    key = "prune"
    window = 1
    config: PruneConfig

    def __init__(
        self, supernet: Supernet, network: VideoNetwork, text: Any, clips: Any, config: PruneConfig, world: World
    ) -> None:
        self.supernet, self.network, self.text, self.config = supernet, network.train(), text, config
        self.engine = Engine(config, world)
        self.clips = Loader(clips, config.images, world.share, config.workers)
        self.loaders = (self.clips,)
        self.modules: dict[str, nn.Module] = {"network": network}
        self.averaged = frozenset(self.modules)
        family, self.last = supernet.space.backbone.family, supernet.space.backbone.layout.places[-1].name
        layers = [layer for stack in network.temporal.values() for layer in stack]  # type: ignore[attr-defined]
        self.engine.prepare(network, [*family.units(network.unet), *layers])
        self.optimizer = torch.optim.AdamW(
            network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.optimizers = {"network": self.optimizer}

    def learn(self, turn: int, draws: Draws) -> dict[str, float]:
        """The task's loss and what is followed of the uncut network; see ``OneOptimizer``."""
        config, task, whole = self.config, self.supernet.task, self.supernet.space.baseline()
        question = task.ask(self.clips(turn), draws, self.text)
        mine: dict[str, Tensor] = {}
        theirs: dict[str, Tensor] = {}

        def student(inputs: Mapping[str, Any]) -> Tensor:
            mine[""] = self.network.run(inputs, mine)
            return mine[""]

        def teacher(inputs: Mapping[str, Any]) -> Tensor:
            theirs[""] = self.supernet.predict(inputs, whole, theirs)
            return theirs[""]

        with self.engine.autocast():
            own = task.loss(student, question).total
            followed = features = torch.zeros((), device=own.device)
            if config.distillation:
                with torch.no_grad():
                    task.loss(teacher, question)
                followed, features = (
                    share_missed(mine[name].float(), theirs[name].float()) for name in ("", self.last)
                )
        loss, row = blended(config, own, followed, features)
        self.engine.back(loss)
        return row
