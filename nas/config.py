"""What a run can be told, typed: an unknown key is an error with its path."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class DataConfig(BaseModel):
    """Where the clips come from.

    Attributes:
        source: `sample_clips` (real footage that a package ships), `folder` (your videos), or `moving_shapes` (drawn).
        path: of `folder`, the videos' folder.
        captions: of `folder`, a CSV or JSONL of path and caption, with optional seconds and place; see
            `nas.data.captions`. By default `captions.csv` or `captions.jsonl` in `path`.
        cache: where decoded, downscaled frames are kept, so that nothing is decoded twice.
        crop_margin: cached frames are this much larger than the clip on their tighter side; random crops move by it.
        holdout: `time` keeps the end of every captioned segment for validation, `video` keeps whole videos.
        validation_share: of the frames (`time`) or of the videos (`video`).
        validation_clips: how many fixed clips the validation split has.
        max_objects, boundary: of `moving_shapes`; see `nas.data.shapes`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Literal["sample_clips", "folder", "moving_shapes"] = "sample_clips"
    path: Path | None = None
    captions: Path | None = None
    cache: Path = Path("runs/.frames")
    crop_margin: float = Field(default=1.25, ge=1.0, le=4.0)
    holdout: Literal["time", "video"] = "time"
    validation_share: float = Field(default=0.2, gt=0.0, lt=1.0)
    validation_clips: int = Field(default=64, ge=1)
    max_objects: int = Field(default=2, ge=1, le=2)
    boundary: Literal["wrap", "bounce"] = "wrap"


class TrainConfig(BaseModel):
    """How the supernet is trained.

    Attributes:
        steps: optimiser steps in all. warmup_steps: of them, first, on the backbone alone (the empty arrangement).
        paths: how the arrangement of a step is drawn; see `nas.paths`.
        clips, images: videos and single frames a step; the loss is their mean, weighted by `image_share`.
        learning_rate: peak, after `ramp_steps`, then a cosine to a tenth. spatial_rate: the share of it that the
            spatial layers and the text encoder get once temporal paths train; 0 freezes them, as the paper does.
        caption_dropout: share of captions replaced by the empty one, for classifier-free guidance.
        timestep_mean, timestep_std: of the logit-normal noise level (Esser et al., arXiv 2403.03206, section 3.1).
        ema_decay: of the averaged weights that are scored and built.
        precision: autocast of the forward pass. gradient_clip: largest norm of the gradient.
        accumulate: micro-batches a step. distillation: weight of the in-place distillation of `paths: sandwich`.
        checkpoint_every, keep: steps between checkpoints, and how many stay.
        spike: a step whose loss is this many times the recent median is rolled back, as one that is not finite.
        threads: of torch; 0 leaves them as they are.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(1200, ge=1)
    warmup_steps: int = Field(300, ge=0)
    paths: Literal["uniform", "fair", "sandwich"] = "fair"
    clips: int = Field(8, ge=1)
    images: int = Field(8, ge=0)
    image_share: float = Field(0.2, ge=0.0, lt=1.0)
    learning_rate: float = Field(3e-3, gt=0.0)
    ramp_steps: int = Field(50, ge=0)
    spatial_rate: float = Field(0.1, ge=0.0, le=1.0)
    weight_decay: float = Field(0.01, ge=0.0)
    caption_dropout: float = Field(0.1, ge=0.0, le=1.0)
    timestep_mean: float = 0.0
    timestep_std: float = Field(1.0, gt=0.0)
    ema_decay: float = Field(0.99, ge=0.0, lt=1.0)
    precision: Literal["fp32", "bf16"] = "fp32"
    gradient_clip: float = Field(1.0, gt=0.0)
    accumulate: int = Field(1, ge=1)
    distillation: float = Field(0.5, ge=0.0, le=1.0)
    checkpoint_every: int = Field(200, ge=1)
    keep: int = Field(2, ge=1)
    spike: float = Field(8.0, gt=1.0)
    device: str = "cpu"
    threads: int = Field(0, ge=0)


class QualityConfig(BaseModel):
    """How an arrangement is scored; lower is better.

    Attributes:
        clips: fixed validation clips. batch: clips at a time. repeats: noise levels a clip, spread evenly.
        motion_weight: share of the motion term in the score. A score without it prefers networks that freeze the
            picture: their error sits between frames, where the plain loss counts it once.
        seed: of noise and noise levels, the same for every arrangement (common random numbers).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    clips: int = Field(32, ge=2)
    batch: int = Field(16, ge=1)
    repeats: int = Field(1, ge=1)
    motion_weight: float = Field(0.5, ge=0.0, le=1.0)
    seed: int = 2024
