"""How well two orders agree, and whether it could be chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from latency_tables.agreement import kendall_tau

DRAWS = 2_000  # of the bootstrap
CHANCE = 0.05  # a ranking whose chance probability is above this cannot be told from a random one

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Agreement:
    """Kendall's tau of two scores of the same arrangements.

    Attributes:
        tau: -1..1. low, high: its 90% bootstrap interval over arrangements. chance: share of random orders that agree
            as well or better: exact where nothing is tied.
    """

    tau: float
    low: float
    high: float
    chance: float
    count: int

    @property
    def told_from_chance(self) -> bool:
        return self.chance <= CHANCE and self.tau > 0

    @property
    def sentence(self) -> str:
        """One line for people."""
        told = f"Kendall's tau {self.tau:.2f} ({self.low:.2f} to {self.high:.2f}) over {self.count} arrangements"
        return told if self.told_from_chance else f"{told}: cannot be told from chance (p = {self.chance:.2f})"


def agreement(scores: Sequence[float], truth: Sequence[float], seed: int = 0) -> Agreement:
    """How well scores order the truth.

    Args:
        scores, truth: of the same N arrangements, N at least 4; the same sense (lower is better in both).
    """
    from scipy.stats import kendalltau

    a, b = np.asarray(scores, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    rng = np.random.default_rng(seed)
    tau = kendall_tau(a, b)
    drawn = []
    for _ in range(DRAWS):
        picked = rng.integers(0, len(a), len(a))
        drawn.append(kendall_tau(a[picked], b[picked]))
    low, high = np.nanquantile(drawn, [0.05, 0.95])
    chance = kendalltau(a, b, alternative="greater").pvalue
    return Agreement(tau, float(low), float(high), float(chance), len(a))


def top_regret(scores: Sequence[float] | Floats, truth: Sequence[float] | Floats) -> float:
    """What choosing by the scores costs: 0 if their lowest is truly the best, 1 if it is as good as a random one.

    ``(truth of the lowest score - best truth) / (mean truth - best truth)``; not a number if all are equally good.

    >>> top_regret([0.2, 0.1, 0.3], [1.0, 2.0, 3.0])
    1.0
    """
    a, b = (np.asarray(values, dtype=np.float64) for values in (scores, truth))
    spread = float(b.mean() - b.min())
    return float(b[int(np.argmin(a))] - b.min()) / spread if spread > 0 else float("nan")


@dataclass(frozen=True)
class Band:
    """The order within a narrow band of latency, which is what a search uses: beyond it, size tells.

    Attributes:
        tau: of the scores and the truth. ceiling: of the truths of two seeds, on those that were trained twice; no
            score can be expected to agree better. Not a number where it is not known.
        regret: ``top_regret`` of the scores. count, twice: arrangements in the band, and of them those trained twice.
    """

    tau: float
    ceiling: float
    regret: float
    count: int
    twice: int

    @property
    def sentence(self) -> str:
        """One line for people."""
        known = np.isfinite(self.ceiling)
        of = f" of {self.ceiling:.2f} that two seeds reach ({self.twice} trained twice)" if known else ""
        regret = "unknown" if not np.isfinite(self.regret) else f"{self.regret:.2f}"
        return (
            f"within 10% of latency: tau {self.tau:.2f}{of} over {self.count}; regret of the top choice {regret} of a "
            "random one's"
        )


def band(scores: Sequence[float], truth: Sequence[float], second: Sequence[float | None]) -> Band:
    """The order of arrangements of one band.

    Args:
        scores, truth: of the same N. second: the truth by another seed, where there is one.
    """
    both = [(first, other) for first, other in zip(truth, second, strict=True) if other is not None]
    ceiling = kendall_tau(*zip(*both, strict=True)) if len(both) > 2 else float("nan")
    mean = [first if other is None else (first + other) / 2 for first, other in zip(truth, second, strict=True)]
    tau = kendall_tau(scores, truth)
    return Band(tau, ceiling, top_regret(scores, mean) if scores else float("nan"), len(scores), len(both))
