"""What every training can be told."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from nas.config import MANY, TrainConfig
from nas.settings import FREE, Settings, Threads


class LoopConfig(Settings):
    """What every training of the loop shares.

    Attributes:
        steps: optimiser steps. learning_rate: peak, after `ramp_steps`.
        ema_decay: of the averaged weights, which become the result.
        precision: autocast of the forward pass: `auto` is bf16 on a CUDA device that has it and fp32 elsewhere, and
            what a training began with when it goes on; fp16 scales the loss.
        tf32: let a CUDA device round what fp32 products and convolutions take to ten bits of mantissa; about twice as
            fast where precision is fp32.
        gradient_clip: largest norm of a gradient.
        accumulate: micro-batches a step.
        activation_checkpoints: compute activations again on the way back instead of keeping them.
        compile: `torch.compile` every part of the network by itself.
        checkpoint_every, keep: steps between checkpoints, and how many stay.
        spike: a step whose loss is this many times the recent median is rolled back, as one that is not finite.
        trackers: `tensorboard`, `wandb` or none. workers: threads that load the next batches.
        device, threads: where torch works; 0 threads leaves them as they are.
    """

    steps: int = Field(1000, ge=1, le=10**9)
    learning_rate: float = Field(1e-4, gt=0.0)
    ramp_steps: int = Field(50, ge=0)
    weight_decay: float = Field(0.01, ge=0.0)
    ema_decay: float = Field(0.99, ge=0.0, lt=1.0)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    tf32: bool = False
    gradient_clip: float = Field(1.0, gt=0.0)
    accumulate: int = Field(1, ge=1, le=MANY)
    activation_checkpoints: Annotated[bool, FREE] = False
    compile: Annotated[bool, FREE] = False
    checkpoint_every: Annotated[int, FREE] = Field(100, ge=1)
    keep: Annotated[int, FREE] = Field(3, ge=1)
    spike: Annotated[float, FREE] = Field(8.0, gt=1.0)
    trackers: Annotated[tuple[Literal["tensorboard", "wandb"], ...], FREE] = ()
    workers: Annotated[int, FREE] = Field(0, ge=0, le=1024)
    device: Annotated[str, FREE] = "cpu"
    threads: Annotated[Threads, FREE] = 0


class StageConfig(LoopConfig):
    """What both stages share.

    Attributes:
        clips, images: videos and single frames of a micro-batch. image_share: weight of the images' loss.
        shard: split weights, gradients and optimiser state over the processes (FSDP2) instead of copying them.
        validate_every: steps between validations of the averaged weights, which mark the best checkpoint; 0 is never.
    """

    clips: int = Field(8, ge=1, le=MANY)
    images: int = Field(4, ge=0, le=MANY)
    image_share: float = Field(0.2, ge=0.0, lt=1.0)
    shard: Annotated[bool, FREE] = False
    validate_every: Annotated[int, FREE] = Field(0, ge=0)


#: What the loop reads. The supernet's settings list theirs anew: their order is in what run folders record of a stage.
AnyConfig = LoopConfig | TrainConfig
