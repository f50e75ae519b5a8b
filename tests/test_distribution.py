"""Counting a whole space: equal to looking at every arrangement, or bounds that hold it."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from table_fixtures import small_header, small_plan, small_table

from latency_tables import Budget, CostModel, TableError
from latency_tables.distribution import distribution, feasible_share
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
def test_bounds_from_a_coarse_grid_hold_the_truth(budget: Budget, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latency_tables.distribution.DISTINCT", 1)
    truth = float(budget.feasible(COSTS).mean())
    widths = []
    for cells in (300, 90_000):
        found = feasible_share(SMALL, budget, cells=cells)
        assert found.lower - 1e-12 <= truth <= found.upper + 1e-12
        widths.append(found.upper - found.lower)
    assert widths[1] <= widths[0]


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
def test_percentiles_hold_those_of_every_arrangement(column: str) -> None:
    found = distribution(SMALL, column)
    values = np.sort(getattr(COSTS, column))
    step = found.thresholds[1] - found.thresholds[0]
    for percent in (1, 25, 50, 90, 99):
        low, high = found.percentile(percent)
        truth = values[int(np.ceil(percent / 100 * len(values))) - 1]
        assert low - 1e-9 <= truth <= high + 1e-9 and high - low <= 1.01 * step


def test_what_cannot_be_asked_is_refused() -> None:
    with pytest.raises(TableError, match="no distribution of 'colour'"):
        distribution(SMALL, "colour")
    table = small_table()
    table.append([dataclasses.replace(row, activation_peak_mb=None) for row in table])
    with pytest.raises(TableError, match="memory is unknown"):
        feasible_share(CostModel(small_plan(), table), Budget(memory_mb=10))


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
