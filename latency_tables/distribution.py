"""How costs are distributed over a whole space, and which share of it meets a budget: counted where that is quick.

Positions are dealt to two halves; joining their sums counts every arrangement of the space (Horowitz and Sahni 1974).
Where a half has too many distinct sums, arrangements are drawn, and the share is printed with its standard error. Draws
lean towards the limits and are weighed back (importance sampling by exponential tilting: Siegmund 1976), so that a
share of one in 10^12 is as well known as one in two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from latency_tables.budget import Budget
from latency_tables.cost import CostModel
from latency_tables.count import count_within
from latency_tables.errors import TableError
from latency_tables.knapsack import SLACK

Floats = NDArray[np.float64]

DRAWS = 1 << 18
CHUNK = 1 << 16  # draws at a time
WIDE = 18  # positions from which on there are fewer draws, so that they take the same time
FEW = 100  # hits below which a tilted estimate does not know its own error
Z95 = 1.96
WHOLE = 500_000  # arrangements of a space that is costed whole for its percentiles
COLUMNS = ("latency_ms", "peak_mb", "parameters")
PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)


@dataclass(frozen=True)
class Share:
    """Which part of a space meets a budget, as a share of ``size`` arrangements.

    Arrangements with a layer that cannot be run there are part of the size and never meet a budget.

    Attributes:
        lower, upper: both the share itself where it was counted; the ends of its 95% interval where it was drawn.
        error: standard error of a drawn share; zero where it was counted.
        draws: how many arrangements were drawn; zero where all were counted.
        drawn: the estimate itself.
    """

    lower: float
    upper: float
    size: int
    error: float = 0.0
    draws: int = 0
    drawn: float = 0.0

    @property
    def exact(self) -> bool:
        """Whether every arrangement was counted."""
        return not self.draws

    @property
    def share(self) -> float:
        """The share, or the best estimate of it."""
        return self.drawn if self.draws else self.lower

    @property
    def sentence(self) -> str:
        """One line for people."""
        if self.exact:
            count = f"{round(self.lower * self.size):,}" if self.size < 2**53 else f"about {self.lower * self.size:.4g}"
            return f"{count} of {self.size:,} arrangements ({_percent(self.lower)})"
        if not self.drawn:
            return f"none of {self.draws:,} drawn: under {_percent(self.upper)} of {self.size:,} arrangements"
        return (
            f"{_percent(self.drawn)} of {self.size:,} arrangements, drawn {self.draws:,} times: standard error "
            f"{_percent(self.error)}, 95% interval {_percent(self.lower)} to {_percent(self.upper)}"
        )


def feasible_share(model: CostModel, budget: Budget, draws: int = DRAWS, seed: int = 0) -> Share:
    """The share of all arrangements that meets a budget: counted where that is quick, else drawn.

    Args:
        draws: arrangements to draw where they are not counted; fewer in spaces of more than ``WIDE`` positions.

    Raises:
        TableError: if the budget limits memory and the table does not know it.
    """
    if budget.memory_mb is not None and model.unknown_memory:
        raise TableError(
            f"{model.header.device}/{model.header.runtime}: memory is unknown for {len(model.unknown_memory)} "
            f"workloads ({', '.join(model.unknown_memory[:3])}); measure it, or leave the memory limit out"
        )
    counted = _counted(model, budget)
    if counted is not None:
        return Share(counted / model.size, counted / model.size, model.size)
    count = max(CHUNK, draws * WIDE // max(WIDE, len(model.positions)))
    options = _possible(model, budget)
    if any(not len(item) for item in options):
        return Share(0.0, 0.0, model.size)
    rng = np.random.default_rng(seed)
    part = math.exp(sum(math.log(len(item) / len(all_)) for item, all_ in zip(options, model.options, strict=True)))
    tilted = _drawn(model, budget, options, _tilt(model, budget, options), count, rng)
    if tilted is not None:
        mean, error = (value * part for value in tilted)
        return Share(
            max(0.0, mean - Z95 * error), min(1.0, mean + Z95 * error), model.size, error, count, min(mean, 1.0)
        )
    return _plain(model, budget, options, part, count, rng)


@dataclass(frozen=True)
class Distribution:
    """How one cost is distributed over the arrangements of a space that can be run.

    Attributes:
        column: ``latency_ms``, ``peak_mb`` or ``parameters``.
        values: sorted costs, shape (n,): of every arrangement, or of ``draws`` of them.
        draws: zero where the values are of every arrangement.
    """

    column: str
    values: Floats
    draws: int

    def percentile(self, percent: float) -> tuple[float, float]:
        """The cost that ``percent`` of the arrangements stay at or under: the ends of its 95% interval.

        Of draws, the order statistics that hold it with that probability (David and Nagaraja 2003, section 7.1); the
        same number twice where all arrangements were costed.
        """
        share, n = percent / 100, len(self.values)
        half = Z95 * math.sqrt(share * (1 - share) * n) if self.draws else 0.0
        ranks = (math.ceil(share * n - half - 1e-9) - 1, math.ceil(share * n + half - 1e-9) - 1)
        low, high = (float(self.values[min(n - 1, max(0, rank))]) for rank in ranks)
        return low, high


def distributions(model: CostModel, draws: int = DRAWS, seed: int = 0) -> dict[str, Distribution]:
    """The distribution of latency, peak memory (if the table knows it) and parameters over the whole space.

    Raises:
        TableError: if nothing can be run.
    """
    usable = [np.flatnonzero(np.isfinite(costs.latency_ms)) for costs in model.option_costs]
    if any(not len(item) for item in usable):
        raise TableError(f"{model.plan.space} on {model.header.device}: no arrangement can be run; measure again")
    size = math.prod(len(item) for item in usable)
    if size <= WHOLE:
        grid = np.indices([len(item) for item in usable]).reshape(len(usable), -1)
        costs = [model.cost(np.stack([item[row] for item, row in zip(usable, grid, strict=True)], axis=1))]
        count = 0
    else:
        rng, count = np.random.default_rng(seed), max(CHUNK, draws * WIDE // max(WIDE, len(usable)))
        costs = [
            model.cost(np.stack([item[rng.integers(0, len(item), part)] for item in usable], axis=1))
            for part in _chunks(count)
        ]
    columns = [name for name in COLUMNS if name != "peak_mb" or not model.unknown_memory]
    return {
        name: Distribution(
            name, np.sort(np.concatenate([np.asarray(getattr(part, name), dtype=np.float64) for part in costs])), count
        )
        for name in columns
    }


# Counting -----------------------------------------------------------------------------------------------------------


def _counted(model: CostModel, budget: Budget) -> float | None:
    """How many arrangements meet the budget; ``None`` where counting them is not quick."""
    sums: list[tuple[str, float]] = []
    if budget.latency_ms is not None:
        sums.append(("latency_ms", budget.bounds["latency_ms"] * (1 + SLACK) - model.backbone_latency_ms))
    memory = None
    if budget.memory_mb is not None:
        memory = budget.memory_mb * (1 + SLACK) - model.backbone_weights_mb

    def at_most(parameters: float | None) -> float | None:
        limits = sums
        if parameters is not None:
            limits = [*sums, ("parameters", parameters - model.plan.backbone_parameters)]
        return count_within(model, limits, memory)

    most = None if budget.parameters_max is None else budget.parameters_max * (1 + SLACK)
    total = at_most(most)
    if total is None or budget.parameters_min is None:
        return total
    below = at_most(math.ceil(budget.parameters_min * (1 - SLACK)) - 1)
    return None if below is None else max(0.0, total - below)


# Drawing ------------------------------------------------------------------------------------------------------------


def _possible(model: CostModel, budget: Budget) -> list[NDArray[np.intp]]:
    """Of each position the options that some arrangement within the memory limit may hold."""
    usable = [np.isfinite(costs.latency_ms) for costs in model.option_costs]
    if budget.memory_mb is not None and all(use.any() for use in usable):
        least = sum(float(costs.weights_mb[use].min()) for costs, use in zip(model.option_costs, usable, strict=True))
        room = budget.memory_mb * (1 + 2 * SLACK) - model.backbone_weights_mb - least
        usable = [use & (costs.point_mb <= room) for costs, use in zip(model.option_costs, usable, strict=True)]
    return [np.flatnonzero(use) for use in usable]


def _tilt(model: CostModel, budget: Budget, options: Sequence[NDArray[np.intp]]) -> list[Floats]:
    """Log weights of each position's options under which the limits are met on average (or no weight where they are).

    They minimise the log of the moment generating function: every arrangement within the limits then weighs at most
    what one exactly on them does, so the estimate has no heavy tail.
    """
    bounds = budget.bounds
    rows: list[tuple[str, float, float]] = []
    if "latency_ms" in bounds:
        rows.append(("latency_ms", 1.0, bounds["latency_ms"] - model.backbone_latency_ms))
    if "memory_mb" in bounds:
        rows.append(("weights_mb", 1.0, bounds["memory_mb"] - model.backbone_weights_mb - model.backbone_activation_mb))
    if "parameters_max" in bounds:
        rows.append(("parameters", 1.0, bounds["parameters_max"] - model.plan.backbone_parameters))
    if "parameters_min" in bounds:
        rows.append(("parameters", -1.0, model.plan.backbone_parameters - bounds["parameters_min"]))
    tables = [
        np.stack([sign * getattr(costs, name)[index] for name, sign, _ in rows], axis=1)
        for costs, index in zip(model.option_costs, options, strict=True)
    ]
    limits = np.array([bound for *_, bound in rows])
    spread = np.maximum(np.sqrt(sum(table.var(axis=0) for table in tables)), 1e-12)
    tables, limits = [table / spread for table in tables], limits / spread
    theta = np.zeros(len(rows))
    for _ in range(60):
        logs = [-table @ theta for table in tables]
        shares = [_softmax(log) for log in logs]
        gradient = limits - sum(share @ table for share, table in zip(shares, tables, strict=True))
        free = (theta > 0) | (gradient < 0)
        if not free.any() or np.abs(gradient[free]).max() < 1e-3 or theta.max() > 1e9:
            break
        curvature = sum(
            (table * share[:, None]).T @ table - np.outer(share @ table, share @ table)
            for share, table in zip(shares, tables, strict=True)
        )
        move = np.zeros(len(rows))
        move[free] = -np.linalg.lstsq(curvature[np.ix_(free, free)] + 1e-6 * np.eye(free.sum()), gradient[free])[0]
        reach = np.maximum(1.0, theta)  # no further at once than twice as much
        theta = np.clip(theta + np.clip(move, -reach, reach), 0.0, None)
    return [-table @ theta for table in tables]


def _softmax(logs: Floats) -> Floats:
    weights = np.exp(logs - logs.max())
    return np.asarray(weights / weights.sum())


def _drawn(
    model: CostModel,
    budget: Budget,
    options: Sequence[NDArray[np.intp]],
    logs: Sequence[Floats],
    count: int,
    rng: np.random.Generator,
) -> tuple[float, float] | None:
    """The share among the options and its standard error; ``None`` if too few draws met the budget to tell."""
    if all(not np.any(log) for log in logs):
        return None
    chances = [_softmax(log) for log in logs]
    # What a draw counts for: its chance if all were drawn alike, over its chance as it was drawn.
    worth = [np.log(np.exp(log - log.max()).sum()) + log.max() - math.log(len(log)) - log for log in logs]
    total = squares = 0.0
    hits = 0
    for part in _chunks(count):
        picked = [rng.choice(len(chance), part, p=chance) for chance in chances]
        met = budget.feasible(model.cost(np.stack([o[i] for o, i in zip(options, picked, strict=True)], axis=1)))
        log = np.sum([item[i[met]] for item, i in zip(worth, picked, strict=True)], axis=0)
        weights = np.exp(log)
        total, squares, hits = total + float(weights.sum()), squares + float((weights**2).sum()), hits + len(weights)
    if hits < FEW:
        return None
    mean = total / count
    return mean, math.sqrt(max(0.0, squares / count - mean**2) / count)


def _plain(
    model: CostModel,
    budget: Budget,
    options: Sequence[NDArray[np.intp]],
    part: float,
    count: int,
    rng: np.random.Generator,
) -> Share:
    """Draws that are all alike, with Wilson's interval (1927), which holds at no hit and at nothing but hits too."""
    hits = 0
    for some in _chunks(count):
        chosen = np.stack([item[rng.integers(0, len(item), some)] for item in options], axis=1)
        hits += int(budget.feasible(model.cost(chosen)).sum())
    share = hits / count
    middle = (share + Z95**2 / (2 * count)) / (1 + Z95**2 / count)
    half = Z95 / (1 + Z95**2 / count) * math.sqrt(share * (1 - share) / count + Z95**2 / (4 * count**2))
    lower, upper = (max(0.0, middle - half) if hits else 0.0), (middle + half if hits < count else 1.0)
    error = math.sqrt(share * (1 - share) / count)
    return Share(lower * part, upper * part, model.size, error * part, count, share * part)


def _chunks(count: int) -> list[int]:
    return [min(CHUNK, count - start) for start in range(0, count, CHUNK)]


def _percent(share: float) -> str:
    """Four digits behind the point, or three that count where that would show nothing."""
    return f"{share:.4%}" if share >= 1e-4 or share == 0 else f"{100 * share:.3g}%"
