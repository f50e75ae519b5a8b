"""Exact answers over a whole space: the least or most of one cost while the others keep their limits.

Costs add up over positions except for the peak, which is a sum (weights) plus a maximum (activations). The maximum
takes one of finitely many values, so each is tried: options above it are struck out, and what is left is a
multiple-choice knapsack with linear limits. It is solved by dynamic programming over positions, keeping every partial
choice that its Lagrangian bound (Geoffrion 1974) allows to beat the best known answer; a narrow beam goes first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from latency_tables.cost import CostModel
from latency_tables.errors import TableError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

SLACK = 1e-9  # relative tolerance of a limit: sums in another order differ in the last digits
OBJECTIVES = ("latency_ms", "weights_mb", "peak_mb", "parameters")
_BEAMS = (64, 4096, 262_144, 4_194_304)
_STEPS = 60


@dataclass(frozen=True)
class Limits:
    """What an arrangement must keep to; ``inf`` and ``-inf`` are no limit."""

    latency_ms: float = np.inf
    peak_mb: float = np.inf
    parameters_min: float = -np.inf
    parameters_max: float = np.inf


@dataclass(frozen=True)
class _Options:
    """Options of one position worth keeping: columns (latency, weights, parameters), peaks, and their indices."""

    sums: Floats  # (n, 3)
    point: Floats  # (n,)
    index: Integers  # (n,)


def optimum(
    model: CostModel, objective: str, limits: Limits = Limits(), sense: str = "min", enough: float | None = None
) -> Integers | None:
    """The arrangement with the least (``min``) or most (``max``) of ``objective`` within ``limits``, or ``None``.

    Args:
        model: the costs.
        objective: ``latency_ms``, ``weights_mb``, ``peak_mb`` or ``parameters``.
        limits: what it must keep to, each up to a relative ``1e-9``.
        sense: ``min`` or ``max``.
        enough: stop at the first arrangement that is at least this good.

    Returns:
        Option indices, shape (P,); failed workloads are never chosen.

    Raises:
        TableError: on an unknown objective, or if the answer needs memory that the table does not know.
    """
    if objective not in OBJECTIVES or sense not in ("min", "max"):
        raise TableError(f"{sense} {objective}: use min or max of {', '.join(OBJECTIVES)}")
    if model.unknown_memory and (objective in ("weights_mb", "peak_mb") or limits.peak_mb < np.inf):
        raise TableError(
            f"{model.header.device}/{model.header.runtime}: memory is unknown for {len(model.unknown_memory)} "
            "workloads "
            f"({', '.join(model.unknown_memory[:3])}); measure it, or leave the memory limit out"
        )
    sign = 1.0 if sense == "min" else -1.0
    options = _keep(model)
    if any(len(item.index) == 0 for item in options):
        return None
    if objective == "peak_mb" and sense == "max":
        return _highest_peak(model, options, limits)
    peaked = objective == "peak_mb" or limits.peak_mb < np.inf
    best: Integers | None = None
    best_value = np.inf
    for maximum in _maxima(model, options) if peaked else [np.inf]:
        room = limits.peak_mb * (1 + SLACK) - maximum - model.backbone_weights_mb if peaked else np.inf
        if room < 0 and peaked:
            break  # the maxima rise, so the room for weights only shrinks
        allowed = [_at_most(item, maximum) for item in options]
        target = best_value - maximum if objective == "peak_mb" else best_value
        stop = -np.inf if enough is None else (enough * sign - maximum if objective == "peak_mb" else enough * sign)
        found = _knapsack(model, allowed, objective, sign, limits, room, target, stop)
        if found is None:
            continue
        value = _value(model, found, objective) * sign
        if value < best_value:
            best, best_value = found, value
        if enough is not None and best_value <= enough * sign:
            break
    return best


def extremes(model: CostModel) -> dict[str, dict[str, Integers | None]]:
    """The cheapest and dearest arrangement by latency, peak memory and parameters: ``{column: {"min", "max"}}``."""
    columns = ["latency_ms", "parameters"] + ([] if model.unknown_memory else ["peak_mb"])
    return {name: {sense: optimum(model, name, sense=sense) for sense in ("min", "max")} for name in columns}


def marginal(model: CostModel, indices: Integers) -> list[dict[str, object]]:
    """What each other choice would change: one row for every position and option, the current one left out.

    Each row has ``position``, ``layers`` (labels) and the changes ``latency_ms``, ``peak_mb``, ``weights_mb`` and
    ``parameters`` against the arrangement given.
    """
    base = model.cost(np.asarray(indices)[None])
    rows: list[dict[str, object]] = []
    for p, name in enumerate(model.positions):
        count = len(model.options[p])
        varied = np.repeat(np.asarray(indices)[None], count, axis=0)
        varied[:, p] = np.arange(count)
        costs = model.cost(varied)
        for i in range(count):
            if i != indices[p]:
                rows.append(
                    {
                        "position": name,
                        "layers": model.options[p][i],
                        "latency_ms": float(costs.latency_ms[i] - base.latency_ms[0]),
                        "peak_mb": float(costs.peak_mb[i] - base.peak_mb[0]),
                        "weights_mb": float(costs.weights_mb[i] - base.weights_mb[0]),
                        "parameters": int(costs.parameters[i] - base.parameters[0]),
                    }
                )
    return rows


def _value(model: CostModel, indices: Integers, objective: str) -> float:
    return float(getattr(model.cost(indices[None]), objective)[0])


def _keep(model: CostModel) -> list[_Options]:
    """Every position's options that can be run, equal ones once (the order of layers does not change a cost)."""
    kept = []
    for costs in model.option_costs:
        columns = np.stack([costs.latency_ms, costs.weights_mb, costs.parameters, costs.point_mb], axis=1)
        usable = np.flatnonzero(np.isfinite(costs.latency_ms))
        if model.unknown_memory:
            columns[:, [1, 3]] = 0.0  # never asked for: optimum() refused
        _, first = np.unique(columns[usable], axis=0, return_index=True)
        index = usable[np.sort(first)]
        kept.append(_Options(columns[index, :3], columns[index, 3], index))
    return kept


def _maxima(model: CostModel, options: list[_Options]) -> list[float]:
    """The values that the largest activation peak can take, ascending."""
    values = np.unique(np.concatenate([item.point for item in options]))
    backbone = model.backbone_activation_mb
    return [backbone, *(float(value) for value in values if value > backbone)]


def _at_most(options: _Options, maximum: float) -> _Options:
    allowed = options.point <= maximum
    return _Options(options.sums[allowed], options.point[allowed], options.index[allowed])


def _highest_peak(model: CostModel, options: list[_Options], limits: Limits) -> Integers | None:
    """The dearest peak: some point sets it, so try each position's every peak as that point."""
    best: Integers | None = None
    best_value = -np.inf
    forced: list[list[_Options]] = [options]
    for p, item in enumerate(options):
        for peak in np.unique(item.point):
            pinned = item.point == peak
            forced.append(
                [*options[:p], _Options(item.sums[pinned], item.point[pinned], item.index[pinned]), *options[p + 1 :]]
            )
    plain = Limits(limits.latency_ms, np.inf, limits.parameters_min, limits.parameters_max)
    for allowed in forced:
        found = _knapsack(model, allowed, "weights_mb", -1.0, plain, np.inf, np.inf, -np.inf)
        if found is not None and _value(model, found, "peak_mb") > best_value:
            best, best_value = found, _value(model, found, "peak_mb")
    if best is not None and best_value > limits.peak_mb * (1 + SLACK):
        raise TableError("max peak_mb under a peak limit is not defined here; ask for it without the limit")
    return best


def _knapsack(
    model: CostModel,
    options: list[_Options],
    objective: str,
    sign: float,
    limits: Limits,
    room: float,
    target: float,
    enough: float,
) -> Integers | None:
    """The least ``sign * objective`` below ``target`` with latency, weights and parameters within limits."""
    if any(len(item.index) == 0 for item in options):
        return None
    column = {"latency_ms": 0, "weights_mb": 1, "peak_mb": 1, "parameters": 2}[objective]
    start = np.array([model.backbone_latency_ms, model.backbone_weights_mb, float(model.plan.backbone_parameters)])
    # Every limit as "sum of coefficients <= bound".
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
    base = sign * start[column]
    least = [table[:, 1:].min(axis=0) for table in tables]
    if np.any(np.sum(least, axis=0) > bounds + _tolerance(bounds)) if rows else False:
        return None
    keep = [_pareto(table) for table in tables]
    tables = [table[rank] for table, rank in zip(tables, keep, strict=True)]
    cut = (target - base) * (1.0 - np.sign(target - base) * 1e-12) if np.isfinite(target) else target
    multipliers, guess, hopeless = _multipliers(tables, bounds, cut)
    if hopeless:
        return None
    # The same bound without the objective: positive for a partial choice that no completion brings within all limits.
    barren = [np.concatenate([np.zeros((len(table), 1)), table[:, 1:]], axis=1) for table in tables]
    surrogates = multipliers[:0]
    if guess is None:
        surrogates, _, hopeless = _multipliers(barren, bounds, 0.0)
        if hopeless:
            return None
    best, choice = target - base, None
    if guess is not None and guess[0] < best - abs(best if np.isfinite(best) else 0.0) * 1e-12:
        best, choice = guess
    for beam in _BEAMS:
        if choice is not None and best + base <= enough:
            break
        found, whole = _sweep(tables, bounds, multipliers, surrogates, best, beam)
        if found is not None:
            best, choice = found
        if whole:
            break
    else:
        raise TableError("the limits leave too many near-equal arrangements to decide exactly; loosen one by a percent")
    if choice is None:
        return None
    return np.array([item.index[keep[p][choice[p]]] for p, item in enumerate(options)], dtype=np.int64)


def _tolerance(bounds: Floats) -> Floats:
    return 1e-12 * np.abs(bounds) + 1e-12


def _pareto(table: Floats) -> Integers:
    """Rows that no other row beats in every column, in order of the first."""
    order = np.lexsort(table.T[::-1])
    kept: list[int] = []
    values = np.empty((0, table.shape[1]))
    for i in order:
        if not len(values) or not np.any(np.all(values <= table[i], axis=1)):
            kept.append(int(i))
            values = table[kept]
    return np.array(kept, dtype=np.int64)


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
    for _ in range(_STEPS):
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
    order = np.argsort(values)[::-1][:6]
    return np.unique(np.array([np.zeros(len(bounds)), *(tried[i] for i in order)]), axis=0), best, False


def _sweep(
    tables: list[Floats], bounds: Floats, multipliers: Floats, surrogates: Floats, target: float, beam: int
) -> tuple[tuple[float, Integers] | None, bool]:
    """One pass over the positions with at most ``beam`` partial choices; ``True`` if none was left out for "
    "want of room."""
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
    tolerance = _tolerance(bounds)
    cut = target - 1e-12 * abs(target) if np.isfinite(target) else target
    for p, table in enumerate(tables):
        parts = []
        block = max(1, 2_000_000 // len(table))
        for start in range(0, len(states), block):
            grown = states[start : start + block, None, :] + table[None]
            flat = grown.reshape(-1, grown.shape[2])
            bound = np.max(flat[:, :1] + (flat[:, 1:] - bounds) @ multipliers.T + slope[p + 1], axis=1)
            fits = (bound < cut) & np.all(flat[:, 1:] + least[p + 1] <= bounds + tolerance, axis=1)
            if len(surrogates):
                excess = (flat[:, 1:] - bounds) @ surrogates.T + drift[p + 1]
                fits &= np.all(excess <= np.abs(bounds) @ surrogates.T * 1e-12 + 1e-12, axis=1)
            where = np.flatnonzero(fits)
            parts.append((flat[where], where // len(table) + start, where % len(table), bound[where]))
        merged = [np.concatenate(column) for column in zip(*parts, strict=True)]
        states, parent, chosen, bound = merged
        if not len(states):
            return None, whole
        _, first = np.unique(states, axis=0, return_index=True)
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
        choice[p] = picks[winner]
        winner = int(parents[winner])
    return (value, choice), whole


def limits_of(values: Mapping[str, float | None]) -> Limits:
    """Limits from a budget's fields, ``None`` being no limit."""
    latency, memory, low, high = (
        values.get(name) for name in ("latency_ms", "memory_mb", "parameters_min", "parameters_max")
    )
    return Limits(
        np.inf if latency is None else latency,
        np.inf if memory is None else memory,
        -np.inf if low is None else low,
        np.inf if high is None else high,
    )
