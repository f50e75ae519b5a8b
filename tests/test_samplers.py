"""Every sampler: within the budget, never the same twice, seeded, and better than chance; and what is minimised."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
from search_problems import KnownQuality, tiny_problem

from latency_tables.budget import Budget
from nas.errors import NasError
from nas.search.front import choose, pareto_front
from nas.search.problem import Problem, mes
from nas.search.samplers import SAMPLERS, repair
from nas.search.studies import Evaluation
from nas.search.study import search
from nas.search.surrogate import SurrogateSampler
from nas.search.value import ValueSampler, action_effects

LIMIT = 110.0


def run(problem: Problem, folder: Path, sampler: str, trials: int, seed: int = 0) -> list[Evaluation]:
    quality = KnownQuality(problem)
    return search(problem, quality, folder / "study.journal", identity={}, trials=trials, sampler=sampler, seed=seed)


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_every_sampler_keeps_to_the_budget_and_repeats_nothing(name: str, tmp_path: Path) -> None:
    problem = tiny_problem(Budget(latency_ms=LIMIT))
    found = run(problem, tmp_path, name, 14)
    searched = [e for e in found if not e.is_reference]
    assert len(searched) == 14 and all(e.feasible and e.latency_ms <= LIMIT for e in searched)
    assert len({e.arrangement.key for e in found}) == len(found)


@pytest.mark.parametrize("name", ["value", pytest.param("gp", marks=pytest.mark.slow)])
def test_a_seed_is_a_study(name: str, tmp_path: Path) -> None:
    problem = tiny_problem(Budget(latency_ms=LIMIT))
    runs = [run(problem, tmp_path / str(i), name, 12, seed) for i, seed in enumerate((3, 3, 4))]
    keys = [[e.arrangement.key for e in found] for found in runs]
    assert keys[0] == keys[1] != keys[2]


def test_value_finds_more_than_random_does(tmp_path: Path) -> None:
    problem = tiny_problem(Budget(latency_ms=LIMIT))
    best = {
        name: np.mean(
            [min(e.loss for e in run(problem, tmp_path / f"{name}{seed}", name, 60, seed)) for seed in (0, 1, 2)]
        )
        for name in ("value", "random")
    }
    assert best["value"] < best["random"] - 0.05


@pytest.mark.parametrize("kind", [ValueSampler, SurrogateSampler])
def test_a_sampler_works_in_anyone_s_study(kind: type[ValueSampler] | type[SurrogateSampler]) -> None:
    problem = tiny_problem(Budget(latency_ms=LIMIT))
    quality = KnownQuality(problem)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=kind(problem, seed=0))

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        params = {name: trial.suggest_int(name, d.low, d.high) for name, d in problem.distributions.items()}
        choice = problem.indices(params)
        return quality.loss(problem.arrangement(choice)), float(problem.cost(choice).latency_ms[0])

    study.optimize(objective, n_trials=20)
    assert all(trial.values[1] <= LIMIT for trial in study.trials)


def test_effects_are_means_over_pairs_that_differ_in_one_choice() -> None:
    effects = action_effects({(0, 0): 1.0, (1, 0): 0.8, (0, 1): 0.9, (1, 1): 0.6, (2, 2): 0.0})
    assert effects[0, 0, 1] == pytest.approx(-0.25) and effects[0, 1, 0] == pytest.approx(0.25)
    assert effects[1, 0, 1] == pytest.approx(-0.15) and (0, 0, 2) not in effects


def test_memory_and_size_can_be_objectives(tmp_path: Path) -> None:
    problem = replace(tiny_problem(Budget(latency_ms=LIMIT)), objectives=("latency_ms", "parameters"))
    found = run(problem, tmp_path, "nsga2", 20)
    for e in found:
        assert e.objectives == (pytest.approx(e.latency_ms), e.parameters)
    front = pareto_front(found)
    for e in front:
        beaten = [o for o in found if o.feasible and o.loss <= e.loss and o.latency_ms <= e.latency_ms]
        assert not [o for o in beaten if o.parameters < e.parameters]
    assert len(front) >= len(pareto_front([replace(e, objectives=(e.latency_ms,)) for e in found]))


def test_the_mobile_efficiency_score_is_one_number_of_size_and_speed(tmp_path: Path) -> None:
    problem = replace(tiny_problem(), objectives=("mes",))
    choices = np.stack([np.zeros(6, dtype=np.int64), problem.num_options - 1])
    costs = problem.cost(choices)
    expected = 100 * (costs.parameters / 1e7) ** -0.5 * costs.latency_ms**-0.5
    np.testing.assert_allclose(mes(costs), expected)
    np.testing.assert_allclose(problem.objective_costs(choices)[:, 0], 100 / expected)
    found = run(problem, tmp_path, "surrogate", 10)
    assert all(len(e.objectives) == 1 for e in found) and pareto_front(found)


def test_other_objectives_are_another_study(tmp_path: Path) -> None:
    problem = tiny_problem()
    run(problem, tmp_path, "random", 3)
    found = run(replace(problem, objectives=("latency_ms", "peak_mb")), tmp_path, "random", 3)
    assert len(found[0].objectives) == 2


def test_objectives_that_mean_nothing_are_refused() -> None:
    for objectives in ((), ("loss",), ("mes", "mes")):
        with pytest.raises(NasError, match="search.objectives must be one or more of latency_ms"):
            replace(tiny_problem(), objectives=objectives)


def narrow_problem() -> Problem:
    """Many parameters at a low latency: next to nothing is feasible, and most descents come to a dead end."""
    base = tiny_problem()
    choices = base.costs.random(20_000, np.random.default_rng(0))
    costs = base.cost(choices)
    spread = [(column - column.mean()) / column.std() for column in (costs.parameters, costs.latency_ms)]
    best = int(np.argmax(spread[0] - spread[1]))
    limits = Budget(latency_ms=costs.latency_ms[best] * 1.0001, parameters_min=costs.parameters[best] * 0.9999)
    return replace(base, budget=limits)


def test_a_repair_that_comes_to_a_dead_end_begins_anew() -> None:
    problem, rng = narrow_problem(), np.random.default_rng(1)
    for _ in range(20):
        proposal = rng.integers(0, problem.num_options)
        assert problem.feasible(repair(problem, proposal, set(), rng))[0]


def test_a_search_that_finds_fewer_than_were_wanted_says_so(tmp_path: Path) -> None:
    problem, said = tiny_problem(), []
    nothing = np.zeros(len(problem.positions), dtype=np.int64)
    third = np.sort(problem.cost(problem.neighbours(nothing)).latency_ms)[2]
    problem = replace(problem, budget=Budget(latency_ms=float(third)))
    settings = {"identity": {}, "trials": 12, "sampler": "random", "seed": 0, "tell": said.append}
    found = search(problem, KnownQuality(problem), tmp_path / "study.journal", **settings)
    searched = [e for e in found if not e.is_reference]
    assert len(searched) == 3 and all(e.feasible for e in searched)
    assert [line.startswith("search     3 of the 12 trials that were wanted: nothing else") for line in said] == [True]


def test_an_empty_front_is_one_line() -> None:
    with pytest.raises(NasError, match="nothing within the budget.*loosen a limit"):
        choose([], lambda a, b: (0.0, 1.0))
