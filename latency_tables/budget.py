"""Limits that an arrangement must meet, and an exact answer when none can."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from latency_tables.cost import CostModel, Costs
from latency_tables.errors import TableError
from latency_tables.knapsack import SLACK, Undecided
from latency_tables.optimum import CLOSE, limits_of, optimum

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# Limit -> (column of Costs, +1 for "at most" and -1 for "at least", unit, decimals).
LIMITS = {
    "latency_ms": ("latency_ms", 1, "ms", 3),
    "memory_mb": ("peak_mb", 1, "MB", 3),
    "parameters_min": ("parameters", -1, "parameters", 0),
    "parameters_max": ("parameters", 1, "parameters", 0),
}


@dataclass(frozen=True)
class Budget:
    """Limits on one evaluation of the network; ``None`` is no limit.

    Attributes:
        latency_ms: at most this latency.
        memory_mb: at most this peak, in MB of 10^6 bytes.
        parameters_min, parameters_max: the whole network's parameters, backbone included.
        margin: the error of a predicted latency that the limit must survive, as a fraction: a prediction meets
            ``latency_ms`` only if it does so ``1 + margin`` times over.

    Raises:
        TableError: on a limit that is not a positive number, a minimum over the maximum, or a negative margin.
    """

    latency_ms: float | None = None
    memory_mb: float | None = None
    parameters_min: float | None = None
    parameters_max: float | None = None
    margin: float = 0.0

    def __post_init__(self) -> None:
        for name in LIMITS:
            value = getattr(self, name)
            if value is not None and not (
                isinstance(value, (int, float, np.number)) and math.isfinite(value) and value > 0
            ):
                raise TableError(f"budget: {name} must be a number over 0, got {value!r}; leave it out for no limit")
        if not (math.isfinite(self.margin) and self.margin >= 0):
            raise TableError(f"budget: margin must be 0 or more, got {self.margin!r}; 0.05 is 5%")
        low, high = self.parameters_min, self.parameters_max
        if low is not None and high is not None and low > high:
            raise TableError(f"budget: parameters_min {low:g} is over parameters_max {high:g}; swap them")

    @property
    def given(self) -> dict[str, float]:
        """The limits that are set, as they were asked for."""
        return {name: getattr(self, name) for name in LIMITS if getattr(self, name) is not None}

    @property
    def bounds(self) -> dict[str, float]:
        """What predictions must keep to: the limits that are set, with the margin taken off the latency."""
        return {name: value / (1.0 + self.margin_of(name)) for name, value in self.given.items()}

    def margin_of(self, name: str) -> float:
        """The margin that a limit is held with: nothing but latency has one."""
        return self.margin if name == "latency_ms" else 0.0

    def held(self, margin: float) -> Budget:
        """The same limits, to be met at an error of up to ``margin`` of the predicted latency."""
        return replace(self, margin=margin)

    def violations(self, costs: Costs) -> dict[str, Floats]:
        """By how much each limit is missed, as a fraction of the limit, shape (N,); zero or less is met.

        ``value / limit - 1`` for an upper limit, ``1 - value / limit`` for a lower one, ``inf`` for what is unknown.
        """
        found = {}
        for name, limit in self.bounds.items():
            column, direction, _, _ = LIMITS[name]
            values = np.asarray(getattr(costs, column), dtype=np.float64)
            excess = direction * (values / limit - 1.0)
            found[name] = np.where(np.isnan(values), np.inf, excess)
        return found

    def feasible(self, costs: Costs) -> NDArray[np.bool_]:
        """Which of N arrangements meet every limit (to a relative 1e-9) and can be run at all, shape (N,)."""
        meets = np.isfinite(costs.latency_ms)
        for excess in self.violations(costs).values():
            meets &= excess <= SLACK
        return meets


@dataclass(frozen=True)
class Miss:
    """One limit of an infeasible budget.

    Attributes:
        limit: ``latency_ms``, ``memory_mb``, ``parameters_min`` or ``parameters_max``.
        wanted: its value.
        alone: the best that any arrangement reaches, other limits aside.
        within: the best within the other limits; ``None`` if those cannot be met even without this one.
    """

    limit: str
    wanted: float
    alone: float
    within: float | None

    @property
    def by(self) -> float | None:
        """The amount missed within the other limits, in the limit's unit; ``None`` if they cannot be met."""
        return None if self.within is None else abs(self.within - self.wanted)


@dataclass(frozen=True)
class Infeasible:
    """Why no arrangement meets a budget, and the nearest that does.

    Nearest is the smallest change, as a fraction of the limit, of one limit alone; where no single one suffices, the
    smallest change that all limits then have to give.

    Attributes:
        limit: the limit to give way, or ``"latency_ms + memory_mb"`` where several must together.
        amount: by how much, in the unit of the (first) limit.
        misses: every limit that was given.
        arrangement: the nearest feasible arrangement, option indices of shape (P,).
        costs: its costs, N = 1.
        budget: the nearest feasible budget.
        message: all of it in one line.
    """

    limit: str
    amount: float
    misses: tuple[Miss, ...]
    arrangement: Integers
    costs: Costs
    budget: Budget
    message: str


def nearest(model: CostModel, budget: Budget) -> Infeasible | None:
    """``None`` if some arrangement meets the budget; else what is missed, by how much, and the nearest that is met.

    Exact over the whole space, or to 0.1% of a limit where too many arrangements come that close: see
    :mod:`latency_tables.optimum`.

    Raises:
        TableError: if the budget limits memory and the table does not know it, or nothing in the space can be run.
    """
    if not budget.given:
        return None
    first = np.zeros(len(model.positions), dtype=np.int64)  # of every position: as a rule nothing, always cheap
    if budget.feasible(model.cost(first[None]))[0] and not (model.unknown_memory and budget.memory_mb):
        return None
    others = {name: Budget(**{**budget.given, name: None}, margin=budget.margin) for name in budget.given}
    within = {name: _best(model, name, others[name], stop=budget) for name in budget.given}
    for found in within.values():
        if found is not None and budget.feasible(model.cost(found[None]))[0]:
            return None
    alone = {name: _best(model, name, Budget()) for name in budget.given}
    if any(found is None for found in alone.values()):
        raise TableError(
            f"{model.plan.space} on {model.header.device}: no arrangement can be run; measure the failed rows again"
        )
    misses = tuple(
        Miss(
            name,
            wanted,
            _reached(model, budget, name, alone[name]),
            None if within[name] is None else _reached(model, budget, name, within[name]),
        )
        for name, wanted in budget.given.items()
    )
    singles = {name: found for name, found in within.items() if found is not None}
    if singles:
        arrangement = min(singles.values(), key=lambda found: _worst(model, budget, found))
    else:
        arrangement = _together(
            model, budget, [first, *(found for found in alone.values() if found is not None)], misses
        )
    costs = model.cost(arrangement[None])
    given_way = {name: float(values[0]) for name, values in budget.violations(costs).items() if values[0] > SLACK}
    nearest_budget = replace(budget, **{name: _reached(model, budget, name, arrangement) for name in given_way})
    worst = max(given_way, key=lambda name: given_way[name])
    amount = abs(_reached(model, budget, worst, arrangement) - budget.given[worst])
    limit = " + ".join(given_way)
    message = _message(model, budget, misses, given_way, nearest_budget, arrangement)
    return Infeasible(limit, amount, misses, arrangement, costs, nearest_budget, message)


def _best(model: CostModel, limit: str, others: Budget, stop: Budget | None = None) -> Integers | None:
    """The arrangement that goes furthest towards ``limit`` within ``others``; enough once ``stop`` is met."""
    column, direction, _, _ = LIMITS[limit]
    enough = None if stop is None else stop.bounds[limit]
    return optimum(model, column, limits_of(others.bounds), "min" if direction > 0 else "max", enough)


def _reached(model: CostModel, budget: Budget, limit: str, arrangement: Integers | None) -> float:
    """The least (or most) that the limit must be for the arrangement to meet it, its margin included."""
    assert arrangement is not None
    value = float(getattr(model.cost(arrangement[None]), LIMITS[limit][0])[0])
    return value * (1.0 + budget.margin_of(limit))


def _worst(model: CostModel, budget: Budget, arrangement: Integers) -> float:
    return max(float(values[0]) for values in budget.violations(model.cost(arrangement[None])).values())


def _together(model: CostModel, budget: Budget, starts: list[Integers], misses: tuple[Miss, ...]) -> Integers:
    """The arrangement whose largest miss, as a fraction of its limit, is the smallest of all.

    Looked for between the best of the arrangements to start with and what each limit is missed by when it is alone.
    Where too many come close to that, the nearest that is found: as a rule within ``CLOSE`` (0.1% of a limit) of it.
    """
    best = min(starts, key=lambda start: _worst(model, budget, start))
    high = _worst(model, budget, best)
    low = max(0.0, *(LIMITS[miss.limit][1] * (miss.alone / miss.wanted - 1.0) - CLOSE for miss in misses))
    while high - low > 0.5 * CLOSE:
        middle = 0.5 * (low + high)
        try:
            found = _any_within(model, budget, middle, "near")
        except Undecided:
            found = None
        if found is None:
            low = middle
        else:
            best, high = found, _worst(model, budget, found)
    # Few are left now: ask for anything better than the best known until there is nothing.
    while True:
        try:
            found = _any_within(model, budget, high - 4 * SLACK, "exact")
        except Undecided:
            return best
        if found is None or _worst(model, budget, found) > high - 2 * SLACK:
            return best
        best, high = found, _worst(model, budget, found)


def _any_within(model: CostModel, budget: Budget, share: float, effort: str) -> Integers | None:
    """Any arrangement that misses no limit by more than ``share``."""
    loosened = {name: limit * (1.0 + LIMITS[name][1] * share) for name, limit in budget.bounds.items()}
    first = next(iter(loosened))
    others = Budget(**{name: value for name, value in loosened.items() if name != first and value > 0})
    column, direction, _, _ = LIMITS[first]
    sense, most = "min" if direction > 0 else "max", loosened[first]
    found = optimum(model, column, limits_of(others.given), sense, enough=most, within=most, effort=effort)
    if (
        found is None
        or direction * (_reached(model, Budget(), first, found) - loosened[first]) > SLACK * loosened[first]
    ):
        return None
    return found


def _message(
    model: CostModel,
    budget: Budget,
    misses: tuple[Miss, ...],
    given_way: dict[str, float],
    nearest_budget: Budget,
    arrangement: Integers,
) -> str:
    layers = [f"{name}: {' + '.join(labels)}" for name, labels in model.decode(arrangement).items() if labels]
    parts = []
    for miss in misses:
        if miss.limit not in given_way:
            continue
        best = _reached(model, budget, miss.limit, arrangement)
        reason = (
            ""
            if len(misses) == 1 or miss.alone == best
            else f"; {_amount(miss.limit, miss.alone)} without the other limits"
        )
        word = "short" if LIMITS[miss.limit][1] < 0 else "over"
        parts.append(
            f"{miss.limit} {_amount(miss.limit, miss.wanted)} is missed: nearest is {_amount(miss.limit, best)} "
            f"({_amount(miss.limit, abs(best - miss.wanted))} {word}, {given_way[miss.limit]:.1%}{reason})"
        )
    if len(parts) > 1:
        parts[0] = "no single limit is enough to loosen; " + parts[0]
    wanted = ", ".join(f"{name} {_rounded(name, value)}" for name, value in nearest_budget.given.items())
    kept = f", a margin of {budget.margin:.1%} kept" if budget.margin and budget.latency_ms is not None else ""
    return (
        f"{model.plan.space} on {model.header.device} ({model.source}{kept}): {'; '.join(parts)}; "
        f"nearest feasible budget: {wanted} ({'; '.join(layers) or 'the backbone alone'})"
    )


def _amount(limit: str, value: float) -> str:
    _, _, unit, decimals = LIMITS[limit]
    return f"{value:,.{decimals}f} {unit}" if unit != "parameters" else f"{value:,.0f}"


def _rounded(limit: str, value: float) -> str:
    """The value with few decimals, rounded to the side that stays feasible."""
    _, direction, unit, decimals = LIMITS[limit]
    scale = 10.0**decimals
    side = math.ceil(value * scale) if direction > 0 else math.floor(value * scale)
    return f"{side / scale:.{decimals}f}{'' if unit == 'parameters' else ' ' + unit}"
