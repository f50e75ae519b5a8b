"""A pruned UNet learns to answer as the uncut one did: by its output, its stages' features, and the data itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nas.prune.config import PruneConfig
from nas.tasks.noise import Diffusion
from nas.training.draws import Draws
from nas.training.engine import Engine
from nas.training.single import OneOptimizer
from search_spaces.families.contract import Pruning

if TYPE_CHECKING:
    from nas.prune.images import Images


class Recover(OneOptimizer):
    """Trains the pruned UNet.

    Args:
        whole: the uncut UNet, frozen. unet: the pruned one, trained in place.
        images: what they are compared on.

    Source: distillation of a pruned text-to-image UNet by its output and its blocks' features, as in BK-SDM (Kim et
    al., arXiv 2305.15798, section 3.2). Each difference counts as a share of the uncut UNet's own square, so that no
    stage whose numbers are large outweighs the others: the normalised distillation of LAPTOP-Diff (arXiv 2404.11098).
    """

    key = "prune"
    window = 1
    config: PruneConfig

    def __init__(self, whole: Any, unet: Any, images: Images, config: PruneConfig, pruning: Pruning) -> None:
        self.whole, self.unet, self.images, self.config = whole.eval(), unet.train(), images, config
        self.pruning = pruning
        self.engine, self.loaders = Engine(config, images.world), images.loaders
        self.diffusion = Diffusion(config.prediction)
        self.modules: dict[str, nn.Module] = {"unet": unet}
        self.averaged = frozenset(self.modules)
        self.engine.prepare(unet, images.family.units(unet))
        self.optimizer = torch.optim.AdamW(unet.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
        self.optimizers = {"unet": self.optimizer}
        self._features: dict[str, dict[str, Tensor]] = {"whole": {}, "pruned": {}}
        self._watched = pruning.matching(whole, unet)
        for mine, theirs in self._watched.items():
            unet.get_submodule(mine).register_forward_hook(self._keep("pruned", mine))
            whole.get_submodule(theirs).register_forward_hook(self._keep("whole", mine))

    def _keep(self, who: str, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            self._features[who][name] = output[0] if isinstance(output, tuple) else output

        return hook

    def learn(self, turn: int, draws: Draws) -> dict[str, float]:
        """The task's loss and what is followed of the uncut network; see ``OneOptimizer``."""
        config = self.config
        clean, text = self.images.training(turn, lambda captions: draws.dropped(captions, config.caption_dropout))
        noise = draws.normal(clean)
        level = self.diffusion.levels(len(clean), 0.0, 1.0, draws.generator).to(clean.device)
        inputs = self.diffusion.noised(clean, noise, level), self.diffusion.timestep(level), text
        with self.engine.autocast():
            out = self.pruning.answer(self.unet, *inputs).float()
            task = nn.functional.mse_loss(out, self.diffusion.target(clean, noise, level))
            followed = features = torch.zeros((), device=clean.device)
            if config.distillation:
                with torch.no_grad():
                    wanted = self.pruning.answer(self.whole, *inputs).float()
                followed, features = share_missed(out, wanted), self._feature_loss()
        loss, row = blended(config, task, followed, features)
        self.engine.back(loss)
        return row

    def _feature_loss(self) -> Tensor:
        mine, theirs = self._features["pruned"], self._features["whole"]
        losses = [share_missed(mine[name].float(), theirs[name].float()) for name in self._watched]
        return torch.stack(losses).mean() if losses else torch.zeros(())


def share_missed(mine: Tensor, wanted: Tensor) -> Tensor:
    """Squared difference as a share of the wanted square."""
    return (mine - wanted).square().mean() / wanted.square().mean().clamp_min(1e-12)


def blended(config: PruneConfig, task: Tensor, followed: Tensor, features: Tensor) -> tuple[Tensor, dict[str, float]]:
    """The loss of a recovery, made of the task's and of what is missed of the uncut network; and its row."""
    loss = (1 - config.distillation) * task + config.distillation * (followed + config.feature_weight * features)
    parts = {"loss": loss, "loss_task": task, "loss_output": followed, "loss_features": features}
    return loss, {name: float(part.detach()) for name, part in parts.items()}
