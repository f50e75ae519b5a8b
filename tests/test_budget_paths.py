"""Paths within a budget: none over it, each as likely as every other, and a table that changed is noticed."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from search_problems import tiny_problem

from latency_tables.budget import Budget
from nas.errors import NasError
from nas.search.problem import Problem
from nas.search.within import WithinBudget


def tight(share: float) -> Problem:
    """A budget that about ``share`` of the space meets."""
    problem = tiny_problem()
    latency = problem.cost(problem.costs.random(20_000, np.random.default_rng(0))).latency_ms
    return replace(problem, budget=Budget(latency_ms=float(np.quantile(latency, share))))


def test_no_path_breaks_the_budget() -> None:
    problem = replace(tight(0.05), budget=replace(tight(0.05).budget, memory_mb=35.0))
    paths = WithinBudget(problem)
    for step in range(300):
        (arrangement,) = paths(0, step)
        assert problem.feasible(problem.indices_of(arrangement))[0]


def test_a_margin_is_kept() -> None:
    problem = tight(0.2)
    paths = WithinBudget(replace(problem, budget=problem.budget.held(0.1)))
    limit = float(problem.budget.latency_ms or 0) / 1.1
    for step in range(200):
        (arrangement,) = paths(0, step)
        assert problem.cost(problem.indices_of(arrangement)).latency_ms[0] <= limit * (1 + 1e-9)


def test_every_arrangement_within_the_budget_is_as_likely_as_every_other() -> None:
    """Chi-square over how many positions hold layers, against how many feasible arrangements there are of each."""
    problem = tight(0.01)
    paths = WithinBudget(problem)
    drawn = np.array([problem.indices_of(paths(1, step)[0]) for step in range(4000)])
    held = Counter(int((row > 0).sum()) for row in drawn)
    expected: Counter[int] = Counter()
    for places in itertools.product((False, True), repeat=len(problem.positions)):
        expected[sum(places)] += _feasible_with(problem, places)
    total = sum(expected.values())
    statistic, freedom = 0.0, -1
    for count, number in expected.items():
        mean = 4000 * number / total
        if mean >= 5:
            statistic += (held[count] - mean) ** 2 / mean
            freedom += 1
    assert freedom >= 1 and statistic < freedom + 4 * np.sqrt(2 * freedom) + 4, (statistic, freedom)


def _feasible_with(problem: Problem, places: tuple[bool, ...]) -> int:
    """How many feasible arrangements hold layers at exactly these positions: sums of latencies, meet in the middle."""
    room = problem.budget.bounds["latency_ms"] - problem.costs.backbone_latency_ms
    sums = [np.zeros(1), np.zeros(1)]
    for p, option in enumerate(problem.costs.option_costs):
        values = option.latency_ms[1:] if places[p] else option.latency_ms[:1]
        sums[p % 2] = (sums[p % 2][:, None] + values[None, :]).ravel()
    right = np.sort(sums[1])
    return int(np.searchsorted(right, room * (1 + 1e-9) - sums[0], side="right").sum())


def test_a_step_is_a_function_of_seed_and_step() -> None:
    problem = tight(0.1)
    one, two = WithinBudget(problem), WithinBudget(problem)
    assert [one(5, s)[0].key for s in range(20)] == [two(5, s)[0].key for s in range(20)]
    assert [one(5, s)[0].key for s in range(20)] != [one(6, s)[0].key for s in range(20)]


def test_a_budget_that_nothing_meets_is_refused() -> None:
    with pytest.raises(NasError, match="no arrangement meets the latency limit"):
        WithinBudget(replace(tiny_problem(), budget=Budget(latency_ms=1.0)))
    problem = replace(tiny_problem(), budget=Budget(latency_ms=120.0, parameters_max=1000))
    with pytest.raises(NasError, match="meets the other limits"):
        WithinBudget(problem)(0, 0)


def test_training_without_a_table_says_what_to_do(tmp_path: Path) -> None:
    from nas.config import resolve
    from nas.run.job import train_supernet

    config = resolve("tiny", None, None, ["train.paths=within_budget", "data.source=moving_shapes"])
    with pytest.raises(NasError, match="nas profile"):
        train_supernet(config, tmp_path / "run")
