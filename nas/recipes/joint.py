"""Stage joint: flow matching on images and videos together, in buckets of clip shapes."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from nas.model.pipeline import TextToVideoPipeline
from nas.recipes.contract import Recipe
from nas.tasks.noise import mix, velocity
from nas.training.batches import Batch, Batches, validated
from nas.training.config import StageConfig
from nas.training.draws import Draws
from nas.training.engine import Engine
from nas.training.single import OneOptimizer


class JointConfig(StageConfig):
    """Flow matching on images and videos together.

    Attributes:
        text_rate: the share of the learning rate that the text encoder gets; 0 freezes it.
        caption_dropout: share of captions replaced by the empty one, for classifier-free guidance.
        timestep_mean, timestep_std: of the logit-normal noise level (Esser et al., arXiv 2403.03206, section 3.1).
    """

    text_rate: float = Field(0.0, ge=0.0, le=1.0)
    caption_dropout: float = Field(0.1, ge=0.0, le=1.0)
    timestep_mean: float = 0.0
    timestep_std: float = Field(1.0, gt=0.0)


class Joint(OneOptimizer):
    """Trains the whole network on the velocity of noisy videos and of noisy images (clips of one frame).

    Args:
        pipeline: its network and, with ``text_rate``, its text encoder are trained in place.

    Source: joint image-video training with flow matching and logit-normal noise levels, SnapGen-V (arXiv 2412.10494);
    the mixing ratio and the settings are ours, the paper gives none.
    """

    key = "joint"
    window = 1
    config: JointConfig

    def __init__(self, pipeline: TextToVideoPipeline, batches: Batches, config: JointConfig, engine: Engine) -> None:
        self.pipeline, self.batches, self.config, self.engine = pipeline, batches, config, engine
        self.loaders = batches.loaders
        self.modules: dict[str, nn.Module] = {"unet": pipeline.unet.train()}
        rates = {"unet": 1.0}
        if config.text_rate:
            self.modules["text"] = pipeline.text_encoder.train()
            rates["text"] = config.text_rate
        engine.prepare(pipeline.unet, pipeline.unet.blocks())
        if config.text_rate:
            engine.prepare(pipeline.text_encoder)
        self.averaged = frozenset(self.modules)
        groups = [{"params": list(module.parameters()), "share": rates[name]} for name, module in self.modules.items()]
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay)
        self.optimizers = {"generator": self.optimizer}

    def learn(self, turn: int, draws: Draws) -> dict[str, float]:
        """A batch of videos and, by ``image_share``, one of images; see ``OneOptimizer``."""
        config, engine = self.config, self.engine
        share = config.image_share if config.images else 0.0
        video = self._loss(self.batches.videos(turn), draws)
        engine.back((1 - share) * video)  # each by itself: one graph at a time is held
        image = torch.zeros_like(video)
        if config.images:
            image = self._loss(self.batches.pictures(turn), draws)
            engine.back(share * image)
        loss = (1 - share) * video.detach() + share * image.detach()
        return {"loss": float(loss), "loss_video": float(video.detach()), "loss_image": float(image.detach())}

    @torch.no_grad()
    def validate(self) -> float | None:
        """The loss on unseen videos, with the same noise each time."""
        return validated(self.batches, self._loss)

    def _loss(self, batch: Batch, draws: Draws) -> Tensor:
        config = self.config
        noise = draws.normal(batch.video)
        level = draws.levels(len(batch.captions), config.timestep_mean, config.timestep_std)
        captions = draws.dropped(batch.captions, config.caption_dropout)
        with self.engine.autocast():
            context = self.pipeline.encode(captions)
            predicted = self.pipeline.unet(mix(batch.video, noise, level), 1000.0 * level, context).sample
        return nn.functional.mse_loss(predicted.float(), velocity(batch.video, noise))


RECIPE = Recipe(
    name="joint",
    summary="images and videos together",
    config=JointConfig,
    stage=lambda given, config: Joint(given.pipeline, given.batches, config, given.engine),
)
