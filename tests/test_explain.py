"""Reasons: each is what the known quality says, with its doubt, and the distance to the best is honest."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from search_problems import KnownQuality, tiny_problem

from latency_tables.budget import Budget
from nas.report.searching import reasons as page_reasons
from nas.search.explain import Explanation, explain, left_out_error, render
from nas.search.front import pareto_front
from nas.search.problem import Problem
from nas.search.studies import Evaluation
from nas.search.study import search
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


def test_more_room_is_tried_with_what_needs_it(searched) -> None:
    told, chosen = reasons(searched)
    problem, quality, found = searched
    assert [more.what for more in told.more] == ["50 ms more", "100 MB more", "both"]
    more = told.more[0]
    assert more.tried > 0 and more.loss_stderr == 0.001
    better = min(
        quality.loss(problem.arrangement(row))
        for row in problem.neighbours(np.array(chosen.choice))
        if LIMIT < problem.cost(row).latency_ms[0] <= LIMIT + 50 and problem.cost(row).peak_mb[0] <= 60.0
    )
    assert more.loss == pytest.approx(better - chosen.loss, abs=0.06)  # one of the best there, of ten tried
    for name, label in (part.split(": ") for part in more.layers.split("; ")):
        assert label in problem.labels[name]
    for entry in told.more:
        assert entry.low <= entry.high < 0.01


def test_layers_that_never_fitted_are_tried_although_the_model_sees_nothing_in_them() -> None:
    problem = tiny_problem(Budget(latency_ms=60.0))
    quality = KnownQuality(problem)
    for entry in quality.gain:
        if not problem.feasible(_single(problem, entry))[0]:
            quality.gain[entry] = 5.0  # whatever does not fit by itself would be worth more than everything else
    rng = np.random.default_rng(0)
    rows = rng.integers(0, problem.num_options, (4000, 6)) * (rng.random((4000, 6)) < 0.2)
    rows = np.unique(rows[problem.feasible(rows)], axis=0)[:60]
    found = [_evaluation(problem, quality, row) for row in rows]
    chosen = min(found, key=lambda e: e.loss)
    told = explain(problem, found, chosen, lambda a, b: (quality.loss(a) - quality.loss(b), 0.001))
    assert told.more[0].loss < -1.0


def _single(problem: Problem, entry: tuple) -> np.ndarray:
    row = np.zeros(len(problem.positions), dtype=np.int64)
    place = problem.positions.index(entry[0])
    row[place] = problem.labels[entry[0]].index(entry[1].label)
    return row


def _evaluation(problem: Problem, quality: KnownQuality, row: np.ndarray) -> Evaluation:
    costs, arrangement = problem.cost(row), problem.arrangement(row)
    values = (costs.latency_ms, costs.peak_mb, costs.weights_mb)
    ms, peak, weights = (float(column[0]) for column in values)
    loss = quality.loss(arrangement)
    choice = tuple(int(i) for i in row)
    return Evaluation(0, choice, arrangement, "random", loss, 0.001, {}, ms, peak, weights, 0, True)


def test_designs_by_hand_stand_beside_it(searched) -> None:
    told, chosen = reasons(searched)
    problem, quality, _ = searched
    named = {design.name: design for design in told.designs}
    assert set(named) == set(problem.hand_made())
    empty = named["no layers"]
    assert empty.difference == pytest.approx(1.0 - chosen.loss) and empty.feasible


def test_the_distance_shrinks_as_evaluations_come_in(searched) -> None:
    problem, quality, found = searched

    def distance(count: int) -> float:
        seen = found[:count]
        chosen = min(pareto_front(seen), key=lambda e: e.loss)
        return explain(problem, seen, chosen, lambda a, b: (0.0, 1.0)).regret

    assert 0.0 <= distance(60) < max(distance(count) for count in (8, 12, 16, 20))


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
    assert left_out_error(features, choices[:5], noise[:5]) is None


@pytest.mark.parametrize("known", [False, True])
def test_what_no_model_can_tell_is_said_and_is_strict_json(known: bool) -> None:
    """Models' fronts run along the latency: limits on size may leave nothing of all of them, or of some."""
    problem = tiny_problem()
    choices = problem.costs.random(3000, np.random.default_rng(0))
    sizes = problem.cost(choices).parameters
    counts = np.bincount(sizes)
    often, least = float(np.flatnonzero(counts == counts[counts >= 9].min())[-1]), float(np.quantile(sizes, 0.9))
    limits = Budget(latency_ms=200.0, parameters_min=least) if known else Budget(None, None, often, often)
    problem, quality = replace(problem, budget=limits), KnownQuality(problem)
    found = [_evaluation(problem, quality, row) for row in choices[problem.feasible(choices)][:9]]
    chosen = min(found, key=lambda e: e.loss)
    told = explain(problem, found, chosen, lambda a, b: (quality.loss(a) - quality.loss(b), 0.001))
    json.dumps(told.to_json(), allow_nan=False)
    assert told.model_error is None and (told.regret is not None) == known
    text = render(told)
    assert ("unknown: what the additive model" in text) == (not known) and "nan" not in text and "inf" not in text
    assert ("cannot tell how far" in page_reasons(told.to_json())["distance"]) == (not known)


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
