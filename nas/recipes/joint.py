"""Stage joint: flow matching on images and videos together, in buckets of clip shapes."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from nas.model.pipeline import TextToVideoPipeline
from nas.recipes.config import JointConfig
from nas.tasks.noise import mix, velocity
from nas.training.batches import Batch, Batches
from nas.training.draws import Draws
from nas.training.loop import Row, warmed_rate


class Joint:
    """Trains the whole network on the velocity of noisy videos and of noisy images (clips of one frame).

    Args:
        pipeline: its network and, with ``text_rate``, its text encoder are trained in place.

    Source: joint image-video training with flow matching and logit-normal noise levels, SnapGen-V (arXiv 2412.10494);
    the mixing ratio and the settings are ours, the paper gives none.
    """

    window = 1

    def __init__(self, pipeline: TextToVideoPipeline, batches: Batches, config: JointConfig) -> None:
        self.pipeline, self.batches, self.config = pipeline, batches, config
        self.modules: dict[str, nn.Module] = {"unet": pipeline.unet.train()}
        rates = {"unet": 1.0}
        if config.text_rate:
            self.modules["text"] = pipeline.text_encoder.train()
            rates["text"] = config.text_rate
        self.averaged = frozenset(self.modules)
        groups = [{"params": list(module.parameters()), "share": rates[name]} for name, module in self.modules.items()]
        self.parameters = [parameter for group in groups for parameter in group["params"]]  # type: ignore[attr-defined]
        optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay)
        self.optimizers = {"generator": optimizer}

    def advance(self, step: int, draws: Draws, sane: Callable[[float], bool]) -> Row | None:
        """One optimiser step; see ``loop.Stage``."""
        config, optimizer = self.config, self.optimizers["generator"]
        rate = config.learning_rate * warmed_rate(config, step)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["share"]
        optimizer.zero_grad(set_to_none=True)
        share = config.image_share if config.images else 0.0
        video = self._loss(self.batches.videos(step), draws)
        ((1 - share) * video).backward()  # each by itself: one graph at a time is held
        image = torch.zeros_like(video)
        if config.images:
            image = self._loss(self.batches.pictures(step), draws)
            (share * image).backward()
        loss = (1 - share) * video.detach() + share * image.detach()
        world = self.batches.world
        world.average_gradients(self.parameters)
        norm = float(nn.utils.clip_grad_norm_(self.parameters, config.gradient_clip))
        total, of_videos, of_images = world.mean([float(part.detach()) for part in (loss, video, image)])
        if not sane(total) or not math.isfinite(norm):
            return None
        optimizer.step()
        return {
            "loss": total,
            "loss_video": of_videos,
            "loss_image": of_images,
            "learning_rate": rate,
            "grad_norm": norm,
        }

    def _loss(self, batch: Batch, draws: Draws) -> Tensor:
        config, device = self.config, batch.video.device
        noise = draws.normal(batch.video)
        level = draws.levels(len(batch.captions), config.timestep_mean, config.timestep_std)
        captions = draws.dropped(batch.captions, config.caption_dropout)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            context = self.pipeline.encode(captions)
            predicted = self.pipeline.unet(mix(batch.video, noise, level), 1000.0 * level, context).sample
        return nn.functional.mse_loss(predicted.float(), velocity(batch.video, noise))

    def trouble(self, rows: list[Row]) -> str | None:
        """Flow matching has no way to fail that a roll-back does not catch."""
        return None
