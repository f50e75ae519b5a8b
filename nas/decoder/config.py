"""What the distillation of a decoder can be told."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nas.config import DataConfig
from nas.settings import Seed, Settings
from nas.training.config import StageConfig


class DistilConfig(StageConfig):
    """How a decoder learns to decode the latents of an encoder that stays.

    Attributes:
        latents: of `videos`, which then are the target; or `synthetic`, drawn at unit size, whose target is what the
            given decoder makes of them, where there are no videos.
        imitate: weight of the distance to the given decoder's frames, beside the videos themselves; it costs a run of
            that decoder a step.
        half: train `both`, or the `temporal` half or the `spatial` one alone, the other one staying as it is.
        reconstruction: error of a pixel. differences: weight of the same error of frame-to-frame differences.
    """

    steps: int = Field(2000, ge=1, le=10**9)
    learning_rate: float = Field(1e-3, gt=0.0)
    images: int = Field(0, ge=0, le=0)
    validate_every: int = Field(200, ge=0)
    latents: Literal["videos", "synthetic"] = "videos"
    imitate: float = Field(0.0, ge=0.0)
    half: Literal["both", "temporal", "spatial"] = "both"
    reconstruction: Literal["l1", "mse"] = "l1"
    differences: float = Field(0.5, ge=0.0)


class DistilSettings(Settings):
    """Everything that a distillation depends on; stored beside its checkpoints."""

    seed: Seed = 0
    data: DataConfig = DataConfig()
    distil: DistilConfig = DistilConfig()
