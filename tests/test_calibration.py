"""What is stated in shares and errors holds, by simulation with fixed seeds: intervals, the choice, halving, counts.

The same simulations, larger, are benchmarks/calibration.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from search_problems import tiny_problem
from table_fixtures import small_plan, small_table

from latency_tables.budget import Budget
from latency_tables.cost import CostModel
from latency_tables.distribution import feasible_share
from nas.search.front import critical
from nas.search.halving import behind

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
calibration = pytest.importorskip("calibration")


@pytest.mark.parametrize("networks", calibration.SIZES)
def test_an_interval_holds_at_least_what_it_states(networks: int) -> None:
    """Nine in ten; 150 simulations of 400 networks each are within 0.02 of the long run."""
    held = calibration.coverage(networks, simulations=150)
    assert 0.89 <= held <= 0.97


@pytest.mark.parametrize("draw", ["scored", "dense"])
def test_the_chosen_one_is_hardly_ever_behind_by_more_than_it_says(draw: str) -> None:
    """2% of 200 are 4; ten or more have a probability under 1%. The old anchor is behind in a sixth of them or more."""
    told = calibration.behind(calibration.Scored() if draw == "scored" else calibration.dense, searches=200)
    assert told["chosen_behind"] <= 9 / 200 and told["worst"] < 2.5
    assert told["coarse_behind"] > 0.1


def test_more_comparisons_want_a_larger_critical_value() -> None:
    """Of seven that are as good as an eighth, all stay rivals in at least 98% of cases."""
    values = [critical(count) for count in (0, 1, 3, 7)]
    assert values == sorted(values) and values[0] == pytest.approx(2.054, abs=0.001)
    rng = np.random.default_rng(0)
    lost = np.mean((rng.standard_normal((20_000, 7)) > critical(7)).any(1))
    assert 0.015 <= lost <= 0.023


def test_halving_stops_one_that_is_no_worse_as_rarely_as_three_errors_say() -> None:
    """Two as good as each other, 8 of 32 clips, three standard errors: 0.13% if normal, 1% with so few clips."""
    rng, stopped = np.random.default_rng(0), 0
    for _ in range(2_000):
        hard = rng.normal(0, 0.3, 32)
        mine, rival = (hard + rng.normal(0, 0.1, 32) for _ in range(2))
        mine += rival.mean() - mine.mean()  # exactly as good on the whole
        mean, stderr = behind(mine[:8], rival)
        stopped += mean > 3 * stderr
    assert stopped <= 30


def test_the_error_of_a_part_is_as_large_as_it_says() -> None:
    rng, found = np.random.default_rng(1), []
    for _ in range(2_000):
        rival = rng.normal(0, 0.3, 32)
        mine = rival + rng.normal(0.05, 0.1, 32)
        mean, stderr = behind(mine[:16], rival)
        found.append((mean - float((mine - rival).mean())) / stderr)
    assert np.std(found) == pytest.approx(1.0, abs=0.1) and np.mean(found) == pytest.approx(0.0, abs=0.1)


@pytest.mark.parametrize("limits", [{"latency_ms": 15.0}, {"latency_ms": 18.0, "memory_mb": 8.6}, {"memory_mb": 8.4}])
def test_a_counted_share_is_that_of_draws(limits: dict[str, float]) -> None:
    """20,000 draws: four standard errors are 0.014 at most."""
    plan = small_plan()
    model = CostModel(plan, small_table(plan))
    budget = Budget(**limits)
    share = feasible_share(model, budget)
    drawn = np.mean(budget.feasible(model.cost(model.random(20_000, np.random.default_rng(0)))))
    assert 0.02 < drawn < 0.98
    assert share.lower - 0.014 <= drawn <= share.upper + 0.014


def test_a_counted_share_of_a_large_space_is_that_of_draws() -> None:
    problem = tiny_problem(Budget(latency_ms=160.0))
    share = feasible_share(problem.costs, problem.budget)
    drawn = np.mean(problem.feasible(problem.costs.random(20_000, np.random.default_rng(0))))
    assert share.lower - 0.014 <= drawn <= share.upper + 0.014
