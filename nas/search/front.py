"""The answer of a search: the front, the arrangement to take, and what cannot be told apart."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np

from nas.errors import NasError
from nas.files import whole
from nas.search.records import PART
from nas.search.studies import Evaluation
from search_spaces.arrangement import Arrangement

SAME = 9  # significant digits


def pareto_front(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """The feasible evaluations that no other feasible one beats in the loss and every objective, cheapest first.

    Of equal ones the first is taken. Costs are equal up to ``SAME``: the same layers at other positions add up to the
    same latency, but for the last digit of a sum.
    """
    fit = [e for e in evaluations if e.feasible and not e.pruned]
    values = np.array([(e.loss, *map(_to_compare, e.objectives or (e.latency_ms,))) for e in fit])
    front = []
    for i, e in enumerate(fit):
        no_worse = np.all(values <= values[i], axis=1)
        better = np.any(values < values[i], axis=1)
        earlier = np.arange(len(fit)) < i
        if not np.any(no_worse & (better | earlier)):
            front.append(e)
    return sorted(front, key=lambda e: (e.latency_ms, e.loss))


def _to_compare(cost: float) -> float:
    """A cost without the digits in which equal sums differ."""
    return float(f"{cost:.{SAME}g}")


@dataclass(frozen=True)
class Choice:
    """The arrangement taken, and why.

    Attributes:
        best: lowest loss on the clips of the end. chosen: the cheapest that cannot be told apart from it.
        difference, stderr: paired difference of loss, chosen minus best, and its standard error.
        tied: front members (cheapest first) within ``TIE`` standard errors of the best, chosen and best included.
        rivals: how many were compared more closely; 0 if one was clearly the best.
    """

    best: Evaluation
    chosen: Evaluation
    difference: float
    stderr: float
    tied: tuple[Evaluation, ...]
    rivals: int = 0


Difference = Callable[[Arrangement, Arrangement], tuple[float, float]]

TIE = 0.75  # standard errors of the paired difference; one is too many where the lowest of several has been lucky
LEVEL = 0.02  # chance that some member no worse than the lowest is taken for worse, over all comparisons


def choose(front: Sequence[Evaluation], difference: Difference, closer: Difference | None = None) -> Choice:
    """The cheapest member of the front whose loss cannot be told apart from the best's: a one-standard-error rule.

    The anchor is the lowest loss by ``difference``, not by the scores of the search, which have their own luck. Of
    several members the lowest has been lucky too: all that a test for that many comparisons (Bonferroni's critical
    value) cannot tell from it are rivals, and the rule is applied to them by ``closer``, on several times as many
    scores. benchmarks/calibration.py shows how often the one chosen is truly behind.

    Args:
        front: cheapest first.
        difference: (a, b) -> mean and standard error of loss(a) - loss(b) over the same clips, noise and timesteps.
        closer: the same on more of them, for the rivals alone; by default ``difference``.

    Source: the one-standard-error rule of Breiman et al., Classification and Regression Trees (1984), section 3.4.3,
    with paired instead of independent errors, because common random numbers make the pairs far tighter.

    Raises:
        NasError: if the front is empty.
    """
    if not front:
        raise NasError(
            "the search evaluated nothing within the budget, so there is nothing to choose from; give it more --trials "
            "or loosen a limit"
        )
    rivals = _within(front, difference, critical(len(front) - 1))
    if len(rivals) > 1 and closer is not None:
        difference = closer
    best = _lowest([member for member, _, _ in rivals], difference)
    tied = _within([member for member, _, _ in rivals], difference, TIE)
    chosen, mean, stderr = min(tied, key=lambda entry: entry[0].latency_ms)
    count = len(rivals) if len(rivals) > 1 else 0
    return Choice(best, chosen, mean, stderr, tuple(entry[0] for entry in tied), count)


def critical(comparisons: int) -> float:
    """Standard errors that so many differences stay within, all of them, but for a chance of ``LEVEL``; one-sided."""
    return max(1.0, NormalDist().inv_cdf(1 - LEVEL / max(comparisons, 1)))


def _lowest(members: Sequence[Evaluation], difference: Difference) -> Evaluation:
    first = members[0]
    return min(members, key=lambda e: 0.0 if e is first else difference(e.arrangement, first.arrangement)[0])


def _within(
    members: Sequence[Evaluation], difference: Difference, errors: float
) -> list[tuple[Evaluation, float, float]]:
    """Members at most so many standard errors over the lowest, each with its difference and that error."""
    best = _lowest(members, difference)
    found: list[tuple[Evaluation, float, float]] = []
    for member in members:
        mean, stderr = (0.0, 0.0) if member is best else difference(member.arrangement, best.arrangement)
        if mean <= errors * stderr:
            found.append((member, mean, stderr))
    return found


def write_front(path: Path, evaluations: Sequence[Evaluation], chosen_key: str) -> None:
    """One CSV row for each evaluation, in trial order; written whole or not at all.

    Columns: trial, origin, key, one per position (labels joined by `` + ``), loss, loss_stderr, one for each part of
    the error (``<part>_loss``), latency_ms, peak_mb, weights_mb, parameters, feasible, on_front, chosen, clips_seen.
    The last is empty but for a row that was stopped early: the losses it was scored on; its loss is an estimate.
    """
    on_front = {e.arrangement.key for e in pareto_front(evaluations)}
    positions = [name for name, _ in evaluations[0].arrangement.layers]
    with whole(path) as file:
        handle = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        writer = csv.writer(handle, lineterminator="\n")
        parts = list(dict.fromkeys(name for e in evaluations for name in e.parts))
        losses = ["loss", "loss_stderr", *(f"{name}{PART}" for name in parts)]
        costs = ["latency_ms", "peak_mb", "weights_mb", "parameters"]
        writer.writerow(
            ["trial", "origin", "key", *positions, *losses, *costs, "feasible", "on_front", "chosen", "clips_seen"]
        )
        for e in evaluations:
            layers = [" + ".join(v.label for v in variants) for _, variants in e.arrangement.layers]
            writer.writerow(
                [
                    e.trial,
                    e.origin,
                    e.arrangement.key,
                    *layers,
                    *(f"{x:.6f}" for x in (e.loss, e.loss_stderr)),
                    *(f"{e.parts.get(name, math.nan):.6f}" for name in parts),
                    *(f"{x:.4f}" for x in (e.latency_ms, e.peak_mb, e.weights_mb)),
                    e.parameters,
                    int(e.feasible),
                    int(e.arrangement.key in on_front),
                    int(e.arrangement.key == chosen_key),
                    e.clips or "",
                ]
            )
        handle.detach()
