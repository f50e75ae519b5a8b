"""How costs are distributed over a whole space, and which share of it meets a budget: counted, not sampled.

Dynamic programming over positions, which are dealt to two halves; joining the halves counts every arrangement of the
space (Horowitz and Sahni 1974). Where a half has few distinct sums they are kept as they are and the count is exact.
Otherwise costs are rounded to an integer grid, once up and once down: the true count lies between the two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latency_tables.budget import Budget
from latency_tables.cost import CostModel
from latency_tables.errors import TableError
from latency_tables.optimum import SLACK

Floats = NDArray[np.float64]

CELLS = {1: 1_000_000, 2: 16_000_000, 3: 16_000_000}  # of the grid, by how many sums are limited
KEPT_MB = 400.0  # of histograms kept between two questions
DISTINCT = 400_000  # sums that a half may have and stay exact
BLOCK = 256  # sums of one half between two stored prefix counts
PREFIX = 16_000_000  # stored prefix counts at most
FLOAT = 1e-12  # relative rounding of counts over 2**53
COLUMNS = ("latency_ms", "peak_mb", "parameters")
PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)


@dataclass(frozen=True)
class Share:
    """Which part of a space meets a budget: between ``lower`` and ``upper``, as shares of ``size`` arrangements.

    Arrangements with a layer that cannot be run there are part of the size and never meet a budget.
    """

    lower: float
    upper: float
    size: int

    @property
    def exact(self) -> bool:
        """Whether the bounds agree to one arrangement."""
        return round(self.lower * self.size) == round(self.upper * self.size)

    @property
    def sentence(self) -> str:
        """One line for people."""
        if self.exact:
            count = f"{round(self.lower * self.size):,}" if self.size < 2**53 else "about " + f"{self.lower:.4%}"
            return f"{count} of {self.size:,} arrangements ({self.lower:.4%})"
        return f"between {self.lower:.4%} and {self.upper:.4%} of {self.size:,} arrangements"


def feasible_share(model: CostModel, budget: Budget, cells: int | None = None) -> Share:
    """The share of all arrangements that meets a budget, with bounds.

    Args:
        cells: of the grid, where one is needed; more is slower and narrower.

    Raises:
        TableError: if the budget limits memory and the table does not know it.
    """
    if budget.memory_mb is not None and model.unknown_memory:
        raise TableError(
            f"{model.header.device}/{model.header.runtime}: memory is unknown for {len(model.unknown_memory)} "
            f"workloads ({', '.join(model.unknown_memory[:3])}); measure it, or leave the memory limit out"
        )
    low, high = _at_most(model, budget, budget.parameters_max, cells)
    if budget.parameters_min is not None:
        below = math.ceil(budget.parameters_min * (1 - SLACK)) - 1
        under_low, under_high = _at_most(model, budget, below, cells)
        low, high = low - under_high, high - under_low
    size = model.size
    slack = FLOAT * size if size >= 2**53 else 0.0
    return Share(max(0.0, low - slack) / size, min(float(size), high + slack) / size, size)


@dataclass(frozen=True)
class Distribution:
    """The cumulative distribution of one cost over a space, at rising thresholds.

    Attributes:
        column: ``latency_ms``, ``peak_mb`` or ``parameters``.
        thresholds: shape (n,), from the least to the most that any runnable arrangement costs.
        lower, upper: bounds of the share that costs at most the threshold, shape (n,), among those that can be run.
    """

    column: str
    thresholds: Floats
    lower: Floats
    upper: Floats

    def percentile(self, percent: float) -> tuple[float, float]:
        """Bounds of the cost that ``percent`` of the arrangements stay at or under, to one step of the thresholds."""
        share = percent / 100 - 1e-12
        first = [int(np.searchsorted(values, share)) for values in (self.upper, self.lower)]
        last = len(self.thresholds) - 1
        return float(self.thresholds[max(0, first[0] - 1)]), float(self.thresholds[min(first[1], last)])


def distribution(model: CostModel, column: str, steps: int = 101, cells: int = 200_000) -> Distribution:
    """The exact distribution of latency, peak memory or parameters over the whole space.

    Raises:
        TableError: on another column, if the table does not know the memory, or nothing can be run.
    """
    from latency_tables.optimum import optimum

    if column not in COLUMNS:
        raise TableError(f"no distribution of {column!r}; ask for one of {', '.join(COLUMNS)}")
    ends = [optimum(model, column, sense=sense) for sense in ("min", "max")]
    if ends[0] is None or ends[1] is None:
        raise TableError(f"{model.plan.space} on {model.header.device}: no arrangement can be run; measure again")
    least, most = (float(getattr(model.cost(end[None]), column)[0]) for end in ends if end is not None)
    thresholds = np.linspace(least, most, steps) if most > least else np.array([least])
    counts: list[tuple[float, ...]]
    if column == "peak_mb":
        counts = [_within_peak(model, [], value, cells) for value in thresholds]
    else:
        counter = _Counter(model, [column], cells)
        start = model.backbone_latency_ms if column == "latency_ms" else float(model.plan.backbone_parameters)
        counts = [tuple(counter.at_most(np.array([value * (1 + SLACK) - start]))) for value in thresholds]
    total = counts[-1][1]
    low, high = (np.array([count[side] for count in counts]) / total for side in (0, 1))
    return Distribution(column, thresholds, np.minimum(low, 1.0), np.minimum(high, 1.0))


# Counting -----------------------------------------------------------------------------------------------------------


def _at_most(model: CostModel, budget: Budget, parameters: float | None, cells: int | None) -> tuple[float, float]:
    """Bounds of how many arrangements meet the limits on latency and memory with at most so many parameters."""
    sums: list[tuple[str, float]] = []
    if budget.latency_ms is not None:
        sums.append(("latency_ms", budget.bounds["latency_ms"] * (1 + SLACK) - model.backbone_latency_ms))
    if parameters is not None:
        sums.append(("parameters", parameters * (1 + SLACK) - model.plan.backbone_parameters))
    if budget.memory_mb is not None:
        return _within_peak(model, sums, budget.memory_mb, cells)
    return _count(model, sums, cells)


def _within_peak(
    model: CostModel, sums: list[tuple[str, float]], limit: float, cells: int | None
) -> tuple[float, float]:
    """The same under a limit on the peak: weights plus the largest activation peak, whatever that one is.

    For each value that the largest can take: those whose points stay at or under it less those that stay under the
    value before, both within the weights that this value leaves room for. Rounding is the same in both, so the
    difference is the rounded count of those in between.
    """
    points = np.unique(np.concatenate([costs.point_mb[np.isfinite(costs.latency_ms)] for costs in model.option_costs]))
    base = model.backbone_activation_mb
    maxima = [base, *(float(value) for value in points if value > base)]
    counter = _Counter(model, [*(name for name, _ in sums), "weights_mb"], cells)
    total = np.zeros(2)
    before: float | None = None
    for maximum in maxima:
        room = limit * (1 + SLACK) - model.backbone_weights_mb - maximum
        if room < 0:
            break
        bounds = np.array([*(bound for _, bound in sums), room])
        total += counter.at_most(bounds, maximum)
        if before is not None:
            total -= counter.at_most(bounds, before)
        before = maximum
    return float(total[0]), float(total[1])


def _count(model: CostModel, limits: Sequence[tuple[str, float]], cells: int | None) -> tuple[float, float]:
    counter = _Counter(model, [name for name, _ in limits], cells)
    low, high = counter.at_most(np.array([bound for _, bound in limits]))
    return float(low), float(high)


class _Counter:
    """Counts arrangements whose sums over positions stay within bounds.

    Args:
        columns: of ``OptionCosts``, K of them; of columns whose sums are proportional (weights and parameters) one is
            kept, with the tighter bound.
    """

    def __init__(self, model: CostModel, columns: Sequence[str], cells: int | None) -> None:
        usable = [np.isfinite(costs.latency_ms) for costs in model.option_costs]
        self._points = [costs.point_mb[use] for costs, use in zip(model.option_costs, usable, strict=True)]
        values = [
            np.stack([getattr(costs, name)[use] for name in columns], axis=1) if columns else np.zeros((use.sum(), 0))
            for costs, use in zip(model.option_costs, usable, strict=True)
        ]
        self._kept, self._factor = _independent(np.concatenate(values))
        self._runnable = all(len(item) for item in values)
        # Counted from each position's least, since a correction may make a cost negative.
        least = [item.min(axis=0) if len(item) else np.zeros(len(columns)) for item in values]
        self._least = np.sum(least, axis=0)[self._kept]
        self._values = [(item - low)[:, self._kept] for item, low in zip(values, least, strict=True)]
        if not self._runnable or not self._kept:
            return
        sizes = [len(_merge(item, np.ones(len(item)))[1]) for item in self._values]
        halves: tuple[list[int], list[int]] = ([], [])
        for p in np.argsort(sizes, kind="stable")[::-1]:  # dealt by size, so that both halves stay small
            smaller = min(halves, key=lambda half: math.prod(sizes[i] for i in half))
            smaller.append(int(p))
        self._halves = halves
        self._exact = max(math.prod(sizes[i] for i in half) for half in halves) <= DISTINCT
        span = sum(item.max(axis=0) for item in self._values)
        side = int((cells or CELLS[len(self._kept)]) ** (1.0 / len(self._kept)))
        self._step = np.maximum(span, 1e-9) / max(2, side)
        self._known: dict[tuple[object, ...], Any] = {}

    def at_most(self, bounds: Floats, maximum: float = np.inf) -> Floats:
        """(lower, upper): how many arrangements keep every sum within ``bounds`` and every point within ``maximum``."""
        allowed = [points <= maximum for points in self._points]
        if not self._runnable or not all(item.any() for item in allowed):
            return np.zeros(2)
        counts = [float(item.sum()) for item in allowed]
        if not self._kept:
            return np.full(2, math.prod(counts) if np.all(bounds >= 0) else 0.0)
        held = np.full(len(self._kept), np.inf)
        for k, (place, factor) in enumerate(self._factor):
            held[place] = min(held[place], bounds[k] * factor)
        held -= self._least
        chosen = [item[use] for item, use in zip(self._values, allowed, strict=True)]
        least, most = (sum(getattr(item, side)(axis=0) for item in chosen) for side in ("min", "max"))
        if np.any(least > held + _slack(held)):
            return np.zeros(2)
        if np.all(most <= held):
            return np.full(2, math.prod(counts))
        if self._exact:
            return np.full(2, self._exactly(allowed).count(held))
        return np.array([self._on_grid(allowed, held, up) for up in (True, False)])

    def _exactly(self, allowed: list[NDArray[np.bool_]]) -> _Join:
        key = tuple(int(item.sum()) for item in allowed)  # a larger maximum only adds options
        if key not in self._known:
            sides = []
            for half in self._halves:
                values, counts = np.zeros((1, len(self._kept))), np.ones(1)
                for p in half:
                    added, weight = _merge(self._values[p][allowed[p]], np.ones(int(allowed[p].sum())))
                    grown = values[:, None] + added[None]
                    values, counts = _merge(grown.reshape(-1, grown.shape[2]), (counts[:, None] * weight[None]).ravel())
                sides.append((values, counts))
            self._known = {key: _Join(*sides[0], *sides[1])} if len(self._known) > 8 else self._known
            self._known.setdefault(key, _Join(*sides[0], *sides[1]))
        join = self._known[key]
        assert isinstance(join, _Join)
        return join

    def _on_grid(self, allowed: list[NDArray[np.bool_]], bounds: Floats, up: bool) -> float:
        """Sums as whole numbers of steps: histograms of both halves, the second one cumulated, multiplied."""
        limit = np.floor(np.minimum((bounds + _slack(bounds)) / self._step, 2.0**40)).astype(np.int64)
        left, right = (self._histogram(half, allowed, up) for half in self._halves)
        for axis in range(right.ndim):
            right = np.cumsum(right, axis=axis)
        # right[limit - i] for every cell i of the left; past its end it no longer grows, before its start it is zero.
        for axis, size in enumerate(left.shape):
            index = limit[axis] - np.arange(size)
            fits = index >= 0
            left = np.compress(fits, left, axis=axis)
            right = np.take(right, np.minimum(index[fits], right.shape[axis] - 1), axis=axis)
        return float((left * right).sum())

    def _histogram(self, half: list[int], allowed: list[NDArray[np.bool_]], up: bool) -> Floats:
        key = (up, *half, *(int(allowed[p].sum()) for p in half))
        if key not in self._known:
            dense = np.ones((1,) * len(self._kept))
            for p in half:
                scaled = self._values[p][allowed[p]] / self._step
                cells = (np.ceil(scaled - 1e-9) if up else np.floor(scaled + 1e-9)).astype(np.int64)
                dense = _shifted(dense, cells)
            if sum(item.nbytes for item in self._known.values()) > KEPT_MB * 1e6:
                self._known.clear()
            self._known[key] = dense
        histogram: Floats = self._known[key]
        return histogram


def _independent(values: Floats) -> tuple[list[int], list[tuple[int, float]]]:
    """Columns to keep; and of each column which kept one stands for it, and what its bound is multiplied by."""
    kept: list[int] = []
    factors: list[tuple[int, float]] = []
    for k in range(values.shape[1]):
        for place, other in enumerate(kept):
            used = values[:, other] > 0
            ratio = values[used, k] / values[used, other]
            if len(ratio) and np.ptp(ratio) <= 1e-9 * abs(ratio[0]) and not np.any(values[~used, k]):
                factors.append((place, 1.0 / float(ratio[0])))
                break
        else:
            factors.append((len(kept), 1.0))
            kept.append(k)
    return kept, factors


def _merge(values: Floats, counts: Floats) -> tuple[Floats, Floats]:
    """Equal rows once, (n, K), with their counts, (n,); rows that differ by rounding alone are equal."""
    rounded = np.round(values, 9)
    order = np.lexsort(rounded.T)
    rounded, counts = rounded[order], counts[order]
    first = np.concatenate([[True], np.any(rounded[1:] != rounded[:-1], axis=1)])
    return rounded[first], np.add.reduceat(counts, np.flatnonzero(first))


def _shifted(dense: Floats, cells: NDArray[np.int64]) -> Floats:
    """One more position: the histogram once for every option, moved by what the option costs."""
    grown = np.zeros(tuple(np.array(dense.shape) + cells.max(axis=0)))
    moves, counts = np.unique(cells, axis=0, return_counts=True)
    for move, count in zip(moves, counts, strict=True):
        window = tuple(slice(start, start + size) for start, size in zip(move, dense.shape, strict=True))
        grown[window] += count * dense
    return grown


def _slack(bounds: Floats) -> Floats:
    return 1e-9 * (1.0 + np.where(np.isfinite(bounds), np.abs(bounds), 0.0))


class _Join:
    """Pairs of sums, one of each half, that stay within bounds together: values (n, K), counts (n,) of each half."""

    def __init__(self, left: Floats, left_counts: Floats, right: Floats, right_counts: Floats) -> None:
        self.left, self.left_counts = left, left_counts
        order = np.argsort(right[:, 0], kind="stable")
        self.first, self.rest = right[order, 0], right[order, 1:]
        self.counts = right_counts[order]

    @cached_property
    def _running(self) -> Floats:
        return np.concatenate([[0.0], np.cumsum(self.counts)])

    @cached_property
    def _ranks(self) -> tuple[Floats, NDArray[np.intp], Floats, int]:
        """The second column as ranks among its values, and prefix counts over them after every so many sums."""
        values, rank = np.unique(self.rest[:, 0], return_inverse=True)
        block = max(BLOCK, math.ceil(len(rank) * (len(values) + 1) / PREFIX))
        blocks = len(rank) // block + 1
        prefix = np.zeros((blocks, len(values) + 1))
        for b in range(1, blocks):
            part = slice((b - 1) * block, b * block)
            prefix[b, 1:] = prefix[b - 1, 1:] + np.bincount(rank[part], self.counts[part], len(values))
        return values, rank, np.cumsum(prefix, axis=1), block

    def count(self, bounds: Floats) -> float:
        """How many pairs, weighted by their counts."""
        slack = _slack(bounds)
        until = np.searchsorted(self.first, bounds[0] + slack[0] - self.left[:, 0], side="right")
        if not self.rest.shape[1]:
            return float(self.left_counts @ self._running[until])
        values, rank, prefix, size = self._ranks
        last = np.searchsorted(values, bounds[1] + slack[1] - self.left[:, 1], side="right")
        block = until // size
        further = [bounds[k] + slack[k] - self.left[:, k] for k in range(2, self.left.shape[1])]
        total = 0.0 if further else float(self.left_counts @ prefix[block, last])
        # What the prefix leaves out, sum by sum; with a third column all of it.
        start = np.zeros_like(block) if further else block * size
        for offset in range(int((until - start).max(initial=0))):
            index = start + offset
            some = np.flatnonzero(index < until)
            some = some[rank[index[some]] < last[some]]
            for k, room in enumerate(further):
                some = some[self.rest[index[some], k + 1] <= room[some]]
            total += float(self.left_counts[some] @ self.counts[index[some]])
        return total
