"""Several workers, one study: nothing twice, nothing lost, whoever is killed."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from postgres_server import Server, usable
from search_problems import KnownQuality, tiny_problem
from search_worker import IDENTITY, LIMITS, events, start

from nas.search.studies import Evaluation
from nas.search.study import search

SECONDS = 0.05  # of an evaluation


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    reason = usable()
    if reason:
        pytest.skip(reason)
    with Server() as running:
        yield running


@pytest.fixture(params=["journal", "postgres"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    if request.param == "journal":
        return tmp_path / "study.journal"
    running: Server = request.getfixturevalue("server")
    return running.database(f"study{time.monotonic_ns()}")


def finish(where: Path | str, trials: int) -> list[Evaluation]:
    """The study as a last worker finds it, which evaluates what is still missing."""
    problem = tiny_problem(LIMITS)
    return search(problem, KnownQuality(problem), where, identity=IDENTITY, trials=trials, sampler="nsga2", seed=0)


def test_workers_share_a_study_without_evaluating_anything_twice(where: Path | str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    workers = [start(where, 40, SECONDS, log) for _ in range(3)]
    assert [worker.wait() for worker in workers] == [0, 0, 0], log.with_suffix(".said").read_text()
    problem = tiny_problem(LIMITS)
    found = finish(where, 40)
    assert len([e for e in found if not e.is_reference]) == 40
    assert len({e.choice for e in found}) == len(found)
    happened = events(log)
    assert set(happened.values()) == {1}
    assert {key for event, key in happened if event == "end"} == {e.arrangement.key for e in found}
    assert len(problem.hand_made()) >= len([e for e in found if e.is_reference]) > 0
    assert len({line.split()[2] for line in log.read_text().splitlines()}) > 1


def test_workers_that_are_killed_lose_only_what_they_ran_and_it_is_run_again(where: Path | str, tmp_path: Path) -> None:
    log, chance = tmp_path / "log", random.Random(0)
    workers = [start(where, 40, SECONDS, log) for _ in range(2)]
    killed = 0
    while any(worker.poll() is None for worker in workers):
        time.sleep(0.1 + 0.4 * chance.random())
        if killed < 4 and events(log).total() > 4:
            victim = chance.choice([worker for worker in workers if worker.poll() is None] or workers)
            victim.send_signal(signal.SIGKILL)
            victim.wait()
            killed += 1
            workers = [*(worker for worker in workers if worker is not victim), start(where, 40, SECONDS, log)]
    assert [worker.wait() for worker in workers] == [0, 0], log.with_suffix(".said").read_text()
    found = finish(where, 40)
    happened = events(log)
    assert len([e for e in found if not e.is_reference]) == 40
    assert len({e.choice for e in found}) == len(found)
    begun = {key for event, key in happened if event == "begin"}
    assert begun == {e.arrangement.key for e in found}  # whatever anybody began was finished in the end
    again = sum(times - 1 for (event, _), times in happened.items() if event == "begin")
    assert again <= killed == 4
