"""Budgets and exact answers, each compared with the enumeration of a whole small space."""

from __future__ import annotations

import time

import numpy as np
import pytest
from table_fixtures import every_arrangement, small_header, small_plan, small_record, small_table

from latency_tables import Budget, CostModel, Plan, Table, TableError, nearest
from latency_tables.optimum import Limits, extremes, marginal, optimum

PLAN = small_plan()


@pytest.fixture(scope="module")
def small():
    model = CostModel(PLAN, small_table(PLAN, seed=5))
    everything = every_arrangement([13] * 4)
    return model, everything, model.cost(everything)


def random_budget(costs, rng, parts, tight=1.0):
    pick = {
        "latency_ms": lambda: float(np.quantile(costs.latency_ms, rng.uniform(0, 0.9)) * rng.uniform(0.7, 1.1) * tight),
        "memory_mb": lambda: float(np.quantile(costs.peak_mb, rng.uniform(0, 0.9)) * rng.uniform(0.8, 1.05) * tight),
        "parameters_min": lambda: float(
            np.quantile(costs.parameters, rng.uniform(0.1, 1.0)) * rng.uniform(0.95, 1.3) / tight
        ),
    }
    limits = {name: pick[name]() for name in parts}
    if "parameters_min" in limits and rng.random() < 0.5:
        limits["parameters_max"] = limits["parameters_min"] * float(rng.uniform(1.0, 1.1))
    return Budget(**limits)


@pytest.mark.parametrize("objective", ["latency_ms", "weights_mb", "peak_mb", "parameters"])
@pytest.mark.parametrize("sense", ["min", "max"])
def test_an_optimum_within_limits_equals_enumeration(small, objective, sense):
    model, everything, costs = small
    rng = np.random.default_rng(7)
    found_some = 0
    for _ in range(25):
        budget = random_budget(costs, rng, ["latency_ms", "memory_mb", "parameters_min"])
        peak = np.inf if (objective, sense) == ("peak_mb", "max") else budget.memory_mb
        limits = Limits(budget.latency_ms, peak, budget.parameters_min, budget.parameters_max or np.inf)
        inside = (costs.latency_ms <= limits.latency_ms) & (costs.peak_mb <= limits.peak_mb)
        inside &= (costs.parameters >= limits.parameters_min) & (costs.parameters <= limits.parameters_max)
        answer = optimum(model, objective, limits, sense)
        assert (answer is None) == (not inside.any())
        if answer is None:
            continue
        found_some += 1
        values = getattr(costs, objective)[inside]
        value = getattr(model.cost(answer[None]), objective)[0]
        assert value == pytest.approx(values.min() if sense == "min" else values.max(), rel=1e-12)
    assert found_some


def test_extremes_equal_enumeration(small):
    model, _, costs = small
    for name, ends in extremes(model).items():
        for sense, answer in ends.items():
            value = getattr(model.cost(answer[None]), name)[0]
            assert value == pytest.approx(getattr(getattr(costs, name), sense)())


def expected_nearest(budget, costs):
    """The rule in words: one limit alone, changed least; else all limits, the largest change least."""
    violations = {name: np.maximum(values, 0.0) for name, values in budget.violations(costs).items()}
    missed = np.sum([values > 1e-9 for values in violations.values()], axis=0)
    worst = np.max(list(violations.values()), axis=0)
    return worst[missed == 1].min() if (missed == 1).any() else worst.min()


@pytest.mark.parametrize(
    "parts",
    [["latency_ms"], ["memory_mb"], ["latency_ms", "memory_mb"], ["latency_ms", "parameters_min"],
     ["memory_mb", "parameters_min"], ["latency_ms", "memory_mb", "parameters_min"]],
)  # fmt: skip
def test_nearest_equals_enumeration(small, parts):
    model, _, costs = small
    rng = np.random.default_rng(len(parts))
    infeasible = 0
    for _ in range(25):
        budget = random_budget(costs, rng, parts, tight=rng.uniform(0.15, 1.0))
        answer = nearest(model, budget)
        feasible = budget.feasible(costs).any()
        assert (answer is None) == feasible
        if answer is None:
            continue
        infeasible += 1
        worst = max(float(values[0]) for values in budget.violations(answer.costs).values())
        assert worst == pytest.approx(expected_nearest(budget, costs), abs=1e-8)
        assert answer.budget.feasible(answer.costs)[0]
        assert answer.limit.split(" + ")[0] in budget.given and answer.amount > 0
        assert f"{answer.limit.split(' + ')[0]} " in answer.message and "\n" not in answer.message
    assert infeasible


def test_the_budget_in_the_message_is_feasible_when_typed_back(small):
    model, _, _ = small
    answer = nearest(model, Budget(latency_ms=8.0, memory_mb=7.0, parameters_min=180_000))
    text = answer.message.split("nearest feasible budget: ")[1].split(" (")[0]
    typed = Budget(**{part.split()[0]: float(part.split()[1]) for part in text.split(", ")})
    assert typed.feasible(answer.costs)[0] and nearest(model, typed) is None


def test_below_the_bare_backbone_the_answer_names_limit_amount_and_arrangement(small):
    answer = nearest(small[0], Budget(latency_ms=4.0))
    assert answer.limit == "latency_ms" and answer.amount == pytest.approx(1.0)
    assert answer.budget == Budget(latency_ms=5.0) and not answer.arrangement.any()
    assert "latency_ms 4.000 ms is missed: nearest is 5.000 ms (1.000 ms over, 25.0%)" in answer.message
    assert "the backbone alone" in answer.message


def test_limits_reachable_apart_but_not_together_are_said_to_be_so(small):
    model, _, costs = small
    budget = Budget(memory_mb=6.45, parameters_min=float(np.quantile(costs.parameters, 0.9)))
    answer = nearest(model, budget)
    by_name = {miss.limit: miss for miss in answer.misses}
    assert by_name["memory_mb"].alone <= 6.45 and by_name["parameters_min"].alone >= budget.parameters_min
    assert by_name["memory_mb"].within > 6.45 and by_name["memory_mb"].by > 0
    assert "without the other limits" in answer.message


def test_feasible_and_violations_speak_in_fractions_of_the_limit(small):
    model, everything, costs = small
    budget = Budget(latency_ms=10.0, memory_mb=8.0, parameters_min=150_000)
    excess = budget.violations(costs)
    np.testing.assert_allclose(excess["latency_ms"], costs.latency_ms / 10.0 - 1)
    np.testing.assert_allclose(excess["parameters_min"], 1 - costs.parameters / 150_000)
    np.testing.assert_array_equal(budget.feasible(costs), np.all([v <= 1e-9 for v in excess.values()], axis=0))
    assert Budget().feasible(costs).all() and nearest(model, Budget()) is None


def test_a_budget_held_to_a_margin_is_stricter_in_latency_alone(small):
    held = Budget(latency_ms=11.0, memory_mb=5.0).held(0.1)
    assert held.given == {"latency_ms": 11.0, "memory_mb": 5.0}
    assert held.bounds == {"latency_ms": pytest.approx(10.0), "memory_mb": 5.0}
    model = small[0]
    costs = model.cost(model.random(200, np.random.default_rng(0)))
    limit = float(np.median(costs.latency_ms))
    np.testing.assert_array_equal(
        Budget(latency_ms=limit).held(0.1).feasible(costs), Budget(latency_ms=limit / 1.1).feasible(costs)
    )


def test_the_nearest_budget_of_a_held_one_works_when_it_is_asked_for_again(small):
    model = small[0]
    cheapest = float(nearest(model, Budget(latency_ms=0.5)).costs.latency_ms[0])
    asked = Budget(latency_ms=1.05 * cheapest).held(0.1)  # met by the bare prediction, not with the margin
    refused = nearest(model, asked)
    assert refused is not None and "a margin of 10.0% kept" in refused.message
    assert refused.budget.latency_ms == pytest.approx(1.1 * cheapest)
    assert nearest(model, Budget(latency_ms=refused.budget.latency_ms).held(0.1)) is None


@pytest.mark.parametrize(
    ("limits", "words"),
    [({"latency_ms": 0}, "latency_ms must be a number over 0"), ({"memory_mb": float("nan")}, "memory_mb"),
     ({"parameters_min": 5, "parameters_max": 4}, "swap them"), ({"latency_ms": "fast"}, "leave it out")],
)  # fmt: skip
def test_limits_that_mean_nothing_are_refused(limits, words):
    with pytest.raises(TableError, match=words):
        Budget(**limits)


def test_failed_workloads_are_never_part_of_an_answer():
    table = small_table(PLAN, seed=5)
    for workload in PLAN.workloads[1:]:
        if "Conv3D" in workload:
            table.append([small_record(f"{workload}@fp32", None, status="oom", reason="too big")])
    model = CostModel(PLAN, table)
    most = optimum(model, "parameters", sense="max")
    assert all("Conv3D" not in label for labels in model.decode(most).values() for label in labels)
    answer = nearest(model, Budget(parameters_min=10_000_000))
    assert answer.costs.parameters[0] == model.cost(most[None]).parameters[0]


def test_a_memory_limit_without_known_memory_is_an_error_and_latency_still_works():
    table = small_table(PLAN)
    blind = [small_record(row.key, row.latency_ms_median, activation_peak_mb=None) for row in table]
    model = CostModel(PLAN, Table(small_header(), blind))
    with pytest.raises(TableError, match="memory is unknown for 7 workloads"):
        nearest(model, Budget(memory_mb=100.0))
    assert nearest(model, Budget(latency_ms=4.0)).amount == pytest.approx(1.0)
    assert "peak_mb" not in extremes(model)


def test_marginal_costs_are_differences_of_whole_costs(small):
    model, _, _ = small
    indices = model.random(1, np.random.default_rng(4))[0]
    rows = marginal(model, indices)
    assert len(rows) == 4 * 12
    base = model.cost(indices[None])
    for row in rows[::7]:
        other = model.cost(model.encode({**model.decode(indices), row["position"]: row["layers"]})[None])
        assert row["latency_ms"] == pytest.approx(other.latency_ms[0] - base.latency_ms[0])
        assert row["peak_mb"] == pytest.approx(other.peak_mb[0] - base.peak_mb[0])


def test_the_largest_space_is_answered_at_once():
    plan = Plan.load("snapgen_v")
    model = CostModel(plan, small_table(plan, header=small_header(precision="fp16")))
    start = time.process_time()  # not the wall's: a busy machine takes none of it away
    assert nearest(model, Budget(latency_ms=4.0)) is not None
    assert nearest(model, Budget(latency_ms=60.0, memory_mb=3000.0, parameters_min=500_000_000)) is None
    assert nearest(model, Budget(latency_ms=6.0, memory_mb=3000.0, parameters_min=500_000_000)) is not None
    assert time.process_time() - start < 5.0
