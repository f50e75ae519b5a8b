"""Other ways to score an arrangement than along its own inherited path."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import numpy as np

from nas.quality import Quality, Score
from search_spaces.arrangement import Arrangement


class Scorer(Protocol):
    """What a search asks: scores with paired samples."""

    def score(self, arrangement: Arrangement) -> Score: ...

    def paired_difference(self, a: Arrangement, b: Arrangement) -> tuple[float, float]: ...


class Paired:
    """Scores whose samples are paired over the same clips, noise and levels; each asked for once."""

    def __init__(self) -> None:
        self._known: dict[str, Score] = {}

    def score(self, arrangement: Arrangement) -> Score:
        """The score of one arrangement; asked twice, answered from memory."""
        if arrangement.key not in self._known:
            self._known[arrangement.key] = self._score(arrangement)
        return self._known[arrangement.key]

    def _score(self, arrangement: Arrangement) -> Score:
        raise NotImplementedError

    def paired_difference(self, a: Arrangement, b: Arrangement) -> tuple[float, float]:
        """Mean of loss(a) - loss(b) over the same clips, noise and levels, and its standard error."""
        difference = self.score(a).samples - self.score(b).samples
        return float(difference.mean()), float(difference.std(ddof=1) / math.sqrt(len(difference)))


class OneReplaced(Paired):
    """The loss of a trained path, plus what putting each of an arrangement's choices there changes, one at a time.

    Every evaluated path then differs from a trained one in a single position, so less is asked of shared weights than
    by a path of which no two layers ever trained together. What is lost are the effects of choices on each other.

    Source: replacing blocks one at a time, as in blockwise searches by distillation (DNA, Li et al., arXiv 1911.13053;
    LANA, Molchanov et al., arXiv 2107.10624), here on the weights of a supernet.

    Args:
        quality: scores along paths. base: the trained path.
    """

    def __init__(self, quality: Quality, base: Arrangement) -> None:
        super().__init__()
        self._quality, self._base = quality, base

    def _score(self, arrangement: Arrangement) -> Score:
        base = self._quality.score(self._base)
        samples, plain, motion = base.samples.copy(), base.velocity_loss, base.motion_loss
        for position, variants in arrangement.layers:
            if variants == self._base.at(position):
                continue
            one = self._quality.score(self._base.replace(position, variants))
            samples += one.samples - base.samples
            plain += one.velocity_loss - base.velocity_loss
            motion += one.motion_loss - base.motion_loss
        return score_of(samples, plain, motion)


class Adapted(Paired):
    """The loss after a few steps of training from inherited weights, on a copy, each arrangement by itself.

    Args:
        adapt: arrangement -> a score on the adapted copy.
    """

    def __init__(self, adapt: Callable[[Arrangement], Score]) -> None:
        super().__init__()
        self._adapt = adapt

    def _score(self, arrangement: Arrangement) -> Score:
        return self._adapt(arrangement)


def score_of(samples: np.ndarray, velocity_loss: float, motion_loss: float) -> Score:
    """A score from the losses of its clips."""
    return Score(
        loss=float(samples.mean()),
        stderr=float(samples.std(ddof=1) / math.sqrt(len(samples))),
        velocity_loss=velocity_loss,
        motion_loss=motion_loss,
        samples=samples,
    )
