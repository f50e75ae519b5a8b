"""Search by a model of quality: fitted to the evaluations so far, optimised exactly with the table's costs."""

from __future__ import annotations

import math
import weakref
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

from latency_tables.budget import Budget
from latency_tables.cost import CostModel
from nas.search.ledger import Ledger, ledger_of
from nas.search.problem import Indices, Problem
from nas.search.records import Choice
from nas.search.whole import WholeSampler

Floats = NDArray[np.float64]

GRID = 256  # latency bins of the dynamic programme
PRIOR = 0.1  # variance of a weight while nothing is known
NEAR = 64  # neighbours whose costs are looked up at a time
DRAWS = 64  # models over which what a proposal would add is averaged


@dataclass(frozen=True)
class Features:
    """What the quality model sees of a choice, as a sum over positions and over neighbouring positions.

    Unary, for an option at a position: how often each variant stands there, how often each block does anywhere, and
    the layers beyond the first (depth pays less and less). Pairwise: whether two consecutive positions both hold
    layers. Everything is a sum along the chain of positions, so the best choice is found exactly.

    Attributes:
        unary: for each position, (options, F).
        pair: for each pair of consecutive positions, (F,): added when both hold layers.
        holds: for each position, (options,): whether the option has layers.
    """

    unary: tuple[Floats, ...]
    pair: tuple[Floats, ...]
    holds: tuple[NDArray[np.bool_], ...]

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
        return cls(
            tuple(unary), tuple(np.eye(len(columns))[c] for c in pairs), tuple(map(_holds, problem.costs.options))
        )

    def __call__(self, choices: Indices) -> Floats:
        """(N, P) choices -> (N, F)."""
        total = sum(u[choices[:, p]] for p, u in enumerate(self.unary))
        for p, weights in enumerate(self.pair):
            both = self.holds[p][choices[:, p]] & self.holds[p + 1][choices[:, p + 1]]
            total = total + both[:, None] * weights
        return np.asarray(total)

    def near(self, choice: Indices, around: Indices, weights: Floats) -> Floats:
        """How a model's loss changes from a choice (P,) to (N, P) others that differ from it at one position."""
        own = [unary @ weights for unary in self.unary]
        ties = np.array([pair @ weights for pair in self.pair])
        places = (around != choice).argmax(1)
        after = around[np.arange(len(around)), places]
        changes = np.empty(len(around))
        for p, values in enumerate(own):
            here = places == p
            tie = 0.0  # what holding layers here adds beside neighbours that do
            if p > 0 and self.holds[p - 1][choice[p - 1]]:
                tie += ties[p - 1]
            if p + 1 < len(own) and self.holds[p + 1][choice[p + 1]]:
                tie += ties[p]
            holds = self.holds[p][after[here]].astype(float) - float(self.holds[p][choice[p]])
            changes[here] = values[after[here]] - values[choice[p]] + tie * holds
        return changes


def _holds(options: Sequence[tuple[str, ...]]) -> NDArray[np.bool_]:
    """Which of a position's options have layers; where it must hold some, all have."""
    return np.array([bool(option) for option in options])


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
        if not count:
            return cls(base + offset, unit, np.zeros(size), math.sqrt(PRIOR) * np.eye(size))
        xz = (moments.xy - offset * moments.x) / unit
        zz = (moments.yy - count * offset**2) / unit**2
        # Along the eigenvectors of x'x the observations are independent; what lies outside of them is noise.
        values, vectors = np.linalg.eigh(moments.xx)
        along = vectors.T @ xz
        kept = values > 1e-9 * max(float(values[-1]), 1e-300)
        squares, found = values[kept], along[kept] ** 2 / values[kept]
        outside, rest = count - len(squares), max(zz - float(found.sum()), 0.0)
        scale, noise = (grid[..., None] for grid in np.meshgrid(np.geomspace(1e-3, 1, 7), np.geomspace(1e-3, 0.5, 7)))
        spread = scale * squares + noise
        evidence = np.log(spread).sum(-1) + (found / spread).sum(-1)
        evidence += outside * np.log(noise[..., 0]) + rest / noise[..., 0]
        best = np.unravel_index(np.argmin(evidence), evidence.shape)
        noise_of, precision = noise[best].item(), 1 / scale[best].item() + np.maximum(values, 0.0) / noise[best].item()
        mean: Floats = vectors @ (along / noise_of / precision)
        return cls(base + offset, unit, mean, vectors / np.sqrt(precision))

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


@dataclass(frozen=True)
class _Steps:
    """A front of evaluations: latencies rise, losses fall; and the worst loss within the budget."""

    latency_ms: Floats
    loss: Floats
    worst: float


_NOTHING = _Steps(np.empty(0), np.empty(0), -math.inf)


class SurrogateSampler(WholeSampler):
    """Search by an additive-plus-neighbours model of quality, maximised by dynamic programming.

    Each proposal draws one quality model from the posterior and computes the exact front of that model against the
    table's latency over the whole space: where the model is unsure draws differ, so it explores; where it is sure they
    agree. Of the front's points that nobody has evaluated it takes the one that is expected to add most area under the
    front found so far, over further draws. Where all of a drawn front is known it takes the best unseen choice that
    differs from the front's best at one position.

    Source: Thompson sampling for the candidates (TSEMO, Bradford et al., J. Global Optimization 2018), expected
    hypervolume improvement among them (Emmerich et al., 2006).

    Args:
        problem: positions, costs and limits; latency is taken as additive, as the cost model has it.
        seed: of the posterior draws.
    """

    def __init__(self, problem: Problem, seed: int) -> None:
        super().__init__(problem, seed)
        self._features = _features_of(problem)
        self._fitted: tuple[int, Posterior] | None = None

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        ledger = ledger_of(study, self._problem)
        posterior = self._posterior(ledger)
        weights = posterior.draw(self._rng)
        front = exact_front(self._problem, self._features, weights)
        if not len(front.choices):  # no option of some position keeps to the memory limit by itself
            return self._random_params(study, trial)
        fits = self._problem.feasible(front.choices)
        fits &= np.array([tuple(choice) not in ledger.taken for choice in front.choices.tolist()])
        if not fits.any():
            return self._problem.params(self._beside(front, weights, ledger.taken))
        choices, latency = front.choices[fits], front.latency_ms[fits]
        models = posterior.mean[:, None] + posterior.root @ self._rng.standard_normal((len(weights), DRAWS))
        gains = self._gains(latency, self._features(choices) @ models, posterior, ledger)
        return self._problem.params(choices[np.argmax(gains)])

    def _gains(self, costs: Floats, quality: Floats, posterior: Posterior, ledger: Ledger) -> Floats:
        """How much area each of K choices is expected to add under the front of what was evaluated, shape (K,).

        Args:
            costs: (K,) latencies in ms. quality: (K, D) losses by D drawn models.
        """
        steps = self._steps(ledger)
        if not len(steps.latency_ms):
            return -quality.mean(1)
        latency, lowest = steps.latency_ms, (steps.loss - posterior.offset) / posterior.unit
        worst = (steps.worst - posterior.offset) / posterior.unit
        # The best known loss is a staircase: the worst before its first step, the last one up to the dearest choice.
        starts, stops = np.concatenate([[-np.inf], latency]), np.concatenate([latency, [max(latency[-1], costs.max())]])
        levels = np.concatenate([[worst], lowest])
        widths = np.maximum(stops - np.maximum(starts, costs[:, None]), 0.0)
        widths[:, -1] += 1e-6 * max(float(np.ptp(costs)), 1e-9)  # the dearest, too, is worth a lower loss
        gains = np.zeros(len(costs))
        for width, level in zip(widths.T, levels, strict=True):
            gains += width * np.maximum(level - quality, 0.0).mean(1)
        return gains

    def _steps(self, ledger: Ledger) -> _Steps:
        """The front of all that was evaluated within the budget; what is settled is looked at once."""
        key = "front of the surrogate"
        count, known = ledger.memo.get(key, (0, _NOTHING))
        known = self._with(known, ledger.observed[count:])
        ledger.memo[key] = (len(ledger.observed), known)
        return self._with(known, ledger.recent)

    def _with(self, steps: _Steps, rows: Sequence[tuple[Choice, float]]) -> _Steps:
        if not rows:
            return steps
        choices = np.array([choice for choice, _ in rows], dtype=np.int64)
        costs = self._problem.cost(choices)
        fits = self._problem.budget.feasible(costs)
        if not fits.any():
            return steps
        latency = np.concatenate([steps.latency_ms, costs.latency_ms[fits]])
        loss = np.concatenate([steps.loss, np.array([value for _, value in rows])[fits]])
        order = np.lexsort((loss, latency))
        lowest = np.minimum.accumulate(loss[order])
        kept = order[np.concatenate([[True], lowest[1:] < lowest[:-1]])]
        return _Steps(latency[kept], loss[kept], max(steps.worst, float(loss.max())))

    def _beside(self, front: Front, weights: Floats, taken: Container[Choice]) -> Indices:
        """The drawn model's best unseen choice that differs from a front's point at one position."""
        best = front.choices[np.argmin(front.quality)]
        around = self._problem.neighbours(best)
        order = np.argsort(self._features.near(best, around, weights), kind="stable")
        for start in range(0, len(around), NEAR):
            some = around[order[start : start + NEAR]]
            found = next((row for row in some[self._problem.feasible(some)] if tuple(row.tolist()) not in taken), None)
            if found is not None:
                return found
        return best

    def _random_params(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
        options = self._problem.categorical.items()
        return {name: self._random.sample_independent(study, trial, name, d) for name, d in options}

    def _posterior(self, ledger: Ledger) -> Posterior:
        """Fitted to what is finished; observations of before are not looked at again."""
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
            # Of the options in one bin the best is enough, and of the bins those that beat all cheaper ones.
            best = here.order[np.lexsort((own[here.order], here.bin_of))[here.starts]]
            lowest = np.minimum.accumulate(own[best])
            better = np.concatenate([[True], lowest[1:] < lowest[:-1]])
            best = best[better]
            reach = padded[here.sources[better]] + own[best, None]
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
    def of(cls, bins: Indices, holds: NDArray[np.bool_], grid: int) -> _Cells:
        span = np.arange(grid + 1)
        layers = np.flatnonzero((bins <= grid) & holds)
        order = layers[np.argsort(bins[layers], kind="stable")]
        found, starts = np.unique(bins[order], return_index=True)
        idle = span + grid + 1 - bins[0] if bins[0] <= grid and not holds[0] else None
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
    for values, (low, _), options in zip(extra, ends, model.options, strict=True):
        fits = np.isfinite(values)
        bins = np.full(len(values), grid + 1, dtype=np.int64)
        bins[fits] = np.minimum(np.round((values[fits] - low) / step), grid + 1)
        known[budget, grid].append(_Cells.of(bins, _holds(options), grid))
    return known[budget, grid]
