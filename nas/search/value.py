"""Search by the value of actions: change of quality for a millisecond, in groups, along a front."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

from nas.search.ledger import ledger_of
from nas.search.problem import Indices
from nas.search.whole import WholeSampler

GROUP = 3  # actions taken together at most
PROBE = 0.5  # share of proposals that try one action whose effect nobody has seen

Action = tuple[int, int, int]  # position, option before, option after


class ValueSampler(WholeSampler):
    """Local search by actions: put a layer in, take one out, or exchange one, at one position.

    An action's effect on the loss is the mean difference of evaluated arrangements that differ in nothing else; its
    effect on the latency is the table's. A proposal starts from an arrangement of the front that the evaluations have
    so far and either tries one action there whose effect has not been seen, or takes a group of known ones: those that
    lower the loss most for each millisecond they cost, or those that save most milliseconds for the loss they cost.
    Everything stays within the budget.

    Args:
        problem: positions, costs and limits.
        seed: of the start, the direction, and the size of a group.

    Source: the evolving of architectures by action values of SnapFusion (Li et al., arXiv 2306.00980, section 3.1 and
    algorithm 1). There actions remove or add whole blocks of a network in training and are scored anew in each round;
    here they are choices at positions, and what was seen once is remembered.
    """

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        problem, rng = self._problem, self._rng
        losses = self._losses(study)
        start = self._start(losses)
        effects = action_effects(losses)
        around = problem.neighbours(start)
        around = around[problem.feasible(around)]
        if not len(around):
            return problem.params(start)
        unseen = [row for row in around if _action(start, row) not in effects]
        known = [row for row in around if _action(start, row) in effects]
        if unseen and (not known or rng.random() < PROBE):
            return problem.params(unseen[rng.integers(len(unseen))])
        return problem.params(self._group(start, known, effects))

    def _losses(self, study: optuna.Study) -> dict[tuple[int, ...], float]:
        ledger = ledger_of(study, self._problem)
        return dict([*ledger.observed, *ledger.recent])

    def _start(self, losses: dict[tuple[int, ...], float]) -> Indices:
        """A member of the front within the budget, at random; the baseline while there is none."""
        if not losses:
            return self._problem.baseline
        choices = np.array(list(losses), dtype=np.int64)
        fits = self._problem.feasible(choices)
        latency = np.where(fits, self._problem.cost(choices).latency_ms, np.inf)
        quality = np.array(list(losses.values()))
        front, lowest = [], np.inf
        for i in np.lexsort((quality, latency)):
            if np.isfinite(latency[i]) and quality[i] < lowest:
                front.append(i)
                lowest = quality[i]
        return choices[self._rng.choice(front)] if front else self._problem.baseline

    def _group(self, start: Indices, known: Sequence[Indices], effects: dict[Action, float]) -> Indices:
        """The start after a group of known actions at different positions, within the budget."""
        problem, rng = self._problem, self._rng
        base = float(problem.cost(start).latency_ms[0])
        gains = np.array([-effects[_action(start, row)] for row in known])
        extra = problem.cost(np.array(known)).latency_ms - base
        spend = rng.random() < 0.5
        # A gain that costs nothing comes before all that cost something; ties are broken by the larger gain.
        if spend:
            value = np.where(gains > 0, gains / np.maximum(extra, 1e-9 * base), -np.inf)
        else:
            value = np.where(extra < 0, -extra / np.maximum(-gains, 1e-12), -np.inf)
        current = start.copy()
        changed: set[int] = set()
        wanted = int(rng.integers(1, GROUP + 1))
        for i in np.argsort(-value, kind="stable"):
            if not np.isfinite(value[i]) or len(changed) == wanted:
                break
            place = int(np.flatnonzero(known[i] != start)[0])
            after = current.copy()
            after[place] = known[i][place]
            if place not in changed and problem.feasible(after)[0]:
                current = after
                changed.add(place)
        return current if changed else np.asarray(known[int(rng.integers(len(known)))])


def action_effects(losses: dict[tuple[int, ...], float]) -> dict[Action, float]:
    """Action -> mean change of the loss, over all pairs of evaluated arrangements that differ in it alone.

    >>> action_effects({(0, 0): 1.0, (1, 0): 0.8, (0, 1): 0.9, (1, 1): 0.6})[(0, 0, 1)]
    -0.25
    """
    seen: dict[tuple[int, tuple[int, ...]], list[tuple[int, float]]] = {}
    for choice, loss in losses.items():
        for place, option in enumerate(choice):
            seen.setdefault((place, choice[:place] + choice[place + 1 :]), []).append((option, loss))
    changes: dict[Action, list[float]] = {}
    for (place, _), found in seen.items():
        for before, first in found:
            for after, second in found:
                if before != after:
                    changes.setdefault((place, before, after), []).append(second - first)
    return {action: float(np.mean(values)) for action, values in changes.items()}


def _action(before: Indices, after: Indices) -> Action:
    place = int(np.flatnonzero(before != after)[0])
    return place, int(before[place]), int(after[place])
