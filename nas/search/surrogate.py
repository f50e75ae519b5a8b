"""Search by a model of quality: fitted to the evaluations so far, optimised exactly with the table's costs."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

from latency_tables.budget import Budget
from latency_tables.cost import CostModel
from nas.search.ledger import Choice, Ledger, ledger_of
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


@dataclass
class Moments:
    """All that a fit needs of the observations: it stays as small, and as quick, however many there are.

    Attributes:
        count: N. x: (F,) sum of features. xx: (F, F) of their products. y, yy: sums of losses and their squares.
        xy: (F,) of features times losses.
    """

    count: int
    x: Floats
    xx: Floats
    y: float
    yy: float
    xy: Floats

    @classmethod
    def of(cls, x: Floats, y: Floats) -> Moments:
        """Args: x (N, F) features, y (N,) losses; N may be 0."""
        return cls(len(y), x.sum(0), x.T @ x, float(y.sum()), float(y @ y), x.T @ y)

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.count + other.count,
            self.x + other.x,
            self.xx + other.xx,
            self.y + other.y,
            self.yy + other.yy,
            self.xy + other.xy,
        )


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
        return cls.of(Moments.of(x, y - y.mean()) if len(y) else Moments.of(x, y), float(y.mean()) if len(y) else 0.0)

    @classmethod
    def of(cls, moments: Moments, base: float = 0.0) -> Posterior:
        """The fit to observations known by their moments; ``base`` was taken off every loss before."""
        count, size = moments.count, len(moments.x)
        offset = moments.y / count if count else 0.0
        variance = max(moments.yy / count - offset**2, 0.0) if count > 1 else 0.0
        unit = math.sqrt(variance) if variance * count > 1e-12 * moments.yy else 1.0
        xz = (moments.xy - offset * moments.x) / unit
        zz = (moments.yy - count * offset**2) / unit**2
        best = (-np.inf, 0.1, 0.1)
        if count:
            # Along the eigenvectors of x'x the observations are independent; what lies outside of them is noise.
            values, vectors = np.linalg.eigh(moments.xx)
            kept = values > 1e-9 * max(float(values[-1]), 1e-300)
            values, projected = values[kept], (vectors[:, kept].T @ xz) ** 2 / values[kept]
            outside, rest = count - len(values), max(zz - float(projected.sum()), 0.0)
            for scale in np.geomspace(1e-3, 1, 7):
                for noise in np.geomspace(1e-3, 0.5, 7):
                    spread = scale * values + noise
                    explained = np.log(spread).sum() + (projected / spread).sum()
                    evidence = -0.5 * (explained + outside * math.log(noise) + rest / noise)
                    best = max(best, (float(evidence), float(scale), float(noise)))
        _, scale, noise = best
        precision = np.eye(size) / scale + moments.xx / noise
        factor = np.linalg.cholesky(precision)
        mean: Floats = np.linalg.solve(precision, xz / noise).astype(np.float64)
        return cls(base + offset, unit, mean, np.linalg.inv(factor).T.astype(np.float64))

    def draw(self, rng: np.random.Generator) -> Floats:
        return self.mean + self.root @ rng.standard_normal(len(self.mean))

    def predict(self, x: Floats) -> Floats:
        return self.offset + self.unit * (x @ self.mean)


_FEATURES: weakref.WeakKeyDictionary[CostModel, Features] = weakref.WeakKeyDictionary()


def _features_of(problem: Problem) -> Features:
    """A problem's features; made once, while samplers are made for every trial."""
    if problem.costs not in _FEATURES:
        _FEATURES[problem.costs] = Features.of(problem)
    return _FEATURES[problem.costs]


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
        self._features = _features_of(problem)
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
        """Fitted to what is finished; observations of before are not looked at again."""
        ledger = ledger_of(study, self._problem)
        observed = len(ledger.observed) + len(ledger.recent)
        if self._fitted is None or self._fitted[0] != observed:
            self._fitted = (observed, Posterior.of(self._moments(ledger), self._base(ledger)))
        return self._fitted[1]

    def _moments(self, ledger: Ledger) -> Moments:
        key, base = "moments of the surrogate", self._base(ledger)
        count, known = ledger.memo.get(key, (0, None))
        new = self._moments_of(ledger.observed[count:], base)
        known = new if known is None else known + new
        ledger.memo[key] = (len(ledger.observed), known)
        return known + self._moments_of(ledger.recent, base) if ledger.recent else known

    def _moments_of(self, rows: Sequence[tuple[Choice, float]], base: float) -> Moments:
        choices = np.array([choice for choice, _ in rows], dtype=np.int64).reshape(-1, len(self._problem.positions))
        losses = np.array([loss for _, loss in rows], dtype=np.float64)
        return Moments.of(self._features(choices), losses - base)

    @staticmethod
    def _base(ledger: Ledger) -> float:
        """A loss of this study, taken off all: sums of squares keep their digits."""
        return ledger.observed[0][1] if ledger.observed else 0.0

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
    ``grid`` bins between the cheapest arrangement and the latency limit. The cheapest need not be the bare backbone:
    a fitted correction may make layers cheaper than none. Options that break the memory limit on their own are left
    out; limits that depend on several positions together are the caller's to check. Empty where nothing is left.
    """
    cells = _grid_of(problem, grid)
    span = np.arange(grid + 1)
    nowhere = np.full(grid + 1, np.inf)
    nothing, held = nowhere.copy(), nowhere.copy()  # best so far, by what the last position is
    nothing[0] = 0.0
    back: list[tuple[NDArray[np.bool_], NDArray[np.bool_], Indices]] = []
    for p, (unary, here) in enumerate(zip(features.unary, cells, strict=True)):
        own = unary @ weights
        joined = held + (float(features.pair[p - 1] @ weights) if p else 0.0)
        after, apart = joined < nothing, held < nothing  # is the better way here through a position with layers?
        padded = np.concatenate([nowhere, np.where(after, joined, nothing)])
        idle = np.concatenate([nowhere, np.where(apart, held, nothing)])
        nothing = idle[here.idle] + own[0] if here.idle is not None else nowhere.copy()
        held, first = nowhere.copy(), span * 0
        if len(here.layers):
            # Of the options in one bin the best is enough: bins are fewer than options where positions are rich.
            best = here.order[np.lexsort((own[here.order], here.bin_of))[here.starts]]
            reach = padded[here.sources] + own[best, None]
            which = reach.argmin(0)
            held, first = reach[which, span], best[which]
        back.append((apart, after, first))

    ends = [np.flatnonzero(np.isfinite(best)) for best in (nothing, held)]
    at, flag = np.concatenate(ends), np.repeat([0, 1], [len(found) for found in ends])
    quality = np.concatenate([nothing[ends[0]], held[ends[1]]])
    choices = np.zeros((len(at), len(problem.positions)), dtype=np.int64)
    for p in range(len(problem.positions) - 1, -1, -1):
        apart, after, option = back[p]
        choices[:, p] = np.where(flag == 1, option[at], 0)
        at = at - cells[p].bins[choices[:, p]]
        flag = np.where(flag == 1, after[at], apart[at]).astype(np.int64)
    return Front(choices, problem.cost(choices).latency_ms, quality)


@dataclass(frozen=True)
class _Cells:
    """A position's options on the grid of latencies, counted from the cheapest that is allowed there.

    Attributes:
        bins: of each option; past the grid where it may not be chosen.
        idle: where a position without layers is reached from; ``None`` where it may not be left without.
        layers: the options with layers that fit. order, bin_of: the same by rising bin, and their bins.
        starts: the first of each bin in that order. sources: (bins, grid + 1), where each bin is reached from.

    Sources index costs behind ``grid + 1`` infinities.
    """

    bins: Indices
    idle: Indices | None
    layers: Indices
    order: Indices
    bin_of: Indices
    starts: Indices
    sources: Indices

    @classmethod
    def of(cls, bins: Indices, grid: int) -> _Cells:
        span = np.arange(grid + 1)
        layers = np.flatnonzero(bins[1:] <= grid) + 1
        order = layers[np.argsort(bins[layers], kind="stable")]
        found, starts = np.unique(bins[order], return_index=True)
        idle = span + grid + 1 - bins[0] if bins[0] <= grid else None
        return cls(bins, idle, layers, order, bins[order], starts, span + grid + 1 - found[:, None])


_GRIDS: weakref.WeakKeyDictionary[CostModel, dict[tuple[Budget, int], list[_Cells]]] = weakref.WeakKeyDictionary()


def _grid_of(problem: Problem, grid: int) -> list[_Cells]:
    """Each position's options on the grid. Made once for a budget."""
    model, budget = problem.costs, problem.budget
    known = _GRIDS.setdefault(model, {})
    if (budget, grid) in known:
        return known[budget, grid]
    room = np.inf if budget.memory_mb is None else budget.memory_mb
    extra = []
    for option in model.option_costs:
        weights = model.backbone_weights_mb + option.weights_mb
        over = weights + np.maximum(model.backbone_activation_mb, option.point_mb) > room
        extra.append(np.where(np.isfinite(option.latency_ms) & ~over, option.latency_ms, np.inf))
    ends = [(float(v.min()), float(v[np.isfinite(v)].max(initial=v.min()))) for v in extra]
    cheapest, dearest = (model.backbone_latency_ms + sum(end[side] for end in ends) for side in (0, 1))
    limit = min(budget.bounds.get("latency_ms", dearest), dearest)
    step = max((limit - cheapest) / grid, 1e-9) if np.isfinite(cheapest) else 1.0
    known[budget, grid] = []
    for values, (low, _) in zip(extra, ends, strict=True):
        fits = np.isfinite(values)
        bins = np.full(len(values), grid + 1, dtype=np.int64)
        bins[fits] = np.minimum(np.round((values[fits] - low) / step), grid + 1)
        known[budget, grid].append(_Cells.of(bins, grid))
    return known[budget, grid]
