"""Counting a whole space: equal to looking at every arrangement, or drawn with an interval that holds it."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from table_fixtures import small_header, small_plan, small_table

from latency_tables import Budget, CostModel, Plan, TableError
from latency_tables.count import count_within
from latency_tables.distribution import distributions, feasible_share
from latency_tables.lookup import load_table
from latency_tables.overview import overview, render

SMALL = CostModel(small_plan(), small_table())
EVERY = np.array(list(itertools.product(*(range(len(options)) for options in SMALL.options))))
COSTS = SMALL.cost(EVERY)


def quantile(column: str, share: float) -> float:
    return float(np.quantile(getattr(COSTS, column), share))


BUDGETS = [
    Budget(latency_ms=quantile("latency_ms", 0.3)),
    Budget(memory_mb=quantile("peak_mb", 0.4)),
    Budget(parameters_min=quantile("parameters", 0.2), parameters_max=quantile("parameters", 0.7)),
    Budget(latency_ms=quantile("latency_ms", 0.6), memory_mb=quantile("peak_mb", 0.5)),
    Budget(
        latency_ms=quantile("latency_ms", 0.6),
        memory_mb=quantile("peak_mb", 0.8),
        parameters_min=quantile("parameters", 0.1),
        parameters_max=quantile("parameters", 0.9),
    ),
    Budget(latency_ms=1e-3),
    Budget(latency_ms=1e9, memory_mb=1e9),
]


@pytest.mark.parametrize("budget", BUDGETS, ids=lambda budget: " ".join(budget.given))
def test_the_share_is_that_of_looking_at_every_arrangement(budget: Budget) -> None:
    found = feasible_share(SMALL, budget)
    assert found.exact and found.size == len(EVERY)
    assert round(found.lower * found.size) == int(budget.feasible(COSTS).sum())


@pytest.mark.parametrize("budget", BUDGETS, ids=lambda budget: " ".join(budget.given))
def test_a_share_that_is_not_counted_is_drawn_with_an_interval(budget: Budget, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latency_tables.distribution.count_within", lambda *_: None)
    truth = float(budget.feasible(COSTS).mean())
    found = feasible_share(SMALL, budget, draws=1 << 16)
    assert found.draws and found.lower <= truth <= found.upper
    assert found.error < 0.01 and (found.upper - found.lower < 0.02)
    assert f"{found.draws:,}" in found.sentence or truth in (0.0, 1.0)


def test_a_standard_error_is_how_far_draws_are_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latency_tables.distribution.count_within", lambda *_: None)
    monkeypatch.setattr("latency_tables.distribution.CHUNK", 1 << 12)
    for quantile_ in (0.3, 0.002):
        budget = Budget(latency_ms=quantile("latency_ms", quantile_), memory_mb=quantile("peak_mb", 0.5))
        truth = float(budget.feasible(COSTS).mean())
        found = [feasible_share(SMALL, budget, draws=1 << 12, seed=seed) for seed in range(60)]
        off = np.array([(one.share - truth) / one.error for one in found])
        assert 0.75 < off.std() < 1.3 and abs(off.mean()) < 0.5
        assert np.mean([one.lower <= truth <= one.upper for one in found]) >= 0.87


def test_a_share_of_one_in_a_billion_is_known_as_well_as_one_in_two() -> None:
    plan = Plan.load("snapgen_v")
    model = CostModel(plan, load_table("iphone16_pro_max_roofline"))
    cheapest = model.backbone_latency_ms
    found = feasible_share(model, Budget(latency_ms=cheapest * 1.08), draws=1 << 16)
    assert found.draws and 0 < found.share < 1e-9 and found.error < 0.1 * found.share
    counted = count_within(model, [("latency_ms", cheapest * 0.08)], None)
    assert counted is None
    within = Budget(latency_ms=cheapest * 1.08, memory_mb=2750.0)
    assert 0 < feasible_share(model, within, draws=1 << 16).share <= found.upper


def test_layers_that_weigh_nothing_are_counted() -> None:
    table = small_table()
    table.append([dataclasses.replace(row, weights_mb=0.0) for row in table])
    model = CostModel(small_plan(), table)
    costs = model.cost(EVERY)
    for latency, memory in itertools.product((0.2, 0.7), (0.3, 0.9)):
        budget = Budget(
            latency_ms=float(np.quantile(costs.latency_ms, latency)),
            memory_mb=float(np.quantile(costs.peak_mb, memory)),
        )
        assert round(feasible_share(model, budget).lower * len(EVERY)) == int(budget.feasible(costs).sum())
    assert feasible_share(model, Budget(memory_mb=float(costs.peak_mb.min()) * 0.9)).upper == 0


def test_a_negative_cost_of_a_correction_is_counted_right() -> None:
    fit = {"form": "scale + per layer", "offset_ms": 0.0, "scale": 1.0, "per_layer_ms": -0.9, "networks": 9}
    fit |= {"mape": 0.01, "worst": 0.02, "interval": 0.02, "bare_mape": 0.03}
    model = CostModel(small_plan(), small_table(header=small_header(correction=fit)))
    costs = model.cost(EVERY)
    assert (costs.latency_ms < model.backbone_latency_ms).any()
    budget = Budget(latency_ms=float(np.median(costs.latency_ms)))
    assert feasible_share(model, budget).lower == pytest.approx(budget.feasible(costs).mean())


def test_a_layer_that_cannot_run_is_in_the_size_and_never_in_the_share() -> None:
    table = small_table()
    bad = next(row for row in table if row.block != "backbone" and "Conv3D" in row.key)
    table.append(dataclasses.replace(bad, status="oom", reason="too large", latency_ms_median=None))
    model = CostModel(small_plan(), table)
    costs = model.cost(EVERY)
    found = feasible_share(model, Budget(latency_ms=1e9))
    assert found.lower == found.upper == pytest.approx(np.isfinite(costs.latency_ms).mean())
    assert found.upper < 1


@pytest.mark.parametrize("column", ["latency_ms", "peak_mb", "parameters"])
def test_percentiles_are_those_of_every_arrangement(column: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.sort(getattr(COSTS, column))
    exact = distributions(SMALL)[column]
    monkeypatch.setattr("latency_tables.distribution.WHOLE", 1)
    drawn = distributions(SMALL, draws=1 << 16)[column]
    assert exact.draws == 0 and drawn.draws == 1 << 16
    for percent in (1, 25, 50, 90, 99):
        truth = values[int(np.ceil(percent / 100 * len(values))) - 1]
        assert exact.percentile(percent) == (truth, truth)
        low, high = drawn.percentile(percent)
        assert low <= truth <= high and np.mean((values >= low) & (values < high)) < 0.02


def test_what_cannot_be_asked_is_refused() -> None:
    table = small_table()
    table.append([dataclasses.replace(row, activation_peak_mb=None) for row in table])
    model = CostModel(small_plan(), table)
    assert "peak_mb" not in distributions(model)
    with pytest.raises(TableError, match="memory is unknown"):
        feasible_share(model, Budget(memory_mb=10))


def test_the_overview_says_what_fits_with_and_without_the_margin() -> None:
    budget = Budget(latency_ms=quantile("latency_ms", 0.3))
    found = overview(SMALL, budget)
    assert found.share is not None and found.held is not None and found.held.upper < found.share.lower
    assert found.extremes["latency_ms"]["min"]["value"] == pytest.approx(COSTS.latency_ms.min())
    assert found.extremes["peak_mb"]["max"]["value"] == pytest.approx(COSTS.peak_mb.max())
    text = render(found)
    assert "with the margin kept" in text and "cheapest" in text
    none = overview(SMALL, Budget(latency_ms=COSTS.latency_ms.min() * 0.5))
    assert none.infeasible is not None and none.held is not None and none.held.upper == 0
