"""What a step of a supernet's training takes before it is taken: counted on its own modules, with shapes alone."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nas.config import TrainConfig
from nas.supernet.held import Held, deepest
from nas.supernet.paths import PATHS
from nas.supernet.supernet import Supernet
from nas.tasks import trained_task
from nas.tasks.contract import Task
from nas.training.counting import Counting, shapes_alone
from nas.training.loader import Batch
from nas.training.precision import KINDS
from search_spaces.arrangement import Arrangement
from search_spaces.network import recompute
from search_spaces.space import Space

DRAWN = 2  # steps whose paths are counted for the mean operations of a step
WEIGHT = 4  # bytes: of a weight, its average, its gradient, and twice of AdamW's two moments
MOMENTS = {"adamw": 8.0, "adamw8bit": 2.0 + 8 / 256}  # bytes a parameter: in 8 bits with a scale for each block of 256


@dataclass(frozen=True)
class StepEstimate:
    """Bytes and operations of a step; an estimate: kernels' workspaces and fragments are not in it.

    Attributes:
        parameters: that are held. layers: of them, in the layers that are chosen among.
        optimizer_bytes: the optimiser's state. gradient_bytes: of the step that has most.
        fixed_bytes, clip_bytes: activations, of the path that takes most: those of n clips are the sum of the one and
            n times the other.
        warm_operations, operations: of a step of the warm-up and of one after it, forward and backward.
    """

    parameters: int
    layers: int
    optimizer_bytes: float
    gradient_bytes: float
    fixed_bytes: float
    clip_bytes: float
    warm_operations: float
    operations: float

    @property
    def state_bytes(self) -> float:
        """Weights, their averages and the optimiser's state: what a training holds, and a checkpoint."""
        return 2.0 * WEIGHT * self.parameters + self.optimizer_bytes

    def bytes_of(self, clips: int) -> float:
        """All of a step that runs so many clips at once."""
        return self.state_bytes + self.gradient_bytes + self.fixed_bytes + clips * self.clip_bytes

    def clips_within(self, room: float) -> int:
        """How many clips at once fit into so many bytes; 0 if not even one."""
        return max(0, int((room - self.bytes_of(0)) / max(self.clip_bytes, 1.0)))

    def total_operations(self, config: TrainConfig) -> float:
        """Of the whole training."""
        warm = min(config.warmup_steps, config.steps)
        return warm * self.warm_operations + (config.steps - warm) * self.operations


def estimate_step(
    space: Space,
    config: TrainConfig,
    precision: str,
    draw: Callable[[int], Sequence[Arrangement]] | None = None,
    seed: int = 0,
    held: Held | None = None,
) -> StepEstimate:
    """Count a step at the space's training clip; a text encoder that is trained along is left out: words number it.

    Args:
        precision: ``fp32``, ``bf16`` or ``fp16``. draw: the paths of a step, where ``config.paths`` does not say. held:
            the layers that are held; all where not given.
    """
    paths = draw or (lambda step: PATHS[config.paths](space, seed, step))
    drawn = [list(paths(config.warmup_steps + turn)) for turn in range(DRAWN)]
    with shapes_alone() as counting:
        supernet = Supernet(space, config.prediction, held).train()
        if config.activation_checkpoints:
            for part in supernet.blocks():
                recompute(part)
        layers = sum(p.numel() for p in supernet.temporal_parameters())
        parameters = sum(p.numel() for p in supernet.parameters())
        runner = _Runner(supernet, trained_task(space.backbone.family.task, config.model_dump()), precision, counting)
        baseline = space.baseline()
        warm = [runner.step(baseline, config.clips, config.images)] if config.warmup_steps else []
        everything = config.spatial_rate > 0
        for parameter in supernet.unet.parameters():
            parameter.requires_grad_(everything)
        images = config.images if everything else 0
        known: dict[str, float] = {}

        def operations(path: Arrangement) -> float:
            if path.key not in known:
                known[path.key] = runner.operations(path, 1)
            return config.clips * known[path.key]

        learning = [[p for p in step if everything or p.num_layers] or step[:1] for step in drawn]
        later = statistics.fmean(sum(map(operations, step)) for step in learning)
        later += runner.operations(baseline, images, 1) if images else 0.0
        most = runner.memory(deepest(space, held))
    sizes = [most, *(size for size, _ in warm)]
    return StepEstimate(
        parameters,
        layers,
        MOMENTS[config.optimizer] * parameters,
        max(size.gradients for size in sizes),
        max(size.fixed for size in sizes),
        max(size.clip for size in sizes),
        warm[0][1] if warm else 0.0,
        later * config.accumulate,
    )


@dataclass(frozen=True)
class _Size:
    """Bytes along a path, and the operations of one clip."""

    gradients: float
    fixed: float
    clip: float
    operations: float


class _Shapes:
    """Random numbers without numbers."""

    def each(self, count: int, make: Callable[[int, torch.Generator], Tensor]) -> Tensor:
        return make(count, torch.Generator())

    def normal(self, like: Tensor) -> Tensor:
        return torch.randn_like(like)

    def dropped(self, captions: Sequence[str], share: float) -> list[str]:
        return list(captions)


class _Runner:
    """Forward and backward along a path, of tensors without numbers."""

    def __init__(self, supernet: Supernet, task: Task, precision: str, counting: Counting) -> None:
        self._supernet, self._task, self._counting = supernet, task, counting
        self._kind = KINDS.get(precision)

    def step(self, path: Arrangement, clips: int, images: int) -> tuple[_Size, float]:
        """What it holds; and its operations, of so many clips and images."""
        size = self.memory(path)
        return size, clips * size.operations + (self.operations(path, images, 1) if images else 0.0)

    def memory(self, path: Arrangement) -> _Size:
        """Bytes of the gradients, and of activations at the peak, from those of one clip and of two."""
        self._clear()
        self._run(path, 1)  # makes the gradients, which stay
        operations = self._counting.operations
        gradients = float(sum(WEIGHT * p.numel() for p in self._supernet.parameters() if p.grad is not None))
        peaks = []
        for clips in (1, 2):
            before = self._counting.now
            self._run(path, clips)
            peaks.append(self._counting.peak - before)
        self._clear()
        return _Size(gradients, max(0.0, 2.0 * peaks[0] - peaks[1]), float(peaks[1] - peaks[0]), operations)

    def operations(self, path: Arrangement, clips: int, frames: int | None = None) -> float:
        self._run(path, clips, frames)
        self._clear()
        return self._counting.operations

    def _clear(self) -> None:
        for parameter in self._supernet.parameters():
            parameter.grad = None

    def _run(self, path: Arrangement, clips: int, frames: int | None = None) -> None:
        space = self._supernet.space
        whole, *shape = space.latent_shape("training")
        self._counting.mark()
        batch = Batch(torch.randn(clips, frames or whole, *shape), [""] * clips)

        def encode(captions: Sequence[str]) -> Tensor:
            assert space.text is not None  # a space without text asks for none
            return torch.randn(len(captions), space.text.tokens, space.text.dim)

        def predict(inputs: Mapping[str, Any]) -> Tensor:
            with torch.autocast("cpu", self._kind or torch.bfloat16, enabled=self._kind is not None):
                return self._supernet.predict(inputs, path)

        loss = self._task.loss(predict, self._task.ask(batch, _Shapes(), encode)).total
        if loss.requires_grad:
            loss.backward()
