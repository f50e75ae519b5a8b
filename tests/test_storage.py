"""Where a study is kept: away, damaged, someone else's; and who is still there."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState
from postgres_server import Server, usable
from search_problems import KnownQuality, tiny_problem

from latency_tables.budget import Budget
from nas.errors import NasError
from nas.search.lease import BEAT, OWNER, Keeper, Owner
from nas.search.ledger import GAVE_WAY, LOSSES, ledger_of
from nas.search.problem import Problem
from nas.search.storage import Drafting, open_storage, shown
from nas.search.studies import Evaluation, open_study
from nas.search.study import RETRY_OF, search

IDENTITY = {"space": "tiny", "table": "made up"}
LIMITS = Budget(latency_ms=130.0, memory_mb=27.0)


def run(where: Path | str, trials: int = 12, score=None, problem: Problem | None = None, **more) -> list[Evaluation]:
    problem = problem or tiny_problem(LIMITS)
    settings = {"identity": IDENTITY, "sampler": "random", "seed": 0, **more}
    return search(problem, score or KnownQuality(problem), where, trials=trials, **settings)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    reason = usable()
    if reason:
        pytest.skip(reason)
    with Server() as running:
        yield running


# Databases ---------------------------------------------------------------------------------------------


def test_a_database_that_goes_away_is_waited_for_and_the_search_goes_on(server: Server, tmp_path: Path) -> None:
    problem, said = tiny_problem(LIMITS), []
    quality = KnownQuality(problem)

    def score(arrangement):
        if len(quality.asked) == 6:
            server.stop()
            threading.Timer(1.0, server.start).start()
        return quality(arrangement)

    found = run(server.url, problem=problem, score=score, study_name="outage", tell=said.append)
    assert [e.choice for e in found] == [e.choice for e in run(tmp_path / "quiet.journal")]
    assert len(set(quality.asked)) == len(quality.asked) == len(found)
    assert len(said) == 2, said
    assert "does not answer" in said[0] and "\n" not in said[0]
    assert "answers again after" in said[1]


def test_a_database_that_is_not_there_yet_is_waited_for(server: Server) -> None:
    said: list[str] = []
    server.stop()
    threading.Timer(0.5, server.start).start()
    assert len(run(server.url, study_name="late", tell=said.append)) > 12
    assert "does not answer" in said[0] and "answers again" in said[1]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("/postgres", "/nowhere"), 'database "nowhere" does not exist'),
        (("tester@", "nobody_here@"), 'role "nobody_here" does not exist'),
        (("+psycopg", "+nothing"), "its driver is not here"),
        (("127.0.0.1", "nowhere.invalid"), "nowhere.invalid.*correct --storage"),
        (("postgresql+psycopg://", "host/"), "must be the URL of a database"),
    ],
)
def test_a_wrong_url_is_one_line(server: Server, change: tuple[str, str], sentence: str) -> None:
    with pytest.raises(NasError, match=sentence) as error:
        run(server.url.replace(*change), tell=pytest.fail)
    assert "\n" not in str(error.value)


def test_a_password_is_never_shown() -> None:
    assert shown("postgresql+psycopg://me:secret@host/name") == "postgresql+psycopg://me:***@host/name"
    with pytest.raises(NasError) as error:
        shown("me:secret@host")
    assert "secret" not in str(error.value)


def test_a_database_may_hold_other_runs_but_not_under_the_same_name(server: Server) -> None:
    run(server.url, trials=2, study_name="mine")
    other = {**IDENTITY, "space": "another"}
    with pytest.raises(NasError, match="space was tiny, is another.*--study"):
        run(server.url, trials=2, study_name="mine", identity=other)
    run(server.url, trials=2, study_name="other", identity=other)


def test_scores_of_another_identity_are_not_taken_for_this_one(server: Server) -> None:
    first, second = KnownQuality(tiny_problem(LIMITS)), KnownQuality(tiny_problem(LIMITS))
    run(server.url, trials=3, study_name="one", score=first, identity={**IDENTITY, "supernet": "a"})
    run(server.url, trials=3, study_name="two", score=second, identity={**IDENTITY, "supernet": "b"})
    assert first.asked == second.asked != []
    third = KnownQuality(tiny_problem(LIMITS))
    run(server.url, trials=3, study_name="three", score=third, identity={**IDENTITY, "supernet": "b"})
    assert third.asked == []


# Refusals ----------------------------------------------------------------------------------------------


def test_a_changed_table_is_refused_row_by_row(tmp_path: Path) -> None:
    journal = tmp_path / "study.journal"
    rows = {"conv": "1.5 ms", "attention": "2.5 ms", "backbone": "40 ms"}
    run(journal, trials=2, details={"table": rows})
    changed = {**rows, "conv": "1.9 ms"}
    with pytest.raises(NasError, match=r"table was made up, is another \(conv was 1.5 ms, is 1.9 ms\)"):
        run(journal, trials=2, identity={**IDENTITY, "table": "another"}, details={"table": changed})


def test_a_worker_that_finds_the_study_begun_by_another_run_stops(tmp_path: Path) -> None:
    """Two runs begin the same study at the same moment: the one that wrote first finds out, and says so."""
    journal, problem = tmp_path / "study.journal", tiny_problem(LIMITS)
    quality = KnownQuality(problem)

    def score(arrangement):
        study = optuna.load_study(study_name="search latency_ms=130 memory_mb=27", storage=open_storage(journal))
        study.set_user_attr("identity", {**IDENTITY, "space": "another"})
        time.sleep(1.1)
        return quality(arrangement)

    with pytest.raises(NasError, match="space was another, is tiny"):
        run(journal, problem=problem, score=score)
    assert len(quality.asked) == 1


def test_what_the_check_raises_ends_the_worker_and_loses_nothing(tmp_path: Path) -> None:
    calls = iter([None] * 5 + [NasError("the table changed")])

    def check() -> None:
        error = next(calls, None)
        if error is not None:
            raise error

    with pytest.raises(NasError, match="the table changed"):
        run(tmp_path / "study.journal", check=check)
    assert [e.choice for e in run(tmp_path / "study.journal")] == [e.choice for e in run(tmp_path / "whole.journal")]


def test_a_score_that_is_no_number_ends_the_search_with_a_remedy(tmp_path: Path) -> None:
    problem = tiny_problem(LIMITS)

    def score(arrangement):
        return replace(KnownQuality(problem)(arrangement), loss=float("nan"))

    with pytest.raises(NasError, match="is nan; .*train it again"):
        run(tmp_path / "study.journal", problem=problem, score=score)


# Journal files -----------------------------------------------------------------------------------------


def test_half_a_line_of_a_killed_writer_is_cut_off(tmp_path: Path) -> None:
    journal = tmp_path / "study.journal"
    run(journal, trials=4)
    with journal.open("ab") as lines:
        lines.write(b'{"op_code":8,"worker_id":"gone","tri')
    assert [e.choice for e in run(journal)] == [e.choice for e in run(tmp_path / "whole.journal")]
    assert b"gone" not in journal.read_bytes()


def test_a_study_that_was_stopped_in_a_trial_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    problem = tiny_problem(LIMITS)
    quality = KnownQuality(problem)

    def score(arrangement):
        if len(quality.asked) == 9:
            raise KeyboardInterrupt
        return quality(arrangement)

    for sampler in ("random", "nsga2", "surrogate"):
        quality.asked.clear()
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / sampler, problem=problem, score=score, trials=30, sampler=sampler)
        resumed = run(tmp_path / sampler, trials=30, sampler=sampler)
        whole = run(tmp_path / f"{sampler}.whole", trials=30, sampler=sampler)
        assert [e.choice for e in resumed] == [e.choice for e in whole]


def test_an_evaluation_is_three_records(tmp_path: Path) -> None:
    """What Optuna alone writes one by one, parameter by parameter, each waiting for the disk."""
    journal = tmp_path / "study.journal"
    run(journal, trials=2)
    before = len(journal.read_text().splitlines())
    run(journal, trials=12)
    assert len(journal.read_text().splitlines()) == before + 3 * 10


def test_a_trial_that_a_user_enqueued_is_run_first_unless_it_breaks_the_budget(tmp_path: Path) -> None:
    journal, problem = tmp_path / "study.journal", tiny_problem(LIMITS)
    run(journal, trials=2)
    choices = problem.costs.random(200, np.random.default_rng(0))
    fits = problem.feasible(choices)
    study = open_study(journal, IDENTITY, problem)
    for choice in (choices[fits][0], choices[~fits][0]):
        study.enqueue_trial(problem.params(choice))
    found = run(journal, trials=4)
    assert tuple(int(i) for i in choices[fits][0]) == found[-2].choice
    assert all(e.feasible for e in found if not e.is_reference)
    assert len([e for e in found if not e.is_reference]) == 4
    dropped = [t for t in study.get_trials() if GAVE_WAY in t.user_attrs]
    assert [t.user_attrs[GAVE_WAY] for t in dropped] == ["breaks the budget"]


# Leases ------------------------------------------------------------------------------------------------


def claimed(storage: Drafting, study: optuna.Study, problem: Problem, owner: Owner, seed: int) -> FrozenTrial:
    """A running trial of a worker that is not this process."""
    rng = np.random.default_rng(seed)
    choices = problem.costs.random(2000, rng)
    choice = choices[problem.feasible(choices)][0]
    attributes = {"origin": "random", "feasible": True, OWNER: owner.to_json()}
    with storage.drafting([], attributes, {"fixed_params": problem.params(choice)}) as draft:
        study.ask(dict(problem.distributions))
        trial_id = draft.keep()
    return storage.get_trial(trial_id)


def elsewhere(number: int) -> Owner:
    return Owner("another machine", number, 0.0, str(number))


def begin(where: Path) -> tuple[Drafting, optuna.Study, Problem]:
    problem = tiny_problem(LIMITS)
    storage = Drafting(open_storage(where))
    return storage, open_study(where, IDENTITY, problem, storage=storage), problem


def test_a_worker_elsewhere_is_gone_when_its_beat_stands_still_for_a_lease(tmp_path: Path, monkeypatch) -> None:
    storage, study, problem = begin(tmp_path / "study.journal")
    trials = [claimed(storage, study, problem, elsewhere(number), number)._trial_id for number in (1, 2)]
    now = [100.0]
    monkeypatch.setattr("nas.search.lease.time.monotonic", lambda: now[0])
    keeper = Keeper(storage, study._study_id, Owner.me(), lease=60.0)
    for beat in range(6):
        storage.set_trial_user_attr(trials[1], BEAT, beat)
        silent, beating = map(storage.get_trial, trials)
        keeper.look([silent, beating])
        assert not keeper.dead(beating) and keeper.dead(silent) == (now[0] - 100.0 > 60.0)
        now[0] += 15.0
    assert keeper.dead(silent)


def test_the_last_trial_of_a_worker_elsewhere_is_waited_for_and_then_run_here(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("nas.search.study.PATIENCE", 0.1)
    journal, said = tmp_path / "study.journal", []
    storage, study, problem = begin(journal)
    gone = claimed(storage, study, problem, elsewhere(1), 1)
    found = run(journal, trials=3, lease=0.4, tell=said.append)
    assert len([e for e in found if not e.is_reference]) == 3
    assert tuple(int(i) for i in problem.indices(gone.params)) == found[-1].choice
    assert said == ["search     waiting for the last 1 of other workers, or for their leases to end"]


def test_a_watcher_that_saw_nothing_for_a_while_counts_from_then_on(tmp_path: Path, monkeypatch) -> None:
    """The storage was away, or this machine slept: nobody could beat, and nobody is taken for dead."""
    storage, study, problem = begin(tmp_path / "study.journal")
    trial = claimed(storage, study, problem, elsewhere(1), 1)
    now = [100.0]
    monkeypatch.setattr("nas.search.lease.time.monotonic", lambda: now[0])
    keeper = Keeper(storage, study._study_id, Owner.me(), lease=60.0)
    keeper.look([trial])
    now[0] += 300.0
    keeper.look([trial])
    assert not keeper.dead(trial)
    for _ in range(5):
        now[0] += 15.0
        keeper.look([trial])
    assert keeper.dead(trial)


def test_a_worker_of_this_machine_is_gone_with_its_process(tmp_path: Path) -> None:
    storage, study, problem = begin(tmp_path / "study.journal")
    me = Owner.me()
    keeper = Keeper(storage, study._study_id, me)
    assert keeper.dead(claimed(storage, study, problem, replace(me, pid=2**22 + 1), 1))
    assert keeper.dead(claimed(storage, study, problem, replace(me, born=me.born - 1000.0), 2))  # a number used again
    assert not keeper.dead(claimed(storage, study, problem, replace(me, token="another search here"), 3))


def test_a_lost_arrangement_is_run_again_once_however_many_find_it(tmp_path: Path) -> None:
    journal, lock, asked = tmp_path / "study.journal", threading.Lock(), []
    storage, study, problem = begin(journal)
    lost = [claimed(storage, study, problem, replace(Owner.me(), pid=2**22 + n), n) for n in range(1, 4)]
    quality = KnownQuality(problem)

    def score(arrangement):
        with lock:
            asked.append(arrangement.key)
        time.sleep(0.01)
        return quality(arrangement)

    together = [
        threading.Thread(target=run, args=(journal,), kwargs={"score": score, "problem": tiny_problem(LIMITS)})
        for _ in range(3)
    ]
    for thread in together:
        thread.start()
    for thread in together:
        thread.join()
    found = run(journal)
    choices = {tuple(int(i) for i in problem.indices(trial.params)) for trial in lost}
    assert choices <= {e.choice for e in found}
    assert len(set(asked)) == len(asked) == len(found)
    assert len([e for e in found if not e.is_reference]) == 12


def test_a_lost_arrangement_is_run_again_once_while_an_earlier_trial_still_runs(tmp_path: Path) -> None:
    journal = tmp_path / "study.journal"
    storage, study, problem = begin(journal)
    earlier = claimed(storage, study, problem, replace(Owner.me(), token="another search here"), 1)
    lost = claimed(storage, study, problem, replace(Owner.me(), pid=2**22 + 1), 2)
    threading.Timer(1.0, storage.set_trial_state_values, (earlier._trial_id, TrialState.FAIL)).start()
    run(journal, trials=3)
    retries = [t for t in study.get_trials(deepcopy=False) if t.user_attrs.get(RETRY_OF) == lost.number]
    assert [t.state for t in retries] == [TrialState.COMPLETE]


def test_an_arrangement_that_ends_every_worker_is_left_alone_in_the_end(tmp_path: Path) -> None:
    journal, problem = tmp_path / "study.journal", tiny_problem(LIMITS)
    quality, poison = KnownQuality(problem), []

    def score(arrangement):
        if len(quality.asked) == 6 and not poison:
            poison.append(arrangement.key)
        if arrangement.key in poison:
            raise MemoryError
        return quality(arrangement)

    for _ in range(LOSSES):
        with pytest.raises(MemoryError):
            run(journal, problem=problem, score=score)
    found = run(journal, problem=problem, score=score)
    assert len([e for e in found if not e.is_reference]) == 12
    assert poison[0] not in {e.arrangement.key for e in found}


def test_a_worker_that_stood_still_for_too_long_drops_its_result(tmp_path: Path) -> None:
    journal, problem, said = tmp_path / "study.journal", tiny_problem(LIMITS), []
    quality = KnownQuality(problem)

    def score(arrangement):
        if len(quality.asked) == 3:  # another worker takes this one for dead
            storage = open_storage(journal)
            (study_id,) = (s._study_id for s in storage.get_all_studies())
            for trial in storage.get_all_trials(study_id, states=(TrialState.RUNNING,)):
                storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        return quality(arrangement)

    found = run(journal, problem=problem, score=score, tell=said.append)
    assert [e.choice for e in found] == [e.choice for e in run(tmp_path / "whole.journal")]
    assert len(said) == 1 and "was taken over" in said[0]


def test_the_ledger_says_what_reading_all_trials_says(tmp_path: Path) -> None:
    storage, study, problem = begin(tmp_path / "study.journal")
    run(tmp_path / "study.journal", trials=10)
    gone = claimed(storage, study, problem, replace(Owner.me(), pid=2**22 + 1), 50)
    ledger = ledger_of(study, problem)
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    assert len(ledger.taken) == len(complete) + 1
    assert ledger.done == 10 and ledger.searched_before(None) == 11
    assert ledger.searched_before(gone.number) == 10
    assert [t.number for t in ledger.running] == [gone.number]
    storage.set_trial_state_values(gone._trial_id, TrialState.FAIL)
    choice = tuple(int(i) for i in problem.indices(gone.params))
    assert list(ledger_of(study, problem).lost) == [choice] and choice not in ledger.taken


def test_trials_hold_one_copy_of_what_may_be_chosen(tmp_path: Path) -> None:
    storage, study, problem = begin(tmp_path / "study.journal")
    run(tmp_path / "study.journal", trials=3)
    ledger = ledger_of(study, problem)
    held = {id(trial.distributions[name]) for trial in ledger.trials for name in problem.positions}
    assert len(held) == len(problem.positions)
    assert [e.trial for e in run(tmp_path / "study.journal", trials=3)] == [t.number for t in ledger.trials]
