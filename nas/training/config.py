"""What every training can be told."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nas.settings import Settings, Threads


class LoopConfig(Settings):
    """What every training of the loop shares.

    Attributes:
        steps: optimiser steps. learning_rate: peak, after `ramp_steps`.
        ema_decay: of the averaged weights, which become the result.
        precision: autocast of the forward pass. gradient_clip: largest norm of a gradient.
        checkpoint_every, keep: steps between checkpoints, and how many stay.
        spike: a step whose loss is this many times the recent median is rolled back, as one that is not finite.
        device, threads: where torch works; 0 threads leaves them as they are.
    """

    steps: int = Field(1000, ge=1, le=10**9)
    learning_rate: float = Field(1e-4, gt=0.0)
    ramp_steps: int = Field(50, ge=0)
    weight_decay: float = Field(0.01, ge=0.0)
    ema_decay: float = Field(0.99, ge=0.0, lt=1.0)
    precision: Literal["fp32", "bf16"] = "fp32"
    gradient_clip: float = Field(1.0, gt=0.0)
    checkpoint_every: int = Field(100, ge=1)
    keep: int = Field(3, ge=1)
    spike: float = Field(8.0, gt=1.0)
    device: str = "cpu"
    threads: Threads = 0


class StageConfig(LoopConfig):
    """What both stages share.

    Attributes:
        clips, images: videos and single frames a step. image_share: weight of the images' loss.
    """

    clips: int = Field(8, ge=1, le=1_000_000)
    images: int = Field(4, ge=0, le=1_000_000)
    image_share: float = Field(0.2, ge=0.0, lt=1.0)
