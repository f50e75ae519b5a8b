"""Exact answers over a whole space: the least or most of one cost while the others keep their limits.

Costs add up over positions except for the peak, which is a sum (weights) plus a maximum (activations). The maximum
takes one of finitely many values. A range of them is taken at once: options above the highest are struck out, weights
get the room that the lowest leaves, and what is left is a multiple-choice knapsack with linear limits. Where its answer
breaks the limit in truth, the range is split so that neither half holds that answer (branch and bound: Land and Doig
1960)."""

from __future__ import annotations

import heapq
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from latency_tables.cost import CostModel
from latency_tables.errors import TableError
from latency_tables.knapsack import CROWDED, SLACK, Limits, Options, Search, Undecided, knapsack

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

NO_LIMITS = Limits()
__all__ = ["CLOSE", "Limits", "extremes", "limits_of", "marginal", "optimum"]
OBJECTIVES = ("latency_ms", "weights_mb", "peak_mb", "parameters")
CLOSE = 1e-3  # of the best: what a better answer must gain where too many are nearly equal to tell the very best
_NEAR = (64, 512, 4096)  # partial choices at once, for one as close as that
_EXACT = 20_000  # the same times positions, for the best


def optimum(
    model: CostModel,
    objective: str,
    limits: Limits = NO_LIMITS,
    sense: str = "min",
    enough: float | None = None,
    within: float | None = None,
    effort: str = "full",
) -> Integers | None:
    """The arrangement with the least (``min``) or most (``max``) of ``objective`` within ``limits``, or ``None``.

    Args:
        model: the costs.
        objective: ``latency_ms``, ``weights_mb``, ``peak_mb`` or ``parameters``.
        limits: what it must keep to, each up to a relative ``1e-9``.
        sense: ``min`` or ``max``.
        enough: stop at the first arrangement that is at least this good.
        within: nothing worse than this is asked for (up to a relative ``1e-9``).
        effort: ``exact``: the best itself; ``near``: where too many arrangements are nearly as good as the best to tell
            which one that is, one within ``CLOSE`` (0.1%) of it; ``full``: where even that cannot be proven in a few
            seconds, the best that was found. The first two may end in ``Undecided``.

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
    worst = np.inf if within is None else within * sign + abs(within) * SLACK
    stop = -np.inf if enough is None else enough * sign
    peaked = objective == "peak_mb" or limits.peak_mb < np.inf
    # Exactly; within CLOSE; and what the same work finds, proven or not.
    ways = [(0.0, (64, 512, max(512, _EXACT // len(options))), False), (CLOSE, _NEAR, False), (CLOSE, _NEAR, True)]
    for tolerance, beams, settle in ways[: ("exact", "near", "full").index(effort) + 1]:
        search = Search(objective, sign, limits, worst, stop, tolerance, beams, settle)
        try:
            return _by_peak(model, options, search) if peaked else knapsack(model, options, search, np.inf, worst, stop)
        except Undecided:
            continue
    raise Undecided(CROWDED)


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


def _keep(model: CostModel) -> list[Options]:
    """Every position's options that can be run, equal ones once (the order of layers does not change a cost)."""
    kept = []
    for costs in model.option_costs:
        columns = np.stack([costs.latency_ms, costs.weights_mb, costs.parameters, costs.point_mb], axis=1)
        usable = np.flatnonzero(np.isfinite(costs.latency_ms))
        if model.unknown_memory:
            columns[:, [1, 3]] = 0.0  # never asked for: optimum() refused
        _, first = np.unique(columns[usable], axis=0, return_index=True)
        index = usable[np.sort(first)]
        kept.append(Options(columns[index, :3], columns[index, 3], index))
    return kept


def _maxima(model: CostModel, options: list[Options]) -> list[float]:
    """The values that the largest activation peak can take, ascending."""
    values = np.unique(np.concatenate([item.point for item in options]))
    backbone = model.backbone_activation_mb
    return [backbone, *(float(value) for value in values if value > backbone)]


def _at_most(options: Options, maximum: float) -> Options:
    allowed = options.point <= maximum
    return Options(options.sums[allowed], options.point[allowed], options.index[allowed])


def _by_peak(model: CostModel, options: list[Options], search: Search) -> Integers | None:
    """The least ``sign * objective`` under a limit on the peak, or of the peak itself.

    Ranges of the largest activation peak, the one with the best bound first. A range that holds one value is exact, and
    so is every answer that keeps the limit.
    """
    maxima = np.array(_maxima(model, options))
    objective, sign, enough, best_value = search.objective, search.sign, search.enough, search.within
    limit = search.limits.peak_mb * (1 + SLACK)
    best: Integers | None = None
    queue: list[tuple[float, int, int]] = [(-np.inf, 0, len(maxima) - 1)]
    while queue:
        bound, low, high = heapq.heappop(queue)
        if bound >= best_value - search.tolerance * abs(best_value) or best_value <= enough:
            break
        room = limit - maxima[low] - model.backbone_weights_mb
        if room < 0:
            continue
        allowed = [_at_most(item, maxima[high]) for item in options]
        lifted = maxima[low] if objective == "peak_mb" else 0.0
        found = knapsack(model, allowed, search, room, best_value - lifted, enough - lifted)
        if found is None:
            continue
        cost = model.cost(found[None])
        reached = sign * float((cost.weights_mb if objective == "peak_mb" else getattr(cost, objective))[0]) + lifted
        if reached > enough:  # else the knapsack may have stopped before its best
            bound = max(bound, reached)
        value = sign * float(getattr(cost, objective)[0])
        kept = bool(cost.peak_mb[0] <= limit * (1 + SLACK / 10))  # a sum in another order differs in its last digits
        if kept and value < best_value:
            best, best_value = found, value
        own = int(np.searchsorted(maxima, cost.activation_peak_mb[0]))
        if own > low and (not kept or objective == "peak_mb"):
            # Neither half may hold this answer any more: one strikes its options, the other leaves no room for it.
            crowded = int(np.searchsorted(maxima, limit - cost.weights_mb[0], side="right"))
            middle = min(max((low + high + 1) // 2, low + 1, min(crowded, own)), own)
            heapq.heappush(queue, (bound, low, middle - 1))
            heapq.heappush(queue, (bound, middle, high))
    return best


def _highest_peak(model: CostModel, options: list[Options], limits: Limits) -> Integers | None:
    """The dearest peak: some point sets it, so try each position's every peak as that point."""
    best: Integers | None = None
    best_value = -np.inf
    forced: list[list[Options]] = [options]
    for p, item in enumerate(options):
        for peak in np.unique(item.point):
            pinned = item.point == peak
            forced.append(
                [*options[:p], Options(item.sums[pinned], item.point[pinned], item.index[pinned]), *options[p + 1 :]]
            )
    plain = Limits(limits.latency_ms, np.inf, limits.parameters_min, limits.parameters_max)
    search = Search("weights_mb", -1.0, plain, np.inf, -np.inf, 0.0, _NEAR, True)
    for allowed in forced:
        found = knapsack(model, allowed, search, np.inf, np.inf, -np.inf)
        if found is not None and _value(model, found, "peak_mb") > best_value:
            best, best_value = found, _value(model, found, "peak_mb")
    if best is not None and best_value > limits.peak_mb * (1 + SLACK):
        raise TableError("max peak_mb under a peak limit is not defined here; ask for it without the limit")
    return best


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
