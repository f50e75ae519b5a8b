"""What a study keeps is small, and what samplers are told of it is right: names, generations, what was seen."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import RandomSampler
from search_problems import KnownQuality, tiny_problem

import nas.search.samplers as samplers
from latency_tables.budget import Budget
from nas.errors import NasError
from nas.search.dashboard import make_app
from nas.search.samplers import FeasibleSampler
from nas.search.storage import open_storage
from nas.search.study import search

LIMIT = Budget(latency_ms=120.0)


def run(journal: Path, trials: int, sampler: str = "random", budget: Budget = LIMIT, **more):
    problem = tiny_problem(budget)
    settings = {"identity": {}, "trials": trials, "sampler": sampler, "seed": 0, **more}
    return search(problem, KnownQuality(problem), journal, **settings)


def only_study(journal: Path) -> tuple[optuna.study.StudySummary, list[optuna.trial.FrozenTrial]]:
    storage = open_storage(journal)
    (study,) = storage.get_all_studies()
    return study, storage.get_all_trials(study._study_id)


def test_a_trial_keeps_integers_and_its_study_the_names(tmp_path: Path) -> None:
    journal = tmp_path / "study.journal"
    run(journal, 2)
    before = journal.stat().st_size
    run(journal, 12)
    assert (journal.stat().st_size - before) / 10 < 4000
    study, trials = only_study(journal)
    problem = tiny_problem(LIMIT)
    assert study.user_attrs["labels"] == {name: list(labels) for name, labels in problem.labels.items()}
    assert all(type(value) is int for trial in trials for value in trial.params.values())
    assert all(isinstance(d, IntDistribution) for trial in trials for d in trial.distributions.values())
    created = [line for line in journal.read_text().splitlines() if '"op_code":4' in line]
    assert len(created) == len(trials) and not any("kernel_size" in line for line in created)


def test_the_dashboard_shows_names(tmp_path: Path) -> None:
    pytest.importorskip("optuna_dashboard", reason="the extra dashboard is not installed")
    journal = tmp_path / "study.journal"
    found = run(journal, 4)
    status: list[str] = []
    environment = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": "/api/studies/0",
        "QUERY_STRING": "",
        "wsgi.input": io.BytesIO(),
        "HTTP_HOST": "127.0.0.1",
    }
    body = b"".join(make_app(journal)(environment, lambda code, headers, *rest: status.append(code)))
    assert status[0].startswith("200"), body
    problem = tiny_problem(LIMIT)
    for trial, e in zip(json.loads(body)["trials"], found, strict=True):
        shown = {pair["key"]: pair["value"] for pair in trial["user_attrs"]}
        for name, option in zip(problem.positions, e.choice, strict=True):
            assert (problem.labels[name][option] in shown.get(name, "")) == (option > 0)


class Told(RandomSampler):
    """A random sampler that keeps what it is told may be chosen."""

    def __init__(self) -> None:
        super().__init__(seed=0)
        self.spaces: list[dict[str, BaseDistribution]] = []

    def sample_relative(self, study, trial, search_space):
        self.spaces.append(search_space)
        return super().sample_relative(study, trial, search_space)


def test_samplers_are_told_that_options_are_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told()
    monkeypatch.setitem(samplers.SAMPLERS, "tpe", lambda problem, seed: FeasibleSampler(told, problem, seed))
    run(tmp_path / "study.journal", 3, "tpe")
    assert len(told.spaces) >= 3
    for space in told.spaces:
        assert all(isinstance(d, CategoricalDistribution) and d.choices[0] == 0 for d in space.values())


def test_nsga2_breeds_from_the_designs_by_hand(tmp_path: Path) -> None:
    run(tmp_path / "study.journal", 14, "nsga2", population=4)
    _, trials = only_study(tmp_path / "study.journal")
    generations = {}
    for trial in trials:
        (found,) = [value for name, value in trial.system_attrs.items() if name.endswith("generation")]
        generations.setdefault(found, []).append(trial)
    assert any(trial.user_attrs["origin"].startswith("reference: ") for trial in generations[0])
    assert max(generations) >= 3


@pytest.mark.parametrize("population", [1, 9])
def test_a_population_that_never_breeds_is_one_line(population: int, tmp_path: Path) -> None:
    with pytest.raises(NasError, match=f"search.population must be 2 or more.*it is {population}, with 8") as error:
        run(tmp_path / "study.journal", 8, "nsga2", population=population)
    assert "\n" not in str(error.value) and not (tmp_path / "study.journal").exists()


def test_the_default_proposes_what_is_unseen_and_repairs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repaired = []
    plain = samplers.repair
    monkeypatch.setattr(samplers, "repair", lambda *words: repaired.append(1) or plain(*words))
    found = run(tmp_path / "study.journal", 120, "surrogate")
    assert len({e.choice for e in found}) == len(found) >= 120
    assert len(repaired) <= 2


def test_the_default_goes_on_when_its_whole_front_is_known(tmp_path: Path) -> None:
    """A budget under which few fit: every one of them is found, none twice."""
    problem = tiny_problem()
    nothing = np.zeros(len(problem.positions), dtype=np.int64)
    limit = float(np.sort(problem.cost(problem.neighbours(nothing)).latency_ms)[7])
    said: list[str] = []
    found = run(tmp_path / "study.journal", 40, "surrogate", Budget(latency_ms=limit), tell=said.append)
    fits = sum(bool(e.feasible) for e in found)
    assert fits >= 9 and len({e.choice for e in found}) == len(found)
    assert fits >= 40 or any("nothing else within the budget" in line for line in said)
