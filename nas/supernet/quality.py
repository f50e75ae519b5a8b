"""How good an arrangement is: validation loss on the supernet with common random numbers, motion included."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nas.config import QualityConfig
from nas.data import Dataset
from nas.errors import NasError
from nas.pretrained.text import TextEncoder
from nas.supernet.supernet import Supernet
from nas.tasks.noise import mix, velocity
from search_spaces.arrangement import Arrangement

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Score:
    """A score and what it is made of; lower is better.

    Attributes:
        loss: (1 - w) * velocity_loss + w * motion_loss, mean over clips. stderr: its standard error over clips; the
            repeats of a clip are averaged first, as they are not independent.
        velocity_loss: mean squared error of the predicted velocity.
        motion_loss: half the mean squared error of its frame-to-frame differences, so that errors which are
            independent between frames make both terms equal.
        samples: loss of each clip; two arrangements' samples are paired.
    """

    loss: float
    stderr: float
    velocity_loss: float
    motion_loss: float
    samples: Floats


class Paired(ABC):
    """Scores whose samples are paired over the same clips, noise and levels; each asked for once."""

    def __init__(self) -> None:
        self._known: dict[str, Score] = {}

    def score(self, arrangement: Arrangement) -> Score:
        """The score of one arrangement; asked twice, answered from memory."""
        if arrangement.key not in self._known:
            self._known[arrangement.key] = self._score(arrangement)
        return self._known[arrangement.key]

    @abstractmethod
    def _score(self, arrangement: Arrangement) -> Score: ...

    def paired_difference(self, a: Arrangement, b: Arrangement) -> tuple[float, float]:
        """Mean of loss(a) - loss(b) over the same clips, noise and levels, and its standard error."""
        difference = self.score(a).samples - self.score(b).samples
        return float(difference.mean()), float(difference.std(ddof=1) / math.sqrt(len(difference)))


def score_of(samples: Floats, velocity_loss: float, motion_loss: float) -> Score:
    """A score from the losses of its clips."""
    stderr = float(samples.std(ddof=1) / math.sqrt(len(samples)))
    return Score(float(samples.mean()), stderr, velocity_loss, motion_loss, samples)


class Quality(Paired):
    """Scores arrangements on fixed clips, noise and noise levels: what differs is the arrangement alone.

    Args:
        supernet, text: averaged weights; put in evaluation mode.
        data: the validation split. skip: clips of it to pass over.

    Attributes:
        available: clips of the split.

    The noise levels are spread evenly over 0..1, with a fixed jitter and dealt to clips and repeats at random, so that
    few clips cover all.

    Raises:
        NasError: if there are fewer than two clips; one has no standard error.
    """

    def __init__(
        self,
        supernet: Supernet,
        text: TextEncoder,
        data: Dataset,
        config: QualityConfig,
        device: str = "cpu",
        *,
        skip: int = 0,
    ) -> None:
        super().__init__()
        self.config = config
        self.device = torch.device(device)
        self.supernet = supernet.to(self.device).eval()
        self.text = text = text.to(self.device).eval()
        self._parts: dict[str, list[tuple[Floats, Floats]]] = {}  # by batch: velocity and motion errors
        self._room = 0  # arrangements that fit into memory together, where that was found out
        generator = torch.Generator().manual_seed(config.seed)
        self.available = len(data)
        items = [data[i] for i in range(skip, min(skip + config.clips, len(data)))]
        if len(items) < 2:
            raise NasError(
                f"quality needs 2 validation clips or more, but has {len(items)}; raise data.validation_clips"
            )
        total = len(items) * config.repeats
        order = torch.randperm(total, generator=generator)
        levels = (order + torch.rand(total, generator=generator)) / total
        self._batches: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        # Drawn sample by sample, so that the batch size changes nobody's noise.
        noises = [torch.randn(items[i % len(items)]["video"].shape, generator=generator) for i in range(total)]
        with torch.no_grad():
            for start in range(0, total, config.batch):
                picked = [items[i % len(items)] for i in range(start, min(start + config.batch, total))]
                video = torch.stack([item["video"] for item in picked])
                noise = torch.stack(noises[start : start + len(picked)])
                level = levels[start : start + len(picked)]
                context = text([item["caption"] for item in picked])
                batch = (mix(video, noise, level), level, velocity(video, noise))
                self._batches.append((*(t.to(self.device) for t in batch), context))

    @property
    def rungs(self) -> tuple[int, ...]:
        """Numbers of batches at which losses so far are worth a comparison: a quarter, a half, all."""
        count = len(self._batches)
        return tuple(sorted({math.ceil(count / 4), math.ceil(count / 2), count}))

    def _score(self, arrangement: Arrangement) -> Score:
        self.prepare([arrangement])
        parts = self._parts[arrangement.key]
        repeats = self.config.repeats  # drawn repeat by repeat, all clips each time
        plain, motion = (np.concatenate(errors).reshape(repeats, -1).mean(0) for errors in zip(*parts, strict=True))
        return score_of(self._weigh(plain, motion), float(plain.mean()), float(motion.mean()))

    def samples(self, arrangement: Arrangement) -> Floats:
        """Losses of an arrangement on the clips (repeat by repeat) that it was scored on so far."""
        parts = self._parts.get(arrangement.key, [])
        return self._weigh(*(np.concatenate(errors) for errors in zip(*parts, strict=True))) if parts else np.empty(0)

    def _weigh(self, plain: Floats, motion: Floats) -> Floats:
        weight = self.config.motion_weight
        weighed: Floats = (1 - weight) * plain + weight * motion
        return weighed

    def prepare(self, arrangements: Sequence[Arrangement], batches: int | None = None) -> None:
        """Score arrangements on the first batches (all for ``None``), together where a GPU's memory allows.

        Together they differ from one by one in the last digits, as kernels differ by batch size.
        """
        wanted = {arrangement.key: arrangement for arrangement in arrangements}
        for turn, batch in enumerate(self._batches[:batches]):
            due = [a for a in wanted.values() if len(self._parts.setdefault(a.key, [])) == turn]
            while due:
                group = due[: self._room] if self._room else due
                try:
                    errors = self._errors(group, *batch)
                except torch.cuda.OutOfMemoryError:
                    if len(group) == 1:
                        raise
                    self._room = len(group) // 2
                    continue
                for arrangement, found in zip(group, errors, strict=True):
                    self._parts[arrangement.key].append(found)
                due = due[len(group) :]

    @torch.no_grad()
    def _errors(
        self, arrangements: Sequence[Arrangement], noisy: Tensor, level: Tensor, target: Tensor, context: Tensor
    ) -> list[tuple[Floats, Floats]]:
        """Velocity and motion errors (B,) of each arrangement on one batch."""
        frames, times = noisy.shape[1], len(arrangements)
        inputs = [torch.cat([tensor] * times) for tensor in (noisy.flatten(0, 1), 1000.0 * level, context)]
        out = self.supernet(*inputs, frames, arrangements if times > 1 else arrangements[0])
        found = []
        for answer in out.unflatten(0, (times, -1, frames)):
            error = (answer - target).double()
            plain = error.square().flatten(1).mean(1)
            moving = error.shape[1] > 1  # a picture has no motion: both terms say the same of it
            motion = error.diff(dim=1).square().flatten(1).mean(1) / 2 if moving else plain
            found.append((plain.cpu().numpy(), motion.cpu().numpy()))
        return found
