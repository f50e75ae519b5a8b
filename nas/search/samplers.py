"""Samplers: who proposes the next arrangement. Every proposal is feasible and new before it becomes a trial."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from nas.errors import NasError
from nas.search.ledger import ledger_of
from nas.search.problem import Indices, Problem
from nas.search.records import Choice
from nas.search.surrogate import SurrogateSampler
from nas.search.value import ValueSampler
from search_spaces.errors import unknown

PROPOSALS = 8  # tries of the inner sampler before its last proposal is repaired
STARTUP = 10  # random trials before TPE begins: Optuna's own number
RESTARTS = 8  # of a repair that came to a dead end, from random arrangements
POPULATION = 6  # of a generation; the best of 6, 10 and 20 by benchmarks/search_regret.py


class SpaceExhausted(Exception):
    """Every feasible arrangement within reach has been evaluated."""


class FeasibleSampler(BaseSampler):
    """Wraps a sampler so that what it proposes fits the budget and was never evaluated.

    Costs come from the table, so feasibility is known before anything is paid for. A proposal that breaks a limit or
    repeats a trial is asked again; after ``proposals`` tries it is repaired by the single-position change that is
    feasible and new, or, while there is none, by the one that lowers the excess most.

    Args:
        inner: any Optuna sampler of independent or relative kind.
        problem: positions, costs and limits.
        seed: of the choice among equally good repairs.
        proposals: how often the inner sampler is asked before its last proposal is repaired.
        breeds: enqueued designs, too, pass through the inner sampler, which puts them into a generation: an
            evolutionary one breeds from nothing else.
    """

    def __init__(
        self, inner: BaseSampler, problem: Problem, seed: int, proposals: int = PROPOSALS, breeds: bool = False
    ) -> None:
        self._inner, self._proposals, self._breeds = inner, proposals, breeds
        self._problem = problem
        self._rng = np.random.default_rng(seed)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return dict(self._problem.distributions)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        fixed = trial.system_attrs.get("fixed_params")
        if fixed:  # an enqueued design: proposed by somebody else
            return dict(fixed)
        seen = ledger_of(study, self._problem).taken
        for _ in range(self._proposals):
            proposal = self._propose(study, trial)
            if tuple(proposal.tolist()) not in seen and self._problem.feasible(proposal)[0]:
                return self._problem.params(proposal)
        return self._problem.params(repair(self._problem, proposal, seen, self._rng))

    def _propose(self, study: optuna.Study, trial: FrozenTrial) -> Indices:
        """One of the inner sampler's; it is told that options are names, and no numbers to go between."""
        search_space: dict[str, BaseDistribution] = dict(self._problem.categorical)
        params = self._inner.sample_relative(study, trial, search_space)
        for name, distribution in search_space.items():
            if name not in params:
                params[name] = self._inner.sample_independent(study, trial, name, distribution)
        return self._problem.indices(params)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        distribution = self._problem.categorical.get(param_name, param_distribution)
        return self._inner.sample_independent(study, trial, param_name, distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._inner.before_trial(study, trial)
        if self._breeds and "fixed_params" in trial.system_attrs:
            # For a design that is given Optuna asks its sampler for nothing, and it would be of no generation.
            self._inner.sample_relative(study, trial, dict(self._problem.categorical))

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        self._inner.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        self._inner.reseed_rng()
        self._rng = np.random.default_rng()


def repair(problem: Problem, proposal: Indices, seen: Container[Choice], rng: np.random.Generator) -> Indices:
    """The proposal, changed at as few positions as a greedy descent needs, feasible and not in ``seen``.

    Limits that pull apart (a low latency, many parameters) have dead ends. A descent that ends in one is begun anew
    from random arrangements, and at last from one that is known to be feasible.

    Raises:
        SpaceExhausted: if no such arrangement is within two changes a position of any of them.
    """
    found = _descend(problem, proposal, seen, rng)
    if found is not None:
        return found
    for start in _other_starts(problem, rng):
        if tuple(start.tolist()) not in seen and problem.feasible(start)[0]:
            return start
        found = _descend(problem, start, seen, rng)
        if found is not None:
            return found
    raise SpaceExhausted


def _other_starts(problem: Problem, rng: np.random.Generator) -> Iterator[Indices]:
    yield from problem.costs.random(RESTARTS, rng)
    if problem.within_budget is not None:
        yield problem.within_budget


def _descend(problem: Problem, start: Indices, seen: Container[Choice], rng: np.random.Generator) -> Indices | None:
    current = start
    for _ in range(2 * len(problem.positions)):
        around = problem.neighbours(current)
        excess = problem.excess(around)
        fits = [i for i in np.flatnonzero(excess == 0) if tuple(around[i].tolist()) not in seen]
        if fits:
            return around[rng.choice(fits)]
        best = np.flatnonzero(excess == excess.min())
        current = around[rng.choice(best)]
    return None


def nsga2(problem: Problem, seed: int, population: int = POPULATION) -> BaseSampler:
    """Evolution by NSGA-II (Deb et al., IEEE TEVC 2002), hand-made designs in its first generation."""
    return FeasibleSampler(NSGAIISampler(population_size=population, seed=seed), problem, seed, breeds=True)


def tpe(problem: Problem, seed: int, startup: int = STARTUP) -> BaseSampler:
    """A tree-structured Parzen estimator, multivariate, after so many random trials."""
    return FeasibleSampler(TPESampler(multivariate=True, n_startup_trials=startup, seed=seed), problem, seed)


def _random(problem: Problem, seed: int) -> BaseSampler:
    return FeasibleSampler(RandomSampler(seed=seed), problem, seed)


def _surrogate(problem: Problem, seed: int) -> BaseSampler:
    return FeasibleSampler(SurrogateSampler(problem, seed=seed), problem, seed, proposals=1)


def _value(problem: Problem, seed: int) -> BaseSampler:
    return FeasibleSampler(ValueSampler(problem, seed=seed), problem, seed)


def _gp(problem: Problem, seed: int) -> BaseSampler:
    """A Gaussian process over the choices as they are; the only one of these whose proposals take seconds."""
    return FeasibleSampler(GPSampler(seed=seed), problem, seed, proposals=2)


SAMPLERS: dict[str, Callable[[Problem, int], BaseSampler]] = {
    "surrogate": _surrogate,
    "nsga2": nsga2,
    "tpe": tpe,
    "value": _value,
    "gp": _gp,
    "random": _random,
}


# Optuna's NSGA-II and GP read completed trials alone: of an arrangement stopped early they would learn nothing, and the
# first fills no generation with it (measured: benchmarks/evaluation.py).
NEED_WHOLE_SCORES = frozenset({"nsga2", "gp"})


def population_of(name: str, trials: int, wanted: int | None = None) -> int:
    """The population of an evolutionary sampler: the one that is wanted, else ``POPULATION`` or all of a few trials.

    Raises:
        NasError: if one is wanted of which no second generation would come.
    """
    if wanted is None:
        return max(2, min(POPULATION, trials))
    if name == "nsga2" and not 2 <= wanted <= trials:
        raise NasError(
            f"search.population must be 2 or more and at most the trials, or nothing is bred; it is {wanted}, with "
            f"{trials} trials: give more --trials, or a smaller population"
        )
    return wanted


def check_sampler(name: str, where: str = "search.sampler") -> None:
    """Whether there is such a sampler.

    Raises:
        NasError: naming the nearest, and all that there are.
    """
    if name not in SAMPLERS:
        raise NasError(f"{where}: {unknown('sampler', name, SAMPLERS)}")


def make_sampler(name: str, problem: Problem, seed: int, population: int = POPULATION) -> BaseSampler:
    """A sampler by name; made anew for every trial from a seed of its own, so that a resumed study goes on exactly.

    Args:
        population: of an evolutionary one.
    """
    check_sampler(name)
    if SAMPLERS[name] is nsga2:
        return nsga2(problem, seed, population)
    return SAMPLERS[name](problem, seed)
