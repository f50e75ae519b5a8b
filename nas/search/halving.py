"""Scores in instalments: an arrangement that is clearly beaten after a few of the clips is not scored on the rest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from nas.search.ledger import SAMPLES
from nas.search.problem import Indices, Problem
from search_spaces.arrangement import Arrangement

Z = 3.0  # standard errors by which an arrangement must be behind to be stopped
DIGITS = 7  # of a sample in the storage
SAME = 1e-9  # share by which equal sums of costs may differ


class Gradual(Protocol):
    """A score that can be had in instalments, and of several arrangements in one pass.

    Attributes:
        rungs: numbers of batches after which arrangements are compared, the last of them all there are.
    """

    @property
    def rungs(self) -> tuple[int, ...]: ...

    def prepare(self, arrangements: Sequence[Arrangement], batches: int | None = None) -> None:
        """Score all of them on the first batches, or on all."""

    def samples(self, arrangement: Arrangement) -> NDArray[np.float64]:
        """The losses known so far, in an order that is the same for every arrangement."""


@dataclass(frozen=True)
class Verdict:
    """What is known of an arrangement that was stopped.

    Attributes:
        estimate: of its loss: the rival's, plus what it was behind. stderr: of that. clips: losses it rests on.
        rival: number of the trial that beats it.
    """

    estimate: float
    stderr: float
    clips: int
    rival: int


@dataclass(frozen=True)
class _Rival:
    number: int
    costs: NDArray[np.float64]
    samples: NDArray[np.float64]


class Race:
    """Compares an arrangement that is scored in part with the best one that is no dearer in anything.

    As noise and clips are shared, the difference of the two on the same clips is far less noisy than either loss. It
    is stopped if that difference is ``Z`` standard errors over zero, where the error is that of a sample of a finite
    whole: on all clips nothing is left to chance. What is stopped would not have been on the front.

    Optuna's own pruners (WilcoxonPruner has the same test in mind) refuse studies of several objectives.

    Source: successive halving (Karnin et al., ICML 2013) with racing's paired test in place of a fixed share of
    survivors (F-Race, Birattari et al., GECCO 2002), since the arrangements of a search arrive one by one.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._rivals: dict[int, _Rival] = {}
        self._seen: set[int] = set()

    def learn(self, trials: Sequence[FrozenTrial]) -> None:
        """Take finished trials as rivals; each is read once."""
        for trial in trials:
            if trial.state != TrialState.COMPLETE or trial.number in self._seen:
                continue
            self._seen.add(trial.number)
            samples = trial.user_attrs.get("score", {}).get(SAMPLES)
            if samples is not None and trial.user_attrs.get("feasible", False):
                costs = np.asarray(trial.values[1:], dtype=np.float64)
                self._rivals[trial.number] = _Rival(trial.number, costs, np.asarray(samples, dtype=np.float64))

    def judge(self, choice: Indices, samples: NDArray[np.float64]) -> Verdict | None:
        """The verdict on an arrangement that is beaten; ``None`` if it should go on."""
        costs = self._problem.objective_costs(choice)[0]
        rivals = [
            rival
            for rival in self._rivals.values()
            if len(rival.samples) > len(samples) >= 2 and np.all(rival.costs <= costs * (1 + SAME))
        ]
        if not rivals:
            return None
        best = min(rivals, key=lambda rival: rival.samples.mean())
        mean, stderr = behind(samples, best.samples)
        if mean <= Z * stderr:
            return None
        return Verdict(float(best.samples.mean()) + mean, stderr, len(samples), best.number)


def behind(samples: NDArray[np.float64], rival: NDArray[np.float64]) -> tuple[float, float]:
    """How far (n,) first losses are over a rival's (N,), n < N, on all N by estimate, and its standard error.

    >>> mean, stderr = behind(np.array([2.0, 2.2]), np.array([1.0, 1.0, 1.0, 1.0]))
    >>> round(mean, 6), round(stderr, 6)
    (1.1, 0.070711)
    """
    differences = samples - rival[: len(samples)]
    unseen = 1 - len(samples) / len(rival)
    return float(differences.mean()), float(differences.std(ddof=1) * math.sqrt(unseen / len(samples)))


def stored(samples: NDArray[np.float64]) -> list[float]:
    """Losses as they are kept in a storage: every worker compares the same numbers, now or after a resume."""
    return [float(f"{value:.{DIGITS}g}") for value in samples]
