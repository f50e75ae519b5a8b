"""Counts every arrangement within limits, by joining the sums of two halves of the positions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from latency_tables.cost import CostModel

Floats = NDArray[np.float64]

DISTINCT = {0: 200_000, 1: 200_000, 2: 30_000, 3: 2_000}  # sums of a half that are joined quickly, by sums limited
MAXIMA = 2_000_000  # sums of a half times values that the largest activation peak may take
BLOCK = 256  # sums of one half between two stored prefix counts
PREFIX = 16_000_000  # stored prefix counts at most


def count_within(model: CostModel, limits: Sequence[tuple[str, float]], memory: float | None) -> float | None:
    """How many arrangements that can be run keep to all limits; ``None`` where counting them is not quick.

    Args:
        limits: additive columns of ``OptionCosts`` with the most that the chosen options' sum may be.
        memory: the most that weights and the largest activation peak may be together, the backbone's weights left out.
    """
    usable = [np.isfinite(costs.latency_ms) for costs in model.option_costs]
    if not all(use.any() for use in usable):
        return 0.0
    names = [name for name, _ in limits] + ([] if memory is None else ["weights_mb"])
    values = [
        np.stack([getattr(costs, name)[use] for name in names], axis=1) if names else np.zeros((use.sum(), 0))
        for costs, use in zip(model.option_costs, usable, strict=True)
    ]
    base = model.backbone_activation_mb if memory is not None else 0.0
    points = [
        np.maximum(costs.point_mb[use], base) if memory is not None else np.zeros(use.sum())
        for costs, use in zip(model.option_costs, usable, strict=True)
    ]
    # Counted from each position's least, since a correction may make a cost negative.
    least = [item.min(axis=0) for item in values]
    kept, factors = _independent(np.concatenate(values))
    start = np.sum(least, axis=0)
    options = [
        np.concatenate([(item - low)[:, kept], point[:, None]], axis=1)
        for item, low, point in zip(values, least, points, strict=True)
    ]
    halves = _halves(options, len(kept))
    if halves is None:
        return None
    maxima = np.unique(np.concatenate([half[0][:, -1] for half in halves]))
    if len(maxima) > 1 and max(len(counts) for _, counts in halves) * len(maxima) > MAXIMA / max(1, len(kept)):
        return None
    total = 0.0
    for maximum in maxima:
        asked = [bound for _, bound in limits] + ([] if memory is None else [memory - float(maximum)])
        bounds = _bounds(np.array(asked), kept, factors, start)
        if bounds is not None:
            total += _with_maximum(halves, float(maximum), bounds)
    return total


Half = tuple[Floats, Floats]  # sums and the largest point, shape (n, K + 1), and how many options have them, (n,)


def _bounds(asked: Floats, kept: list[int], factors: list[tuple[int, float]], start: Floats) -> Floats | None:
    """The bounds of the kept columns, counted from the least; ``None`` if a column that never varies is over its."""
    room = asked - start
    if np.any(room < -_slack(asked)):
        return None
    held = np.full(len(kept), np.inf)
    for k, (place, factor) in enumerate(factors):
        if place >= 0:
            held[place] = min(held[place], room[k] * factor)
    return held


def _with_maximum(halves: tuple[Half, Half], maximum: float, bounds: Floats) -> float:
    """Pairs within bounds whose largest point is this one: it is new on the left, or on the right alone."""
    (left, left_counts), (right, right_counts) = halves
    new, old = left[:, -1] == maximum, left[:, -1] < maximum
    fresh, known = right[:, -1] == maximum, right[:, -1] <= maximum
    total = 0.0
    for ours, theirs in ((new, known), (old, fresh)):
        if ours.any() and theirs.any():
            one, other = (left[ours, :-1], left_counts[ours]), (right[theirs, :-1], right_counts[theirs])
            if len(one[1]) > len(other[1]):  # the shorter one asks
                one, other = other, one
            total += Join(*one, *other).count(bounds)
    return total


def _halves(options: list[Floats], sums: int) -> tuple[Half, Half] | None:
    """Two halves of the positions, about equally many sums in each; ``None`` if there are too many to join quickly."""
    limit = DISTINCT[min(sums, 3)]
    merged = [merge(item, np.ones(len(item))) for item in options]
    halves: list[Half] = [(np.zeros((1, sums + 1)), np.ones(1)), (np.zeros((1, sums + 1)), np.ones(1))]
    for values, counts in sorted(merged, key=lambda item: -len(item[1])):
        smaller = int(np.argmin([len(half[1]) for half in halves]))
        old, weight = halves[smaller]
        if len(weight) * len(counts) > 2 * limit:
            return None
        grown = np.concatenate(
            [old[:, None, :-1] + values[None, :, :-1], np.maximum(old[:, None, -1:], values[None, :, -1:])], axis=2
        )
        halves[smaller] = merge(grown.reshape(-1, sums + 1), (weight[:, None] * counts[None]).ravel())
        if len(halves[smaller][1]) > limit:
            return None
    return halves[0], halves[1]


def _independent(values: Floats) -> tuple[list[int], list[tuple[int, float]]]:
    """Columns to keep; and of each column which kept one stands for it, and what its bound is multiplied by.

    Of columns whose sums are proportional (weights and parameters) one is kept. A column that never varies is not kept
    and has the place -1: its sum is known.
    """
    kept: list[int] = []
    factors: list[tuple[int, float]] = []
    for k in range(values.shape[1]):
        if not np.any(values[:, k]):
            factors.append((-1, 0.0))
            continue
        for place, other in enumerate(kept):
            used = values[:, other] != 0
            ratio = values[used, k] / values[used, other]
            if ratio[0] > 0 and np.ptp(ratio) <= 1e-9 * ratio[0] and not np.any(values[~used, k]):
                factors.append((place, 1.0 / float(ratio[0])))
                break
        else:
            factors.append((len(kept), 1.0))
            kept.append(k)
    return kept, factors


def merge(values: Floats, counts: Floats) -> Half:
    """Equal rows once, (n, K), with their counts, (n,); rows that differ by rounding alone are equal."""
    if not values.shape[1]:
        return values[:1], np.array([counts.sum()])
    rounded = np.round(values, 9)
    order = np.lexsort(rounded.T)
    rounded, counts = rounded[order], counts[order]
    first = np.concatenate([[True], np.any(rounded[1:] != rounded[:-1], axis=1)])
    return rounded[first], np.add.reduceat(counts, np.flatnonzero(first))


def _slack(bounds: Floats) -> Floats:
    return np.asarray(1e-9 * (1.0 + np.where(np.isfinite(bounds), np.abs(bounds), 0.0)))


class Join:
    """Pairs of sums, one of each half, that stay within bounds together: values (n, K), counts (n,) of each half."""

    def __init__(self, left: Floats, left_counts: Floats, right: Floats, right_counts: Floats) -> None:
        self.left, self.left_counts = left, left_counts
        if not left.shape[1]:
            self.first, self.rest, self.counts = np.zeros(len(right)), np.zeros((len(right), 0)), right_counts
            return
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
        if not self.left.shape[1]:
            return float(self.left_counts.sum() * self.counts.sum())
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
