"""The search: feasible, never twice, resumable, and better than chance."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
from search_problems import KnownQuality, tiny_problem

from latency_tables.budget import Budget
from nas.errors import NasError
from nas.search.front import choose, pareto_front, write_front
from nas.search.problem import Problem
from nas.search.samplers import SAMPLERS, make_sampler
from nas.search.studies import Evaluation
from nas.search.study import search
from nas.search.surrogate import Features, Posterior, exact_front

IDENTITY = {"space": "tiny", "table": "made up"}
LIMITS = Budget(latency_ms=130.0, memory_mb=27.0)


def run(problem: Problem, journal: Path, trials: int = 30, sampler: str = "surrogate", seed: int = 0):
    quality = KnownQuality(problem)
    found = search(problem, quality, journal, identity=IDENTITY, trials=trials, sampler=sampler, seed=seed)
    return found, quality


@pytest.mark.parametrize("sampler", sorted(set(SAMPLERS) - {"gp"}))  # gp takes seconds a trial: test_samplers.py
def test_every_search_trial_is_feasible_and_new(sampler: str, tmp_path: Path) -> None:
    found, quality = run(tiny_problem(LIMITS), tmp_path / "study.journal", sampler=sampler)
    searched = [e for e in found if not e.is_reference]
    assert len(searched) == 30
    assert all(e.feasible and e.latency_ms <= 130.0 and e.peak_mb <= 27.0 for e in searched)
    assert len(set(quality.asked)) == len(quality.asked) == len(found)


def test_hand_made_designs_are_scored_and_marked_when_they_break_the_budget(tmp_path: Path) -> None:
    found, _ = run(tiny_problem(LIMITS), tmp_path / "study.journal", trials=1)
    references = {e.origin: e for e in found if e.is_reference}
    assert references["reference: no layers"].feasible
    assert not references["reference: all Conv1D + SelfAttention1D"].feasible
    assert all(e.feasible for e in pareto_front(found))


def test_a_choice_has_one_name_and_comes_back_from_it() -> None:
    problem = tiny_problem()
    rng = np.random.default_rng(3)
    for _ in range(50):
        choice = rng.integers(0, problem.num_options)
        assert np.array_equal(problem.indices(problem.params(choice)), choice)
        assert np.array_equal(problem.indices_of(problem.arrangement(choice)), choice)


def test_a_stopped_study_goes_on_as_if_it_had_not_been_stopped(tmp_path: Path) -> None:
    whole, _ = run(tiny_problem(LIMITS), tmp_path / "whole.journal", trials=25)
    run(tiny_problem(LIMITS), tmp_path / "halves.journal", trials=9)
    resumed, quality = run(tiny_problem(LIMITS), tmp_path / "halves.journal", trials=25)
    assert [e.choice for e in resumed] == [e.choice for e in whole]
    assert len(quality.asked) == 16


def test_a_trial_that_a_killed_process_left_behind_is_run_again(tmp_path: Path) -> None:
    journal = tmp_path / "study.journal"
    problem = tiny_problem(LIMITS)
    quality = KnownQuality(problem)
    calls = 0

    def dies(arrangement):
        nonlocal calls
        calls += 1
        if calls == 12:
            raise KeyboardInterrupt
        return quality(arrangement)

    with pytest.raises(KeyboardInterrupt):
        search(problem, dies, journal, identity=IDENTITY, trials=30, sampler="random", seed=0)
    assert len(quality.asked) == 11
    found, again = run(problem, journal, trials=30, sampler="random")
    assert len(found) == 11 + len(again.asked)
    assert len({e.choice for e in found}) == len(found)


def test_a_study_of_another_table_is_refused_with_what_changed(tmp_path: Path) -> None:
    journal = tmp_path / "study.journal"
    problem = tiny_problem(LIMITS)
    run(problem, journal, trials=2)
    other = {**IDENTITY, "table": "another"}
    with pytest.raises(NasError, match="table was made up, is another"):
        search(problem, KnownQuality(problem), journal, identity=other, trials=2, sampler="random", seed=0)


def test_another_budget_in_the_same_run_asks_for_no_quality_twice(tmp_path: Path) -> None:
    journal = tmp_path / "study.journal"
    _, first = run(tiny_problem(LIMITS), journal, trials=20)
    found, second = run(tiny_problem(Budget(latency_ms=150.0)), journal, trials=20)
    assert not set(first.asked) & set(second.asked)
    assert len(second.asked) < len(found)
    assert max(e.latency_ms for e in found if e.feasible) > 130.0


def test_a_file_that_is_no_journal_is_refused_and_kept(tmp_path: Path) -> None:
    journal = tmp_path / "study.journal"
    journal.write_text("not a journal\n")
    with pytest.raises(NasError, match="not an Optuna journal"):
        run(tiny_problem(LIMITS), journal)
    assert journal.read_text() == "not a journal\n"


def test_unknown_sampler_names_the_known_ones() -> None:
    with pytest.raises(NasError, match="Known samplers: gp, nsga2, random, surrogate, tpe, value"):
        make_sampler("nsga3", tiny_problem(), 0)


def test_the_trials_carry_optuna_constraints(tmp_path: Path) -> None:
    journal = tmp_path / "study.journal"
    run(tiny_problem(LIMITS), journal, trials=3)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(journal)))
    study = optuna.load_study(study_name="search latency_ms=130 memory_mb=27", storage=storage)
    assert all(set(t.constraints) == {"latency_ms", "memory_mb"} for t in study.trials)
    assert all(t.user_attrs["feasible"] == all(v <= 0 for v in t.constraints.values()) for t in study.trials)


def test_the_exact_front_is_the_enumerated_one_on_a_linear_model() -> None:
    """On a random model no sampled arrangement beats what the dynamic programme finds, at any latency."""
    problem = tiny_problem(Budget(latency_ms=170.0))
    features = Features.of(problem)
    rng = np.random.default_rng(0)
    weights = rng.standard_normal(features.unary[0].shape[1])
    front = exact_front(problem, features, weights, grid=4000)
    assert np.allclose(features(front.choices) @ weights, front.quality)
    sample = problem.costs.random(100_000, rng)
    sample = sample[problem.feasible(sample)]
    assert len(sample) > 5_000
    quality, latency = features(sample) @ weights, problem.cost(sample).latency_ms
    for limit in (110.0, 140.0, 169.0):
        best = front.quality[front.latency_ms <= limit].min()
        assert best <= quality[latency <= limit].min() + 1e-9


def test_the_posterior_recovers_a_linear_truth() -> None:
    rng = np.random.default_rng(0)
    x = np.column_stack([np.ones(300), rng.integers(0, 2, size=(300, 20))]).astype(float)
    truth = rng.standard_normal(21)
    y = x @ truth + 0.01 * rng.standard_normal(300)
    fitted = Posterior.fit(x, y).predict(x)
    assert np.sqrt(np.mean((fitted - x @ truth) ** 2)) < 0.05 * y.std()


def test_the_surrogate_finds_better_arrangements_than_chance(tmp_path: Path) -> None:
    best = {}
    for sampler in ("surrogate", "random"):
        losses = []
        for seed in range(3):
            found, _ = run(tiny_problem(LIMITS), tmp_path / f"{sampler}{seed}", trials=50, sampler=sampler, seed=seed)
            losses.append(min(e.loss for e in found if e.feasible))
        best[sampler] = np.mean(losses)
    assert best["surrogate"] < best["random"] - 0.02


def test_the_cheapest_arrangement_that_cannot_be_told_apart_is_chosen(tmp_path: Path) -> None:
    found, _ = run(tiny_problem(LIMITS), tmp_path / "study.journal")
    front = pareto_front(found)
    by_key = {e.arrangement.key: e for e in front}

    def difference(a, b, stderr=0.03):
        return by_key[a.key].loss - by_key[b.key].loss, stderr

    choice = choose(front, difference)
    assert choice.best.loss == min(e.loss for e in front)
    assert choice.chosen.loss - choice.best.loss <= 0.03
    assert choice.chosen.latency_ms <= choice.best.latency_ms
    assert choose(front, lambda a, b: difference(a, b, stderr=0.0)).chosen is choice.best


def test_sums_that_differ_in_their_last_digit_are_equal(tmp_path: Path) -> None:
    """The same layers at other positions cost the same; the worse of two such arrangements is not on the front."""
    found, _ = run(tiny_problem(LIMITS), tmp_path / "study.journal", trials=2)
    one = next(e for e in found if e.feasible)
    nearly = replace(one, trial=99, loss=one.loss + 0.1, objectives=(one.objectives[0] * (1 - 2e-16),))
    assert nearly.objectives[0] < one.objectives[0]
    assert pareto_front([nearly, one]) == [one]


def test_front_csv_marks_the_front_and_the_chosen_one(tmp_path: Path) -> None:
    found, _ = run(tiny_problem(LIMITS), tmp_path / "study.journal", trials=10)
    chosen: Evaluation = pareto_front(found)[-1]
    write_front(tmp_path / "front.csv", found, chosen.arrangement.key)
    lines = (tmp_path / "front.csv").read_text().splitlines()
    assert len(lines) == 1 + len(found)
    header = lines[0].split(",")
    rows = [dict(zip(header, line.split(","), strict=False)) for line in lines[1:]]
    assert [r["key"] for r in rows if r["chosen"] == "1"] == [chosen.arrangement.key]
    assert {r["feasible"] for r in rows if r["on_front"] == "1"} == {"1"}
