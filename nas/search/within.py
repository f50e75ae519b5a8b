"""Arrangements drawn uniformly among those that meet a budget."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from latency_tables.knapsack import SLACK
from nas.errors import NasError
from search_spaces.arrangement import Arrangement
from search_spaces.variant import Variant

if TYPE_CHECKING:
    from nas.search.problem import Problem


Floats = NDArray[np.float64]

TRIES = 1000  # draws of one step that may break a limit other than the latency's


class WithinBudget:
    """Arrangements that meet a budget, each as likely as every other: none of the training goes to networks that can
    never ship.

    Completions are counted by dynamic programming over positions on an integer grid of latency, each cost rounded down,
    so that the counted set holds all that is feasible; options are drawn in proportion to the counts, and what breaks a
    limit after all (the rounding, the memory, the parameters) is drawn anew. Rejection leaves the rest uniform.

    Args:
        problem: space, costs and budget; the table's margin is kept.

    Raises:
        NasError: if nothing meets the budget.
    """

    def __init__(self, problem: Problem, grid: int = 2048) -> None:
        self._problem = problem
        model = problem.costs
        costs = [np.where(np.isfinite(option.latency_ms), option.latency_ms, np.inf) for option in model.option_costs]
        least = [float(values.min()) for values in costs]  # a correction may make layers cheaper than none
        costs = [values - low for values, low in zip(costs, least, strict=True)]
        dearest = sum(float(values[np.isfinite(values)].max()) for values in costs)
        room = problem.budget.bounds.get("latency_ms", np.inf) - model.backbone_latency_ms - sum(least)
        limit = min(room * (1 + 1e-9), dearest)
        step = max(limit, 1e-9) / grid
        self._bins = [
            np.where(np.isfinite(v), np.floor(np.where(np.isfinite(v), v, 0) / step), grid + 1) for v in costs
        ]
        self._bins = [bins.astype(np.int64) for bins in self._bins]
        self._grid = grid
        counts = [np.ones(grid + 1)]  # completions from a position on, by what is left of the budget
        for bins in reversed(self._bins):
            after, here = counts[-1], np.zeros(grid + 1)
            for shift in bins[bins <= grid]:
                here[shift:] += after[: grid + 1 - shift]
            counts.append(here)
        self._counts = counts[::-1]
        if limit < 0 or not self._counts[0][grid]:
            raise NasError(
                "train.paths=within_budget: no arrangement meets the latency limit; loosen search.latency_ms"
            )

    def __call__(self, seed: int, step: int) -> list[Arrangement]:
        """One arrangement: a function of seed and step."""
        rng = np.random.default_rng([seed, step, 2])
        for _ in range(TRIES):
            choice, left = np.zeros(len(self._bins), dtype=np.int64), self._grid
            for p, bins in enumerate(self._bins):
                rest = left - bins
                weight = np.where(rest >= 0, self._counts[p + 1][np.maximum(rest, 0)], 0.0)
                choice[p] = int(np.searchsorted(np.cumsum(weight), rng.random() * weight.sum(), side="right"))
                left = int(rest[choice[p]])
            if self._problem.feasible(choice)[0]:
                return [self._problem.arrangement(choice)]
        raise NasError(
            f"train.paths=within_budget: none of {TRIES} arrangements within the latency limit meets the other limits; "
            "loosen them, or use train.paths=fair"
        )


def possible(problem: Problem) -> list[NDArray[np.bool_]]:
    """Of each position, the options that some arrangement within the budget may have, shape (options,).

    An option is impossible where the cheapest of everything else beside it breaks a limit: by latency, by the peak, by
    the parameters, each for itself. What breaks only several limits together counts as possible.
    """
    model, bounds = problem.costs, problem.budget.bounds
    options = model.option_costs
    alive = [np.isfinite(option.latency_ms) for option in options]
    found = [usable.copy() for usable in alive]

    def at_most(columns: list[Floats], start: float, limit: float) -> None:
        least = [float(c[usable].min(initial=np.inf)) for c, usable in zip(columns, alive, strict=True)]
        for p, column in enumerate(columns):
            rest = start + sum(least[:p] + least[p + 1 :])
            found[p] &= rest + column <= limit + abs(limit) * SLACK

    if "latency_ms" in bounds:
        at_most([o.latency_ms for o in options], model.backbone_latency_ms, bounds["latency_ms"])
    parameters, start = [np.asarray(o.parameters, dtype=float) for o in options], float(model.plan.backbone_parameters)
    if "parameters_max" in bounds:
        at_most(parameters, start, bounds["parameters_max"])
    if "parameters_min" in bounds:
        at_most([-column for column in parameters], -start, -bounds["parameters_min"])
    if "memory_mb" in bounds and not model.unknown_memory:
        lowest = [float(o.point_mb[usable].min(initial=np.inf)) for o, usable in zip(options, alive, strict=True)]
        for p, option in enumerate(options):
            others = max([model.backbone_activation_mb, *lowest[:p], *lowest[p + 1 :]])
            weights = [float(o.weights_mb[u].min(initial=np.inf)) for o, u in zip(options, alive, strict=True)]
            rest = model.backbone_weights_mb + sum(weights[:p] + weights[p + 1 :])
            peak = rest + option.weights_mb + np.maximum(option.point_mb, others)
            found[p] &= peak <= bounds["memory_mb"] * (1 + SLACK)
    return found


def layers_within(problem: Problem) -> dict[str, list[list[Variant]]]:
    """Position -> of each slot, the variants that some arrangement within the budget may have there.

    The baseline's are among them, whatever it costs: it is trained first, and compared with.
    """
    space, baseline = problem.space, problem.space.baseline()
    found: dict[str, list[list[Variant]]] = {}
    for position, usable in zip(space.positions, possible(problem), strict=True):
        kept = [option for option, fits in zip(space.options(position.name), usable, strict=True) if fits]
        kept.append(baseline.at(position.name))
        found[position.name] = [
            [variant for variant in position.variants if any(option[slot : slot + 1] == (variant,) for option in kept)]
            for slot in range(position.most)
        ]
    return found
