"""Other ways to score an arrangement than along its own inherited path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from nas.supernet.quality import Paired, Quality, Score, score_of
from search_spaces.arrangement import Arrangement


class Scorer(Protocol):
    """What a search asks: scores with paired samples."""

    def score(self, arrangement: Arrangement) -> Score: ...

    def paired_difference(self, a: Arrangement, b: Arrangement) -> tuple[float, float]: ...


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
        samples, parts = base.samples.copy(), dict(base.parts)
        for position, variants in arrangement.layers:
            if variants == self._base.at(position):
                continue
            one = self._quality.score(self._base.replace(position, variants))
            samples += one.samples - base.samples
            parts = {name: part + one.parts[name] - base.parts[name] for name, part in parts.items()}
        return score_of(samples, parts)


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
