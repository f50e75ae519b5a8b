"""Reasons: each is what the known quality says, with its doubt, and the distance to the best is honest."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from search_problems import KnownQuality, tiny_problem

from latency_tables.budget import Budget
from nas.search.explain import Explanation, explain, left_out_error, render
from nas.search.front import pareto_front
from nas.search.problem import Problem
from nas.search.study import Evaluation, search
from nas.search.surrogate import Features, Posterior
from search_spaces.arrangement import Arrangement

LIMIT = 110.0


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Problem, KnownQuality, list[Evaluation]]:
    problem = tiny_problem(Budget(latency_ms=LIMIT, memory_mb=60.0))
    quality = KnownQuality(problem)
    where = tmp_path_factory.mktemp("explain") / "study.journal"
    return problem, quality, search(problem, quality, where, identity={}, trials=60, sampler="surrogate", seed=0)


def reasons(searched: tuple[Problem, KnownQuality, list[Evaluation]]) -> tuple[Explanation, Evaluation]:
    problem, quality, found = searched

    def difference(a: Arrangement, b: Arrangement) -> tuple[float, float]:
        return quality.loss(a) - quality.loss(b), 0.001

    chosen = min(pareto_front(found), key=lambda e: e.loss)
    return explain(problem, found, chosen, difference), chosen


def test_a_position_is_worth_what_the_network_loses_without_it(searched) -> None:
    told, chosen = reasons(searched)
    problem, quality, _ = searched
    held = [name for name, variants in chosen.arrangement.layers if variants]
    assert {row.position for row in told.positions} == set(held)
    for row in told.positions:
        without = chosen.arrangement.replace(row.position, ())
        assert row.loss == pytest.approx(quality.loss(without) - chosen.loss)
        less = problem.cost(problem.indices_of(without))
        assert row.latency_ms == pytest.approx(chosen.latency_ms - float(less.latency_ms[0]))
        assert abs(row.modelled - row.loss) < 0.1  # sixty evaluations of a quality that is nearly additive
    assert [row.loss for row in told.positions] == sorted((row.loss for row in told.positions), reverse=True)
    total = sum(row.latency_ms for row in told.positions)
    assert total == pytest.approx(chosen.latency_ms - problem.costs.backbone_latency_ms)


def test_more_room_is_never_worth_less_than_nothing(searched) -> None:
    told, _ = reasons(searched)
    assert [more.what for more in told.more] == ["50 ms more", "100 MB more", "both"]
    for more in told.more:
        assert more.low <= more.loss <= more.high and more.loss < 0.01  # a rounding of the model's latency grid aside
    assert told.more[2].loss <= min(told.more[0].loss, told.more[1].loss) + 0.01


def test_designs_by_hand_stand_beside_it(searched) -> None:
    told, chosen = reasons(searched)
    problem, quality, _ = searched
    named = {design.name: design for design in told.designs}
    assert set(named) == set(problem.hand_made())
    empty = named["no temporal layers"]
    assert empty.difference == pytest.approx(1.0 - chosen.loss) and empty.feasible


def test_the_distance_shrinks_as_evaluations_come_in(searched) -> None:
    problem, quality, found = searched

    def distance(count: int) -> float:
        seen = found[:count]
        chosen = min(pareto_front(seen), key=lambda e: e.loss)
        return explain(problem, seen, chosen, lambda a, b: (0.0, 1.0)).regret

    assert 0.0 <= distance(60) < distance(12)


def test_the_model_s_error_is_of_evaluations_it_has_not_seen() -> None:
    problem = tiny_problem()
    features = Features.of(problem)
    rng = np.random.default_rng(0)
    choices = rng.integers(0, problem.num_options, (80, 6))
    noise = rng.standard_normal(80)
    assert left_out_error(features, choices, noise) > 0.8  # nothing can be learned of noise
    fitted = Posterior.fit(features(choices), noise)
    assert np.sqrt(np.mean((fitted.predict(features(choices)) - noise) ** 2)) < left_out_error(features, choices, noise)
    exact = features(choices) @ rng.standard_normal(features.unary[0].shape[1])
    assert left_out_error(features, choices, exact) < 0.5 * exact.std()
    assert np.isnan(left_out_error(features, choices[:5], noise[:5]))


def test_it_reads_well_and_keeps(searched, tmp_path: Path) -> None:
    told, chosen = reasons(searched)
    text = render(told)
    assert chosen.arrangement.key in text and "by the additive model" in text and "design by hand" in text
    assert all(len(line) < 200 for line in text.splitlines())
    assert json.loads(json.dumps(told.to_json()))["key"] == chosen.arrangement.key


def test_a_difference_within_its_error_is_said_to_be_nothing(searched) -> None:
    problem, _, found = searched
    chosen = min(pareto_front(found), key=lambda e: e.loss)
    told = explain(problem, found, chosen, lambda a, b: (0.001, 0.01))
    assert not any(row.told_from_nothing for row in told.positions)
    assert render(told).count("cannot be told from nothing") == len(told.positions)
