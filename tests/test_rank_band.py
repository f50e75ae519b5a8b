"""The evidence of ranking begins with what a search uses: the order within a band of latency."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from search_problems import tiny_problem

from latency_tables.budget import Budget
from nas.ranking.agreement import band, top_regret
from nas.ranking.evidence import arrangements, conclude, in_band, sentence


def test_regret_is_told_in_random_picks() -> None:
    assert top_regret([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]) == 0.0
    assert top_regret([2.0, 1.0, 3.0], [1.0, 2.0, 3.0]) == pytest.approx(1.0)
    assert np.isnan(top_regret([1.0, 2.0], [5.0, 5.0]))


def test_the_ceiling_is_of_those_trained_twice() -> None:
    found = band([1, 2, 3, 4], [1, 2, 3, 4], [1.0, 3.0, 2.0, None])
    assert (found.tau, found.count, found.twice) == (1.0, 4, 3) and found.ceiling == pytest.approx(1 / 3)
    assert np.isnan(band([1, 2], [1, 2], [None, None]).ceiling)


def test_two_thirds_are_of_one_band_of_latency() -> None:
    problem = tiny_problem(Budget(latency_ms=170.0))
    chosen = arrangements(problem, 12, seed=0)
    latency = problem.cost(np.stack([problem.indices_of(a) for a in chosen])).latency_ms
    inside = in_band(problem, chosen)
    assert all(inside[:8]) and max(latency[:8]) / min(latency[:8]) <= 1.106 and len({a.key for a in chosen}) == 12


def test_the_band_is_told_first_and_comes_back_from_the_file(tmp_path: Path) -> None:
    truth = list(np.linspace(0, 1, 10))
    inside, second = [True] * 6 + [False] * 4, [*truth[:4], *[None] * 6]
    told = conclude(tmp_path, truth, truth, {"a": "b"}, inside=inside, second=second, same_clips=True)
    assert list(told.to_json())[:3] == ["band_tau", "band_ceiling", "top_regret"]
    assert told.sentence.startswith("within 10% of latency: tau 1.00 of 1.00 that two seeds reach (4 trained twice)")
    assert sentence(tmp_path, {"a": "b"}) == told.sentence and "share their clips" in told.sentence
    json.loads((tmp_path / "rank.json").read_text(), parse_constant=pytest.fail)
