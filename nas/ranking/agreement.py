"""How well two orders agree, and whether it could be chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DRAWS = 2_000  # of the bootstrap and of the permutation test
CHANCE = 0.05  # a ranking whose chance probability is above this cannot be told from a random one

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Agreement:
    """Kendall's tau of two scores of the same arrangements.

    Attributes:
        tau: -1..1. low, high: its 90% bootstrap interval over arrangements. chance: share of random orders that agree
            as well or better (permutation test).
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


def kendall_tau(first: Sequence[float] | Floats, second: Sequence[float] | Floats) -> float:
    """Concordant minus discordant pairs, ties corrected: tau-b (Kendall 1945). Not a number if one side is all ties."""
    a, b = (np.asarray(values, dtype=np.float64) for values in (first, second))
    upper = np.triu_indices(len(a), 1)
    signs = [np.sign(values[:, None] - values[None, :])[upper] for values in (a, b)]
    ties = float(np.sqrt(np.prod([np.abs(sign).sum() for sign in signs])))
    return float((signs[0] * signs[1]).sum() / ties) if ties else float("nan")


def agreement(scores: Sequence[float], truth: Sequence[float], seed: int = 0) -> Agreement:
    """How well scores order the truth.

    Args:
        scores, truth: of the same N arrangements, N at least 4; the same sense (lower is better in both).
    """
    a, b = np.asarray(scores, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    rng = np.random.default_rng(seed)
    tau = kendall_tau(a, b)
    drawn = []
    for _ in range(DRAWS):
        picked = rng.integers(0, len(a), len(a))
        drawn.append(kendall_tau(a[picked], b[picked]))
    low, high = np.nanquantile(drawn, [0.05, 0.95])
    random = [kendall_tau(a, b[rng.permutation(len(b))]) for _ in range(DRAWS)]
    chance = (1 + sum(value >= tau - 1e-12 for value in random)) / (1 + DRAWS)
    return Agreement(tau, float(low), float(high), float(chance), len(a))
