"""How many clips of a step a supernet's training runs at once: measured on a CUDA device, counted elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from device_profiler import host
from nas.supernet.estimate import MOMENTS, estimate_step
from nas.supernet.held import deepest
from nas.supernet.passes import VIDEOS
from nas.training.loader import Batch
from nas.training.micro import AtOnce, cuda_bytes, fitting
from search_spaces.space import Space

if TYPE_CHECKING:
    from nas.config import TrainConfig
    from nas.supernet.passes import Passes
    from nas.supernet.supernet import Supernet
    from nas.training.engine import Engine
    from search_spaces.arrangement import Arrangement

TENSORS = 64  # of the size of a place's features, that a layer or the frame around it surely keeps fewer of
EASY = 0.5  # of the free memory: what takes less by that rule is not counted


class Trained(Protocol):
    """What is asked of a supernet's training; see ``nas.supernet.stage.SupernetStage``."""

    config: TrainConfig
    engine: Engine
    space: Space
    supernet: Supernet
    shared: list[nn.Parameter]
    passes: Passes
    optimizer: torch.optim.Optimizer
    draw: Callable[[int], list[Arrangement]]
    seed: int


def clips_at_once(stage: Trained) -> AtOnce:
    """As many of a process's clips as its memory holds, where the settings leave it open; the same for all processes.

    On a CUDA device forward and backward along the deepest path are run with one clip and with two, which changes
    nothing of the training. Elsewhere the plan says whether all surely fit; where it does not, a step is counted with
    shapes alone.
    """
    config, world = stage.config, stage.engine.world
    clips = len(world.share(config.clips))
    if config.micro_clips != "auto":
        return AtOnce(min(config.micro_clips, clips), "as asked for")
    if clips < 2:
        return AtOnce(clips, "there is one")
    if stage.engine.device.type == "cuda":
        one, two, room = cuda_bytes(stage.engine.device, lambda count: _try(stage, count))
        found = fitting(clips, one + _moments(stage), two + _moments(stage), room, "measured")
    else:
        found = _counted(stage, clips, 1e6 * host.available_mb() / world.size)
    found.clips = world.say(found.clips)
    return found


def surely(space: Space) -> float:
    """Bytes that a step takes at most for each clip, by the sizes of the space's places."""
    frames, _, height, width = space.latent_shape("training")
    total = 0.0
    for position in space.positions:
        size = math.prod(
            (
                position.channels,
                max(1.0, float(frames / position.time_scale)),
                float(height / position.space_scale),
                float(width / position.space_scale),
            )
        )
        total += 4 * TENSORS * size * (1 + position.most)
    return total


def _counted(stage: Trained, clips: int, room: float) -> AtOnce:
    held = 4.0 * sum(p.numel() for p in stage.supernet.parameters()) + _moments(stage)
    if held + clips * surely(stage.space) <= EASY * room:
        return AtOnce(clips, "by the plan all fit")
    step = estimate_step(stage.space, stage.config, stage.engine.precision, stage.draw, stage.seed, stage.supernet.held)
    beside = step.gradient_bytes + step.fixed_bytes + _moments(stage)
    return fitting(clips, beside + step.clip_bytes, beside + 2 * step.clip_bytes, room, "counted")


def _moments(stage: Trained) -> float:
    """Bytes that the optimiser's state still will take."""
    if stage.optimizer.state:
        return 0.0
    return MOMENTS[stage.config.optimizer] * sum(p.numel() for p in stage.supernet.parameters())


def _try(stage: Trained, clips: int) -> None:
    """Forward and backward of made-up clips along the deepest path, with everything that ever learns; no step."""
    everything = stage.config.spatial_rate > 0 or stage.config.warmup_steps > 0
    with torch.random.fork_rng(devices=[stage.engine.device]):
        for parameter in stage.shared:
            parameter.requires_grad_(everything)
        whole, *shape = stage.space.latent_shape("training")
        batch = Batch(torch.randn(clips, whole, *shape), [""] * clips)
        question, read = stage.passes._ask(batch, 0, VIDEOS, clips * stage.engine.world.size)
        loss: Tensor = stage.passes._loss(question, deepest(stage.space, stage.supernet.held), None).total
        if loss.requires_grad:
            loss.backward()
        read.back()
    stage.optimizer.zero_grad(set_to_none=True)
