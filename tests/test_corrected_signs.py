"""A fitted correction may make layers cheaper than none: everything that optimises or counts costs lives with that."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from search_problems import KnownQuality, tiny_problem
from table_fixtures import small_header, small_plan, small_table

from latency_tables import TableError
from latency_tables.budget import Budget, nearest
from latency_tables.correction import FORMS, Correction
from latency_tables.cost import CostModel
from latency_tables.distribution import distributions, feasible_share
from latency_tables.optimum import Limits, optimum
from nas.search.samplers import SAMPLERS
from nas.search.study import search
from nas.search.surrogate import Features, exact_front
from nas.search.within import WithinBudget

TERMS = {"scale": 0.2, "offset": 5.0, "per_layer": -1.2}


def fitted(form: str, **terms: float) -> dict[str, object]:
    """A correction of this form, as a header keeps it."""
    free = {name: {**TERMS, **terms}[name] for name in FORMS[form]}
    values = {"scale": 1.0, "offset": 0.0, "per_layer": 0.0, **free}
    fit = Correction(form, values["offset"], values["scale"], values["per_layer"], 0.01, 0.02, 0.02, 20, 0.05)
    return fit.to_mapping()


def small_model(form: str) -> CostModel:
    plan = small_plan(("down.0.0", "down.1.0", "up.0.0"))
    return CostModel(plan, small_table(plan, header=small_header(correction=fitted(form, scale=0.9, per_layer=-0.8))))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sampler", sorted(set(SAMPLERS) - {"gp"}))
def test_every_cost_model_that_a_correction_can_give_searches(form: str, sampler: str, tmp_path: Path) -> None:
    problem = tiny_problem(correction=fitted(form))
    middle = float(np.median(problem.cost(problem.costs.random(500, np.random.default_rng(0))).latency_ms))
    problem = tiny_problem(Budget(latency_ms=middle), correction=fitted(form))
    settings = {"identity": {}, "trials": 12, "sampler": sampler, "seed": 0}
    found = search(problem, KnownQuality(problem), tmp_path / "study.journal", **settings)
    searched = [e for e in found if not e.is_reference]
    assert len(searched) == 12 and all(e.feasible for e in searched)


def test_the_exact_front_finds_what_is_cheaper_than_the_bare_backbone() -> None:
    problem = tiny_problem(correction=fitted("scale + per layer"))
    features = Features.of(problem)
    weights = np.random.default_rng(0).standard_normal(features.unary[0].shape[1])
    front = exact_front(problem, features, weights, grid=4000)
    assert np.allclose(features(front.choices) @ weights, front.quality)
    sample = problem.costs.random(50_000, np.random.default_rng(1))
    quality, latency = features(sample) @ weights, problem.cost(sample).latency_ms
    assert front.latency_ms.min() < problem.costs.backbone_latency_ms
    for limit in np.quantile(latency, [0.01, 0.1, 0.5, 0.9]):
        assert front.quality[front.latency_ms <= limit].min() <= quality[latency <= limit].min() + 1e-9


def test_a_budget_under_the_bare_backbone_is_searched(tmp_path: Path) -> None:
    free = tiny_problem(correction=fitted("scale + per layer"))
    limit = free.costs.backbone_latency_ms - 3.0
    problem = tiny_problem(Budget(latency_ms=limit), correction=fitted("scale + per layer"))
    settings = {"identity": {}, "trials": 8, "sampler": "surrogate", "seed": 0}
    found = search(problem, KnownQuality(problem), tmp_path / "study.journal", **settings)
    assert sum(e.feasible for e in found if not e.is_reference) == 8
    assert all(problem.feasible(problem.indices_of(WithinBudget(problem)(0, step)[0]))[0] for step in range(8))


@pytest.mark.parametrize("form", FORMS)
def test_optimum_nearest_and_shares_are_those_of_all_arrangements(form: str) -> None:
    model = small_model(form)
    every = np.array(list(itertools.product(*(range(len(options)) for options in model.options))))
    costs = model.cost(every)
    assert (form in ("none", "scale", "scale + offset")) == (costs.latency_ms.min() >= model.backbone_latency_ms - 1e-9)
    for sense, best in (("min", costs.latency_ms.min()), ("max", costs.latency_ms.max())):
        found = optimum(model, "latency_ms", sense=sense)
        assert found is not None and model.cost(found[None]).latency_ms[0] == pytest.approx(best)
    for quantile in (0.1, 0.5, 0.9):
        limit = float(np.quantile(costs.latency_ms, quantile))
        most = optimum(model, "parameters", Limits(latency_ms=limit), sense="max")
        assert most is not None
        assert model.cost(most[None]).parameters[0] == costs.parameters[costs.latency_ms <= limit * (1 + 1e-9)].max()
        share = feasible_share(model, Budget(latency_ms=limit))
        assert share.exact and share.lower == pytest.approx(np.mean(costs.latency_ms <= limit * (1 + 1e-9)))
    told = distributions(model)["latency_ms"]
    assert np.allclose(told.values, np.sort(costs.latency_ms))
    missed = nearest(model, Budget(latency_ms=0.5 * float(costs.latency_ms.min())))
    assert missed is not None and missed.costs.latency_ms[0] == pytest.approx(costs.latency_ms.min())


def test_a_correction_by_which_a_whole_network_costs_less_than_nothing_is_one_line() -> None:
    with pytest.raises(TableError, match=r"scale \+ per layer.*-30 ms a layer\) makes a whole network cost -") as error:
        tiny_problem(correction=fitted("scale + per layer", per_layer=-30.0))
    assert "\n" not in str(error.value)
