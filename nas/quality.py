"""How good an arrangement is: validation loss on the supernet with common random numbers, motion included."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nas.config import QualityConfig
from nas.data import Dataset
from nas.errors import NasError
from nas.flow import mix, velocity
from nas.supernet import Supernet
from nas.text import TextEncoder
from search_spaces.arrangement import Arrangement


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
    samples: NDArray[np.float64]


class Quality:
    """Scores arrangements on fixed clips, noise and noise levels: what differs is the arrangement alone.

    Args:
        supernet, text: averaged weights; put in evaluation mode.
        data: the validation split.

    The noise levels are spread evenly over 0..1, with a fixed jitter and dealt to clips and repeats at random, so that
    few clips cover all.

    Raises:
        NasError: if there are fewer than two clips; one has no standard error.
    """

    def __init__(
        self, supernet: Supernet, text: TextEncoder, data: Dataset, config: QualityConfig, device: str = "cpu"
    ) -> None:
        self.config = config
        self.device = torch.device(device)
        self.supernet = supernet.to(self.device).eval()
        self.text = text = text.to(self.device).eval()
        self._known: dict[str, Score] = {}
        generator = torch.Generator().manual_seed(config.seed)
        items = [data[i] for i in range(min(config.clips, len(data)))]
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

    @torch.no_grad()
    def score(self, arrangement: Arrangement) -> Score:
        """The score of one arrangement; asked twice, answered from memory."""
        if arrangement.key not in self._known:
            parts = [self._errors(arrangement, *batch) for batch in self._batches]
            repeats = self.config.repeats  # drawn repeat by repeat, all clips each time
            plain = np.concatenate([part[0] for part in parts]).reshape(repeats, -1).mean(0)
            motion = np.concatenate([part[1] for part in parts]).reshape(repeats, -1).mean(0)
            weight = self.config.motion_weight
            samples = (1 - weight) * plain + weight * motion
            self._known[arrangement.key] = Score(
                loss=float(samples.mean()),
                stderr=float(samples.std(ddof=1) / math.sqrt(len(samples))),
                velocity_loss=float(plain.mean()),
                motion_loss=float(motion.mean()),
                samples=samples,
            )
        return self._known[arrangement.key]

    def _errors(
        self, arrangement: Arrangement, noisy: Tensor, level: Tensor, target: Tensor, context: Tensor
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        frames = noisy.shape[1]
        out = self.supernet(noisy.flatten(0, 1), 1000.0 * level, context, frames, arrangement)
        error = (out.unflatten(0, (-1, frames)) - target).double()
        plain = error.square().flatten(1).mean(1)
        motion = error.diff(dim=1).square().flatten(1).mean(1) / 2
        return plain.cpu().numpy(), motion.cpu().numpy()

    def paired_difference(self, a: Arrangement, b: Arrangement) -> tuple[float, float]:
        """Mean of loss(a) - loss(b) over the same clips, noise and levels, and its standard error."""
        difference = self.score(a).samples - self.score(b).samples
        return float(difference.mean()), float(difference.std(ddof=1) / math.sqrt(len(difference)))
