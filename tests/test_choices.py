"""A space in which every position holds exactly one block: something is chosen there, and nothing added."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from search_problems import KnownQuality, tiny_problem

from latency_tables import Budget
from latency_tables.overview import overview, render
from nas.search.explain import explain
from nas.search.explain import render as explained
from nas.search.problem import Problem
from nas.search.samplers import SAMPLERS
from nas.search.study import search
from nas.search.surrogate import Features, exact_front
from search_spaces.planning import load_plan
from search_spaces.space import Space
from search_spaces.words import Words

LIMITS = Budget(latency_ms=85.0)


@pytest.fixture(scope="module")
def space() -> Space:
    tiny = Space.load("tiny")
    positions = tuple(replace(p, least=1, most=1) for p in tiny.positions[:3])
    choices = replace(tiny, name="choices", positions=positions, source=None)
    return replace(choices, stated_baseline=choices.arrange({p.name: p.variants[1:2] for p in positions}))


@pytest.fixture(scope="module")
def problem(space: Space) -> Problem:
    return tiny_problem(LIMITS, space=space)


def test_a_space_is_told_of_in_its_own_words(space: Space) -> None:
    words, ours = Words.of(load_plan(space)), Words.of(load_plan("tiny"))
    assert (words.one, words.baseline, words.beside) == ("block", "the baseline", "of the baseline")
    assert (ours.one, ours.baseline, ours.beside) == ("layer", "no layers", "without layers")
    assert words.title == "Which block, where, at what cost"


def test_the_exact_front_is_the_enumerated_one_where_the_first_option_is_a_block(problem: Problem) -> None:
    features = Features.of(problem)
    rng = np.random.default_rng(0)
    weights = rng.standard_normal(features.unary[0].shape[1])
    everything = np.stack(np.meshgrid(*map(np.arange, problem.sizes), indexing="ij"), -1).reshape(
        -1, len(problem.sizes)
    )
    around = problem.neighbours(everything[0])
    changes = (features(around) - features(everything[:1])) @ weights
    assert np.allclose(features.near(everything[0], around, weights), changes)
    front = exact_front(problem, features, weights, grid=4000)
    assert np.allclose(features(front.choices) @ weights, front.quality)
    fits = everything[problem.feasible(everything)]
    assert 1 < len(fits) < len(everything)
    assert front.quality.min() == pytest.approx(float((features(fits) @ weights).min()))


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_every_sampler_proposes_what_the_space_holds(problem: Problem, sampler: str, tmp_path: Path) -> None:
    quality = KnownQuality(problem)
    found = search(problem, quality, tmp_path / "study.journal", identity={}, trials=6, sampler=sampler, seed=0)
    for evaluation in found:
        problem.space.check(evaluation.arrangement)
    assert "reference: baseline" in {evaluation.origin for evaluation in found}
    assert all("no layers" not in evaluation.origin for evaluation in found)


def test_a_choice_is_explained_beside_the_baseline(problem: Problem, tmp_path: Path) -> None:
    quality = KnownQuality(problem)
    found = search(problem, quality, tmp_path / "study.journal", identity={}, trials=12, sampler="surrogate", seed=0)
    chosen = min((e for e in found if e.feasible), key=lambda e: e.loss)
    told = explain(problem, found, chosen, lambda a, b: (quality.loss(a) - quality.loss(b), 0.0))
    baseline = problem.space.baseline()
    differing = {name for name in problem.positions if chosen.arrangement.at(name) != baseline.at(name)}
    assert differing and {row.position for row in told.positions} == differing
    assert sum(row.loss for row in told.positions) == pytest.approx(quality.loss(baseline) - chosen.loss)
    assert "no layers" not in explained(told)


def test_a_table_command_costs_each_block_beside_the_baseline(problem: Problem) -> None:
    told = overview(problem.costs, LIMITS)
    labels = problem.space.baseline().labels()
    rows = {(row["position"], *row["layers"]) for row in told.choices}
    assert len(rows) == sum(problem.sizes) - len(problem.sizes)
    assert all((name, *labels[name]) not in rows for name in labels)
    assert "beside the baseline" in render(told) and "layer more" not in render(told)
