"""Answers under several limits where ranges of peaks are searched at once and the very best cannot always be told."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from table_fixtures import every_arrangement, small_header, small_plan, small_table

from latency_tables import Budget, CostModel, Plan, Table, TableError, nearest
from latency_tables.knapsack import Undecided
from latency_tables.optimum import CLOSE, Limits, optimum

MODEL = CostModel(small_plan(), small_table(seed=5))
EVERY = every_arrangement([13] * 4)
COSTS = MODEL.cost(EVERY)


def repeated(times: int, seed: int = 0) -> CostModel:
    """A model of `snapgen_v` with its positions repeated, every layer with costs of its own."""
    plan = Plan.load("snapgen_v")
    rng = np.random.default_rng(seed)
    positions, points = [], []
    for i in range(times):
        for position in plan.positions:
            layers = tuple(dataclasses.replace(layer, workload=f"{layer.workload}r{i}") for layer in position.layers)
            positions.append(dataclasses.replace(position, name=f"{position.name}.r{i}", layers=layers))
            point = next(point for point in plan.points if (point.kind, point.name) == ("position", position.name))
            points.append(dataclasses.replace(point, name=f"{position.name}.r{i}"))
    grown = dataclasses.replace(plan, positions=tuple(positions), points=tuple(points))
    rows = small_table(grown, seed=seed, header=small_header(precision="fp16"))
    spread = [
        dataclasses.replace(row, activation_peak_mb=float(np.exp(rng.normal(5, 0.5))))
        if row.block != "backbone"
        else row
        for row in rows
    ]
    return CostModel(grown, Table(rows.header, spread))


@pytest.mark.parametrize(("objective", "sense"), [("parameters", "max"), ("latency_ms", "min"), ("peak_mb", "min")])
def test_an_answer_that_cannot_be_told_from_the_best_is_within_a_thousandth_of_it(
    objective: str, sense: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latency_tables.optimum._EXACT", 0)
    real, met = optimum.__globals__["knapsack"], []

    def crowded(model: Any, options: Any, search: Any, *more: Any) -> Any:
        met.append(search.tolerance)
        if not search.tolerance:
            raise Undecided("too many")
        return real(model, options, search, *more)

    monkeypatch.setattr("latency_tables.optimum.knapsack", crowded)
    rng = np.random.default_rng(2)
    for _ in range(12):
        limits = Limits(
            float(np.quantile(COSTS.latency_ms, rng.uniform(0.2, 0.9))),
            float(np.quantile(COSTS.peak_mb, rng.uniform(0.2, 0.9))),
            float(np.quantile(COSTS.parameters, rng.uniform(0.0, 0.3))),
        )
        inside = (COSTS.latency_ms <= limits.latency_ms) & (COSTS.peak_mb <= limits.peak_mb)
        inside &= COSTS.parameters >= limits.parameters_min
        found = optimum(MODEL, objective, limits, sense)
        if found is None:
            # Only where nothing is there; a feasible answer is never lost to the tolerance.
            assert not inside.any()
            continue
        cost = MODEL.cost(found[None])
        best = getattr(COSTS, objective)[inside]
        best = best.max() if sense == "max" else best.min()
        assert abs(getattr(cost, objective)[0] - best) <= 1.0001 * CLOSE * best
        assert Budget(limits.latency_ms, limits.peak_mb, limits.parameters_min).feasible(cost)[0]
    assert set(met) == {0.0, CLOSE}
    with pytest.raises(Undecided):
        optimum(MODEL, objective, Limits(peak_mb=float(COSTS.peak_mb.max())), sense, effort="exact")


def test_limits_together_are_met_in_a_space_of_many_positions() -> None:
    model = repeated(4)
    costs = model.cost(model.random(2000, np.random.default_rng(0)))
    limits = Limits(float(np.quantile(costs.latency_ms, 0.2)), float(np.quantile(costs.peak_mb, 0.2)))
    best = optimum(model, "parameters", limits, "max")
    assert best is not None
    found = model.cost(best[None])
    within = (costs.latency_ms <= limits.latency_ms) & (costs.peak_mb <= limits.peak_mb)
    assert Budget(limits.latency_ms, limits.peak_mb).feasible(found)[0]
    assert found.parameters[0] > costs.parameters[within].max()
    # Weights and parameters go together, so the limit bounds the answer: it comes within a hundredth of that.
    alone = optimum(model, "parameters", Limits(peak_mb=limits.peak_mb), "max")
    assert alone is not None and found.parameters[0] <= model.cost(alone[None]).parameters[0] * (1 + CLOSE)


def test_the_nearest_budget_of_a_large_space_is_one_that_is_met() -> None:
    model = repeated(2, seed=1)
    costs = model.cost(model.random(2000, np.random.default_rng(0)))
    budget = Budget(
        latency_ms=float(costs.latency_ms.min()) * 0.5,
        memory_mb=float(costs.peak_mb.min()) * 0.6,
        parameters_min=float(np.median(costs.parameters)),
    )
    found = nearest(model, budget)
    assert found is not None and found.budget.feasible(found.costs)[0]
    worst = max(float(values[0]) for values in budget.violations(found.costs).values())
    others = np.max(list(budget.violations(costs).values()), axis=0)
    assert worst < others.min()
    assert nearest(model, dataclasses.replace(found.budget)) is None


def test_a_limit_of_nothing_has_no_answer() -> None:
    assert optimum(MODEL, "parameters", Limits(latency_ms=0.1), "max") is None
    with pytest.raises(TableError, match="use min or max of"):
        optimum(MODEL, "colour")
