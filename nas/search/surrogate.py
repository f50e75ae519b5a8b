"""Search by a model of quality: fitted to the evaluations so far, optimised exactly with the table's costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

from nas.search.problem import Indices, Problem

Floats = NDArray[np.float64]

GRID = 256  # latency bins of the dynamic programme
AT_THE_LIMIT = 0.5  # share of proposals aimed at the budget itself; the others at a latency drawn from the whole range


@dataclass(frozen=True)
class Features:
    """What the quality model sees of a choice, as a sum over positions and over neighbouring positions.

    Unary, for an option at a position: how often each variant stands there, how often each block does anywhere, and
    the layers beyond the first (depth pays less and less). Pairwise: whether two consecutive positions both hold
    layers. Everything is a sum along the chain of positions, so the best choice is found exactly.

    Attributes:
        unary: for each position, (options, F).
        pair: for each pair of consecutive positions, (F,): added when both hold layers.
    """

    unary: tuple[Floats, ...]
    pair: tuple[Floats, ...]

    @classmethod
    def of(cls, problem: Problem) -> Features:
        columns: dict[tuple[str, ...], int] = {}

        def column(*name: str) -> int:
            return columns.setdefault(name, len(columns))

        entries: list[tuple[int, int, int, float]] = []
        for p, position in enumerate(problem.space.positions):
            for o, option in enumerate(problem.space.options(position.name)):
                if p == 0:
                    entries.append((p, o, column("constant"), 1.0))
                for variant in option:
                    entries.append((p, o, column("variant", position.name, variant.label), 1.0))
                    entries.append((p, o, column("block", variant.block), 1.0))
                if option:
                    entries.append((p, o, column("depth"), float(len(option))))
                    entries.append((p, o, column("deeper", position.name), float(len(option) - 1)))
        pairs = [column("pair", a, b) for a, b in zip(problem.positions, problem.positions[1:], strict=False)]
        unary = [np.zeros((n, len(columns))) for n in problem.num_options]
        for p, o, c, value in entries:
            unary[p][o, c] += value
        return cls(tuple(unary), tuple(np.eye(len(columns))[c] for c in pairs))

    def __call__(self, choices: Indices) -> Floats:
        """(N, P) choices -> (N, F)."""
        total = sum(u[choices[:, p]] for p, u in enumerate(self.unary))
        for p, weights in enumerate(self.pair):
            both = (choices[:, p] > 0) & (choices[:, p + 1] > 0)
            total = total + both[:, None] * weights
        return np.asarray(total)


@dataclass(frozen=True)
class Posterior:
    """Bayesian linear regression: w ~ N(0, scale I), loss = mean + features w + N(0, noise).

    ``scale`` and ``noise`` maximise the marginal likelihood on a grid (type-II maximum likelihood, MacKay 1992).
    """

    offset: float
    unit: float
    mean: Floats
    root: Floats  # covariance = root @ root.T

    @classmethod
    def fit(cls, x: Floats, y: Floats) -> Posterior:
        """Args: x (N, F) features, y (N,) losses; N may be 0 (the prior)."""
        size = x.shape[1]
        offset = float(y.mean()) if len(y) else 0.0
        unit = float(y.std()) if len(y) > 1 and y.std() > 0 else 1.0
        z = (y - offset) / unit
        kernel = x @ x.T
        best = (-np.inf, 0.1, 0.1)
        if len(y):
            values, vectors = np.linalg.eigh(kernel)
            projected = (vectors.T @ z) ** 2
            for scale in np.geomspace(1e-3, 1, 7):
                for noise in np.geomspace(1e-3, 0.5, 7):
                    variance = scale * np.maximum(values, 0) + noise
                    evidence = -0.5 * (np.log(variance).sum() + (projected / variance).sum())
                    best = max(best, (float(evidence), float(scale), float(noise)))
        _, scale, noise = best
        precision = np.eye(size) / scale + x.T @ x / noise
        factor = np.linalg.cholesky(precision)
        mean: Floats = np.linalg.solve(precision, x.T @ z / noise).astype(np.float64)
        return cls(offset, unit, mean, np.linalg.inv(factor).T.astype(np.float64))

    def draw(self, rng: np.random.Generator) -> Floats:
        return self.mean + self.root @ rng.standard_normal(len(self.mean))

    def predict(self, x: Floats) -> Floats:
        return self.offset + self.unit * (x @ self.mean)


class SurrogateSampler(BaseSampler):
    """Thompson sampling over an additive-plus-neighbours model of quality, maximised by dynamic programming.

    Each proposal draws one quality model from the posterior, computes the exact front of that model against the
    table's latency over the whole space, and takes the front's point at the latency limit or at a latency drawn
    uniformly: where the model is unsure draws differ, so it explores; where it is sure they agree.

    Args:
        problem: positions, costs and limits; latency is taken as additive, as the cost model has it.
        seed: of the posterior draws.
    """

    def __init__(self, problem: Problem, seed: int) -> None:
        self._problem = problem
        self._rng = np.random.default_rng(seed)
        self._random = RandomSampler(seed=seed)
        self._features = Features.of(problem)
        self._fitted: tuple[int, Posterior] | None = None

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return dict(self._problem.distributions)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        weights = self._posterior(study).draw(self._rng)
        front = exact_front(self._problem, self._features, weights)
        lowest, highest = front.latency_ms.min(), front.latency_ms.max()
        limit = highest if self._rng.random() < AT_THE_LIMIT else self._rng.uniform(lowest, highest)
        within = np.flatnonzero(front.latency_ms <= limit)
        return self._problem.params(front.choices[within[np.argmin(front.quality[within])]])

    def _posterior(self, study: optuna.Study) -> Posterior:
        trials = [
            t
            for t in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            if len(t.params) == len(self._problem.positions)
        ]
        if self._fitted is None or self._fitted[0] != len(trials):
            choices = np.array([self._problem.indices(t.params) for t in trials], dtype=np.int64)
            choices = choices.reshape(len(trials), len(self._problem.positions))
            losses = np.array([t.values[0] for t in trials], dtype=np.float64)
            self._fitted = (len(trials), Posterior.fit(self._features(choices), losses))
        return self._fitted[1]

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        return None


@dataclass(frozen=True)
class Front:
    """Best choices of a linear quality model, one for each reachable latency bin.

    Attributes:
        choices: (K, P). latency_ms: (K,). quality: (K,) model units, lower is better.
    """

    choices: Indices
    latency_ms: Floats
    quality: Floats


def exact_front(problem: Problem, features: Features, weights: Floats, grid: int = GRID) -> Front:
    """The lowest modelled loss for each latency bin under the budget, by dynamic programming along the positions.

    State: (latency bin, does the previous position hold layers); exact up to the rounding of latencies to
    ``grid`` bins between the bare backbone and the latency limit. Options that break the memory limit on their own
    are left out; limits that depend on several positions together are the caller's to check.
    """
    model, budget = problem.costs, problem.budget
    base, room = model.backbone_latency_ms, np.inf if budget.memory_mb is None else budget.memory_mb
    allowed = [
        np.isfinite(option.latency_ms)
        & ~(
            model.backbone_weights_mb + option.weights_mb + np.maximum(model.backbone_activation_mb, option.point_mb)
            > room
        )
        for option in model.option_costs
    ]
    extra = [
        np.where(fits, option.latency_ms, np.inf) for fits, option in zip(allowed, model.option_costs, strict=True)
    ]
    dearest = base + sum(float(values[np.isfinite(values)].max()) for values in extra)
    limit = min(budget.bounds.get("latency_ms", dearest), dearest)
    step = max((limit - base) / grid, 1e-9)
    bins = [
        np.where(np.isfinite(v), np.round(np.where(np.isfinite(v), v, 0) / step), grid + 1).astype(int) for v in extra
    ]

    best = np.full((grid + 1, 2), np.inf)
    best[0, 0] = 0.0
    back: list[NDArray[np.int64]] = []
    for p, unary in enumerate(features.unary):
        own = unary @ weights
        pair = float(features.pair[p - 1] @ weights) if p else 0.0
        new = np.full((grid + 1, 2), np.inf)
        taken = np.zeros((grid + 1, 2, 2), dtype=np.int64)  # (option, previous flag)
        for option, shift in enumerate(bins[p]):
            if shift > grid:
                continue
            held = int(option > 0)
            for previous in (0, 1):
                reach = best[: grid + 1 - shift, previous] + own[option] + (pair if held and previous else 0.0)
                target = new[shift:, held]
                better = reach < target
                target[better] = reach[better]
                taken[shift:, held][better] = (option, previous)
        best = new
        back.append(taken)

    choices, quality = [], []
    for held in (0, 1):
        for end in np.flatnonzero(np.isfinite(best[:, held])):
            b, flag = int(end), held
            choice = np.zeros(len(problem.positions), dtype=np.int64)
            for p in range(len(problem.positions) - 1, -1, -1):
                choice[p], previous = back[p][b, flag]
                b, flag = b - int(bins[p][choice[p]]), int(previous)
            choices.append(choice)
            quality.append(float(best[end, held]))
    found = np.array(choices)
    return Front(found, problem.cost(found).latency_ms, np.array(quality))
