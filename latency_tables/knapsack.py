"""A multiple-choice knapsack: of each position one option, the sums within limits, one sum the least.

Dynamic programming over positions keeps every partial choice that its Lagrangian bound (Geoffrion 1974) allows to beat
the best known answer; a narrow beam goes first, and swaps of two positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from latency_tables.cost import CostModel
from latency_tables.errors import TableError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

SLACK = 1e-9  # relative tolerance of a limit: sums in another order differ in the last digits
_WALK = 24  # steps of the subgradient
_STEPS = 60
_KEPT = 5  # multipliers, of all that were met
_SWAPS = 1000  # options that are tried in pairs
_STEPS_OF_DOMINANCE = 12
_SEEN = 8  # times the beam: partial choices that are compared with one another
_UNBOUNDED = 1e6
_BLOCK = 256  # options compared with one another at once


@dataclass(frozen=True)
class Limits:
    """What an arrangement must keep to; ``inf`` and ``-inf`` are no limit."""

    latency_ms: float = np.inf
    peak_mb: float = np.inf
    parameters_min: float = -np.inf
    parameters_max: float = np.inf


CROWDED = "the limits leave too many near-equal arrangements to tell the best; loosen one by a percent"


class Undecided(TableError):
    """More partial choices than can be kept at once might still lead to an answer."""


@dataclass(frozen=True)
class Search:
    """What an answer must be better than, when to stop, and how hard to look: of ``sign * objective``."""

    objective: str
    sign: float
    limits: Limits
    within: float
    enough: float
    tolerance: float
    beams: tuple[int, ...]
    settle: bool = False  # for what was found, if the widest beam proves nothing


@dataclass(frozen=True)
class Options:
    """Options of one position worth keeping: columns (latency, weights, parameters), peaks, and their indices."""

    sums: Floats  # (n, 3)
    point: Floats  # (n,)
    index: Integers  # (n,)


def knapsack(
    model: CostModel, options: list[Options], search: Search, room: float, target: float, enough: float
) -> Integers | None:
    """The least ``sign * objective`` below ``target`` with latency, weights and parameters within limits.

    Raises:
        Undecided: if the widest beam had to leave out partial choices that might be better.
    """
    if any(len(item.index) == 0 for item in options):
        return None
    tables, bounds, base = _problem(model, options, search, room)
    least = np.sum([table[:, 1:].min(axis=0) for table in tables], axis=0)
    if np.any(least > bounds + _tolerance(bounds)):
        return None
    keep = [_pareto(table) for table in tables]
    tables = [table[rank] for table, rank in zip(tables, keep, strict=True)]

    def better(than: float) -> float:
        """What the objective, the backbone's part left out, must stay below to be better than this."""
        return than - max(search.tolerance * abs(than + base), 1e-12 * abs(than)) if np.isfinite(than) else than

    best, choice = target - base, None
    multipliers, guess, hopeless = _multipliers(tables, bounds, better(best))
    if hopeless:
        return None
    # The same bound without the objective: positive for a partial choice that no completion brings within all limits.
    barren = [np.concatenate([np.zeros((len(table), 1)), table[:, 1:]], axis=1) for table in tables]
    surrogates = multipliers[:0]
    if guess is None:
        surrogates, _, hopeless = _multipliers(barren, bounds, 0.0)
        if hopeless:
            return None
    if guess is not None and guess[0] < better(best):
        best, choice = guess
    for beam in search.beams:
        if choice is not None and best + base <= enough:
            break
        found, whole = _sweep(tables, bounds, multipliers, surrogates, better(best), beam)
        if found is not None:
            best, choice = found
        if whole:
            break
        if beam == search.beams[0]:
            found = _swapped(tables, bounds, multipliers, choice)
            if found is not None and found[0] < better(best):
                best, choice = found
    else:
        if not search.settle:
            raise Undecided(CROWDED)
    if choice is None:
        return None
    return np.array([item.index[keep[p][choice[p]]] for p, item in enumerate(options)], dtype=np.int64)


def _problem(
    model: CostModel, options: list[Options], search: Search, room: float
) -> tuple[list[Floats], Floats, float]:
    """Of each position the objective and every limited sum, shape (n, 1 + K); the bounds, (K,), backbone left out; and
    the backbone's part of the objective. Every limit is "sum at most bound", a least of one being a most of its
    negative."""
    sign, limits = search.sign, search.limits
    column = {"latency_ms": 0, "weights_mb": 1, "peak_mb": 1, "parameters": 2}[search.objective]
    start = np.array([model.backbone_latency_ms, model.backbone_weights_mb, float(model.plan.backbone_parameters)])
    wanted = [
        (0, 1.0, limits.latency_ms * (1 + SLACK)),
        (1, 1.0, room + model.backbone_weights_mb),
        (2, 1.0, limits.parameters_max),
        (2, -1.0, -limits.parameters_min),
    ]
    rows = [(which, factor, bound) for which, factor, bound in wanted if np.isfinite(bound)]
    bounds = np.array([bound - factor * start[which] for which, factor, bound in rows])
    tables = [
        np.stack([sign * item.sums[:, column], *(factor * item.sums[:, which] for which, factor, _ in rows)], axis=1)
        for item in options
    ]
    return tables, bounds, float(sign * start[column])


def _tolerance(bounds: Floats) -> Floats:
    return 1e-12 * np.abs(bounds) + 1e-12


def _pareto(table: Floats) -> Integers:
    """Rows that no other row beats in every column, in order of the first."""
    order = np.lexsort(table.T[::-1])
    kept = order[:0]
    for start in range(0, len(order), _BLOCK):
        block = order[start : start + _BLOCK]
        rows = table[block]
        beaten = np.any(np.all(table[kept][:, None] <= rows[None], axis=2), axis=0)
        beaten |= np.any(np.triu(np.all(rows[:, None] <= rows[None], axis=2), 1), axis=0)
        kept = np.concatenate([kept, block[~beaten]])
    return kept.astype(np.int64)


def _multipliers(
    tables: list[Floats], bounds: Floats, cut: float
) -> tuple[Floats, tuple[float, Integers] | None, bool]:
    """Multipliers of the limits that give good bounds, shape (M, K), and the best arrangement met on the way.

    A subgradient walk. It ends with ``True`` once the bound passes ``cut``: nothing below that exists.
    """
    if not len(bounds):
        choice = np.array([int(np.argmin(table[:, 0])) for table in tables], dtype=np.int64)
        value = float(sum(table[i, 0] for table, i in zip(tables, choice, strict=True)))
        return np.zeros((1, 0)), (value, choice), value >= cut
    stacked = np.concatenate(tables)
    starts = np.cumsum([0, *(len(table) for table in tables)])[:-1]
    spread = np.maximum(np.ptp(stacked, axis=0), 1e-12)
    scale = max(spread[0], 1e-3) / spread[1:]
    current = np.zeros(len(bounds))
    tried, values = [np.zeros(len(bounds))], []
    best: tuple[float, Integers] | None = None
    step = 1.0
    for _ in range(_WALK):
        reduced = stacked[:, 0] + stacked[:, 1:] @ current
        lowest = np.minimum.reduceat(reduced, starts)
        values.append(float(lowest.sum() - current @ bounds))
        rounding = 1e-12 * float(current @ np.abs(bounds)) + 1e-15
        if values[-1] > cut + rounding:
            return np.array(tried), best, True
        if best is not None and values[-1] >= best[0] - 1e-12 * abs(best[0]):
            break
        choice = np.array(
            [int(np.argmin(reduced[start : start + len(table)])) for start, table in zip(starts, tables, strict=True)]
        )
        total = np.sum([table[i] for table, i in zip(tables, choice, strict=True)], axis=0)
        excess = total[1:] - bounds
        if np.all(excess <= _tolerance(bounds)) and (best is None or total[0] < best[0]):
            best = (float(total[0]), choice)
        if len(values) > 1 and values[-1] <= max(values[:-1]):
            step *= 0.85
        length = float(np.sum((excess / spread[1:]) ** 2)) ** 0.5
        if length < 1e-12:
            break
        current = np.maximum(0.0, current + step * scale * (excess / spread[1:]) / length)
        tried.append(current.copy())
    if np.ptp(stacked[:, 0]) > 0 and not (best is not None and values[-1] >= best[0] - 1e-12 * abs(best[0])):
        for current in _polished(stacked / spread, starts, bounds / spread[1:], tried[int(np.argmax(values))] / scale):
            tried.append(current * scale)
            lowest = np.minimum.reduceat(stacked[:, 0] + stacked[:, 1:] @ tried[-1], starts)
            values.append(float(lowest.sum() - tried[-1] @ bounds))
            if values[-1] > cut + 1e-12 * float(tried[-1] @ np.abs(bounds)) + 1e-15:
                return np.array(tried), best, True
    order = np.argsort(values)[::-1][:_KEPT]
    # Without any multiplier the bound of a whole choice is its objective: what is no better is left out.
    return np.unique(np.array([np.zeros(len(bounds)), *(tried[i] for i in order)]), axis=0), best, False


def _polished(stacked: Floats, starts: NDArray[np.intp], bounds: Floats, first: Floats) -> Iterator[Floats]:
    """Multipliers of a bound that was smoothed, less and less: Newton's method where the subgradient walk stalls.

    The least option of a position becomes a soft minimum and the sign of a multiplier a logarithmic barrier (Nesterov
    2005; Boyd and Vandenberghe 2004, section 11.2), so that the bound has a Hessian. Columns of a spread of one.
    """
    costs, limits = stacked[:, 0], stacked[:, 1:]
    sizes = np.diff([*starts, len(stacked)])
    current = np.clip(first, 1e-3, _UNBOUNDED / 2)

    def smooth(multipliers: Floats, heat: float) -> tuple[float, Floats]:
        """The smoothed bound, and each option's share in its position's soft minimum."""
        reduced = costs + limits @ multipliers
        lowest = np.minimum.reduceat(reduced, starts)
        weight = np.exp((np.repeat(lowest, sizes) - reduced) / heat)
        total = np.add.reduceat(weight, starts)
        barrier = heat * float(np.log(multipliers).sum())
        value = float((lowest - heat * np.log(total)).sum() - multipliers @ bounds) + barrier
        return value, weight / np.repeat(total, sizes)

    for heat in 0.1 * 0.25 ** np.arange(9):
        value, share = smooth(current, heat)
        for _ in range(12):
            means = np.add.reduceat(share[:, None] * limits, starts)
            gradient = means.sum(axis=0) - bounds + heat / current
            curvature = ((share[:, None] * limits).T @ limits - means.T @ means) / heat + np.diag(heat / current**2)
            move = np.linalg.lstsq(curvature, gradient, rcond=None)[0]
            length = min(1.0, 0.9 / max(float(np.max(-move / current)), 1e-300))
            length = min(length, _UNBOUNDED / max(float(np.max(move)), 1e-300))
            for _ in range(8):
                further, at = smooth(current + length * move, heat)
                if further >= value:
                    break
                length *= 0.4
            else:
                break
            gained, current, value, share = further - value, current + length * move, further, at
            if gained <= 1e-3 * heat:
                break
        if not current.max() < _UNBOUNDED:  # nothing keeps the limits: the bound grows without end
            return
        yield current


def _sweep(
    tables: list[Floats], bounds: Floats, multipliers: Floats, surrogates: Floats, cut: float, beam: int
) -> tuple[tuple[float, Integers] | None, bool]:
    """One pass over the positions for an objective below ``cut`` with at most ``beam`` partial choices; ``True`` if
    none was left out for want of room."""
    kept = _hopeful(tables, bounds, multipliers, surrogates, cut)
    if any(len(rank) == 0 for rank in kept):
        return None, True
    tables = [table[rank] for table, rank in zip(tables, kept, strict=True)]
    count = len(tables)
    least = np.zeros((count + 1, len(bounds)))
    slope = np.zeros((count + 1, len(multipliers)))
    drift = np.zeros((count + 1, len(surrogates)))
    for p in range(count - 1, -1, -1):
        least[p] = least[p + 1] + tables[p][:, 1:].min(axis=0) if len(bounds) else least[p]
        slope[p] = slope[p + 1] + (tables[p][:, :1] + tables[p][:, 1:] @ multipliers.T).min(axis=0)
        drift[p] = drift[p + 1] + (tables[p][:, 1:] @ surrogates.T).min(axis=0)
    states = np.zeros((1, 1 + len(bounds)))
    history: list[tuple[Integers, Integers]] = []
    whole = True
    for p, table in enumerate(tables):
        parts = []
        block = max(1, 1_000_000 // len(table))
        for start in range(0, len(states), block):
            some = states[start : start + block]
            before, after, reached = _grown(
                some, table, bounds, multipliers, surrogates, least[p + 1], slope[p + 1], drift[p + 1], cut
            )
            parts.append((some[before] + table[after], before + start, after, reached))
        merged = [np.concatenate(column) for column in zip(*parts, strict=True)]
        states, parent, chosen, bound = merged
        if not len(states):
            return None, whole
        if len(states) > _SEEN * beam:
            whole = False
            seen = np.argpartition(bound, _SEEN * beam - 1)[: _SEEN * beam]
            states, parent, chosen, bound = states[seen], parent[seen], chosen[seen], bound[seen]
        first = _undominated(states)
        if len(first) > beam:
            whole = False
            first = first[np.argpartition(bound[first], beam - 1)[:beam]]
        states = states[first]
        history.append((parent[first], chosen[first]))
    winner = int(np.argmin(states[:, 0]))
    value = float(states[winner, 0])
    choice = np.zeros(count, dtype=np.int64)
    for p in range(count - 1, -1, -1):
        parents, picks = history[p]
        choice[p] = kept[p][picks[winner]]
        winner = int(parents[winner])
    return (value, choice), whole


def _grown(
    some: Floats,
    table: Floats,
    bounds: Floats,
    multipliers: Floats,
    surrogates: Floats,
    least: Floats,
    slope: Floats,
    drift: Floats,
    cut: float,
) -> tuple[NDArray[np.intp], NDArray[np.intp], Floats]:
    """Partial choices with one position more that may still lead to an answer: from which, by which option, and the
    bound of each. ``least``, ``slope`` and ``drift`` are what the positions to come add to a sum or a bound at least.
    """
    fits = np.ones((len(some), len(table)), dtype=bool)
    for k, most in enumerate(bounds + _tolerance(bounds) - least, start=1):
        fits &= some[:, k, None] <= most - table[:, k]
    for row, rest in zip(surrogates, drift, strict=True):
        most = float(row @ bounds - rest + np.abs(bounds) @ row * 1e-12 + 1e-12)
        fits &= (some[:, 1:] @ row)[:, None] <= most - table[:, 1:] @ row
    reached = np.full(fits.shape, -np.inf)
    for row, rest in zip(multipliers, slope, strict=True):
        own = some[:, 0] + some[:, 1:] @ row + (rest - float(row @ bounds))
        np.maximum(reached, own[:, None] + (table[:, 0] + table[:, 1:] @ row), out=reached)
    fits &= reached < cut
    before, after = np.nonzero(fits)
    return before, after, reached[before, after]


def _swapped(
    tables: list[Floats], bounds: Floats, multipliers: Floats, choice: Integers | None
) -> tuple[float, Integers] | None:
    """A better choice by changing two positions at a time, each time the best pair: first into the limits, then within.

    Where the objective is one of the limits, all partial choices have the same bound and a beam goes astray; there are
    so many pairs that one fits closely. Starts at ``choice``, or at what the bound itself chooses.
    """
    bound = [sum(float((t[:, 0] + t[:, 1:] @ row).min()) for t in tables) - float(row @ bounds) for row in multipliers]
    reduced = [table[:, 0] + table[:, 1:] @ multipliers[int(np.argmax(bound))] for table in tables]
    current = np.array([int(np.argmin(item)) for item in reduced]) if choice is None else choice.copy()
    spread = np.maximum(np.ptp(np.concatenate(tables), axis=0), 1e-12)
    near = [np.argsort(item)[: max(4, _SWAPS // len(tables))] for item in reduced]
    place = np.concatenate([[-1], *(np.full(len(rank), p) for p, rank in enumerate(near))])
    option = np.concatenate([[0], *near])
    apart = (place[:, None] != place[None]) | (place[:, None] < 0)
    for _ in range(_STEPS):
        chosen = np.array([table[i] for table, i in zip(tables, current, strict=True)])
        total = chosen.sum(axis=0)
        moves = np.concatenate(
            [[np.zeros(len(spread))], *(t[rank] - c for t, rank, c in zip(tables, near, chosen, strict=True))]
        )
        broken = np.zeros(apart.shape)
        for k, bound_k in enumerate(bounds, start=1):
            excess = (moves[:, None, k] + moves[None, :, k]) + (total[k] - bound_k - _tolerance(bounds)[k - 1])
            broken += np.maximum(excess, 0.0) / spread[k]
        broken[~apart] = np.inf
        within = broken <= 0.0
        if within.any():
            value = np.where(within, moves[:, None, 0] + moves[None, :, 0], np.inf)
            if broken[0, 0] <= 0.0 and value.min() >= -1e-12 * max(1.0, abs(total[0])):
                return float(total[0]), current
        else:
            value = broken
            if value.min() >= broken[0, 0]:
                return None
        for move in np.unravel_index(int(np.argmin(value)), value.shape):
            if place[move] >= 0:
                current[place[move]] = option[move]
    total = np.sum([table[i] for table, i in zip(tables, current, strict=True)], axis=0)
    return (float(total[0]), current) if np.all(total[1:] <= bounds + _tolerance(bounds)) else None


def _hopeful(
    tables: list[Floats], bounds: Floats, multipliers: Floats, surrogates: Floats, cut: float
) -> list[NDArray[np.intp]]:
    """Of each position the options that an answer below ``cut`` may hold (reduced-cost fixing): the bound of a choice
    without one of them grows by what it costs over the position's best."""
    alive = [np.ones(len(table), dtype=bool) for table in tables]
    walks = [(multipliers, 1.0, cut), (surrogates, 0.0, 0.0)]
    for multiplier, weight, most in ((row, weight, most) for rows, weight, most in walks for row in rows):
        reduced = [weight * table[:, 0] + table[:, 1:] @ multiplier for table in tables]
        slack = 1e-12 * float(multiplier @ np.abs(bounds)) + 1e-12
        room = most + float(multiplier @ bounds) - sum(float(item.min()) for item in reduced) + slack
        for use, item in zip(alive, reduced, strict=True):
            use &= item - item.min() <= room
    return [np.flatnonzero(use) for use in alive]


def _undominated(states: Floats) -> NDArray[np.intp]:
    """Partial choices without most of those that another beats in every column.

    All of them with one limit; with two those that are beaten by a clear step of the second; with more, those that
    differ in the last column alone.
    """
    order = np.lexsort(
        [states[:, k] for k in (*range(1, states.shape[1]), 0)] if states.shape[1] > 1 else [states[:, 0]]
    )
    rows = states[order]
    if rows.shape[1] == 1:
        return order[:1]
    if rows.shape[1] == 2:
        lowest = np.minimum.accumulate(rows[:, 1])
        return order[np.concatenate([[True], rows[1:, 1] < lowest[:-1]])]
    # Sorted by the objective, then by the last limit, then by the one before it: of rows equal in all but one, one.
    same = np.all(np.delete(rows[1:], 1, axis=1) == np.delete(rows[:-1], 1, axis=1), axis=1)
    keep = np.concatenate([[True], ~same])
    order, rows = order[keep], rows[keep]
    if rows.shape[1] > 3 or len(rows) < 2:
        return order
    edges = np.quantile(rows[:, 2], np.linspace(0, 1, _STEPS_OF_DOMINANCE + 1)[1:-1])
    step = np.searchsorted(edges, rows[:, 2], side="right")
    beaten = np.zeros(len(rows), dtype=bool)
    for level in range(1, _STEPS_OF_DOMINANCE):
        lowest = np.minimum.accumulate(np.where(step < level, rows[:, 1], np.inf))
        beaten |= (step == level) & (lowest <= rows[:, 1])
    return order[~beaten]
