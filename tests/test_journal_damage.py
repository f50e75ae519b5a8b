"""What power cuts, network file systems and editors leave in a journal costs the damaged lines alone, and is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from search_problems import KnownQuality, tiny_problem

from latency_tables.budget import Budget
from nas.errors import NasError
from nas.search.journal import open_journal
from nas.search.ledger import LOSSES
from nas.search.storage import open_storage
from nas.search.studies import Evaluation
from nas.search.study import search

LIMITS = Budget(latency_ms=130.0, memory_mb=27.0)
TRIALS = 5


def run(journal: Path, trials: int = TRIALS, score=None, tell=print, **more) -> tuple[list[Evaluation], list[str]]:
    problem = tiny_problem(LIMITS)
    quality = KnownQuality(problem)
    settings = {"identity": {"space": "tiny"}, "sampler": "random", "seed": 0, "tell": tell, **more}
    return search(problem, score or quality, journal, trials=trials, **settings), quality.asked


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[Evaluation]]:
    path = tmp_path_factory.mktemp("whole") / "study.journal"
    found, _ = run(path)
    return path.read_bytes(), found


def middle(lines: list[bytes], what: bytes) -> int:
    """The line in the middle of those that hold something."""
    some = [i for i, line in enumerate(lines) if what in line]
    return some[len(some) // 2]


def at(what: bytes, change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    def damage(data: bytes) -> bytes:
        lines = data.splitlines(keepends=True)
        place = middle(lines, what)
        lines[place] = change(lines[place])
        return b"".join(lines)

    return damage


CREATED, SCORED, ENDED = b'"op_code":4', b'"score"', b'"op_code":6'
# Kind -> (what it does to the file, lines that cannot be read, evaluations that have to be made again).
HARMLESS = {
    "zeros at the end": lambda data: data + b"\0" * 4096,
    "a line of zeros": lambda data: data + b"\0" * 4096 + b"\n",
    "a blank line": at(SCORED, lambda line: b"\n" + line),
    "blank lines at the end": lambda data: data + b"\n\n",
    "line ends of another system": lambda data: data.replace(b"\n", b"\r\n"),
}
DAMAGED = {
    "two lines in one": (at(SCORED, lambda line: line[:40] + line), 0),
    "half a line that ends a trial": (at(ENDED, lambda line: line[:40] + b"\n"), 1),
    "half a line that scores": (at(SCORED, lambda line: line[:40] + b"\n"), 1),
    "half a line that creates": (at(CREATED, lambda line: line[:40] + b"\n"), 1),
    "bytes that are no text": (at(CREATED, lambda line: line[:60] + b"\xff\xfe" + line[62:]), 1),
    "a number for a score": (at(SCORED, lambda line: line.replace(b'"score":{', b'"score":3,"x":{')), 1),
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_what_holds_nothing_costs_nothing(kind: str, whole: tuple[bytes, list[Evaluation]], tmp_path: Path) -> None:
    data, before = whole
    (tmp_path / "study.journal").write_bytes(HARMLESS[kind](data))
    said: list[str] = []
    found, asked = run(tmp_path / "study.journal", tell=said.append)
    assert [(e.choice, e.loss) for e in found] == [(e.choice, e.loss) for e in before]
    assert asked == [] and said == []
    more, asked = run(tmp_path / "study.journal", trials=TRIALS + 2, tell=said.append)
    assert len(more) == len(before) + 2 == len({e.choice for e in more}) and len(asked) == 2 and said == []


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_line_costs_what_it_said_and_nothing_else(
    kind: str, whole: tuple[bytes, list[Evaluation]], tmp_path: Path
) -> None:
    data, before = whole
    change, lost = DAMAGED[kind]
    path = tmp_path / "study.journal"
    path.write_bytes(change(data))
    assert path.read_bytes() != data
    said: list[str] = []
    found, asked = run(path, tell=said.append, lease=0.5)  # who began the trials is this very process, and lives
    true = {e.choice: e.loss for e in before}
    assert len(true.keys() - {e.choice for e in found}) <= lost
    assert all(e.loss == true.get(e.choice, e.loss) for e in found), "no score may go to another arrangement"
    assert len(asked) == lost
    assert len([e for e in found if not e.is_reference]) == TRIALS
    told = [line for line in said if "damaged" in line]
    assert told and all("\n" not in line for line in told)


@pytest.mark.parametrize("field", ["loss_stderr", "origin", "key", "values", "feasible", "score", "params"])
@pytest.mark.parametrize("value", ["words", {}])
def test_a_record_with_another_word_in_it_is_left_out(
    field: str, value: object, whole: tuple[bytes, list[Evaluation]], tmp_path: Path
) -> None:
    data, before = whole
    lines = data.splitlines(keepends=True)
    place = middle(lines, f'"{field}"'.encode())
    lines[place] = (json.dumps(changed(json.loads(lines[place]), field, value)) + "\n").encode()
    (tmp_path / "study.journal").write_bytes(b"".join(lines))
    said: list[str] = []
    found, asked = run(tmp_path / "study.journal", tell=said.append)
    assert len([e for e in found if not e.is_reference]) == TRIALS and len(asked) <= 1
    true = {e.choice: e.loss for e in before}
    assert all(e.loss == true.get(e.choice, e.loss) for e in found)


def changed(record: object, field: str, value: object) -> object:
    if isinstance(record, dict):
        return {name: value if name == field else changed(inner, field, value) for name, inner in record.items()}
    return record


def test_a_study_of_version_0_1_is_one_line(tmp_path: Path) -> None:
    journal = tmp_path / "study.journal"
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(journal)))
    study = optuna.create_study(storage=storage, study_name="search latency_ms=130 memory_mb=27")
    study.ask({"down.0.0": optuna.distributions.CategoricalDistribution(("none", "Conv1D(kernel_size=3)"))})
    before = journal.read_bytes()
    with pytest.raises(NasError, match="a study of version 0.1.*move it away") as error:
        run(journal)
    assert "\n" not in str(error.value) and journal.read_bytes() == before


def test_numbers_stay_right_when_a_line_that_creates_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    run(path)
    lines = path.read_bytes().splitlines(keepends=True)
    place = middle(lines, CREATED)
    whole_storage, _ = open_journal(path)
    before = whole_storage.get_all_trials(0)
    lines[place] = lines[place][:40] + b"\n"
    path.write_bytes(b"".join(lines))
    storage, said = open_journal(path)
    after = storage.get_all_trials(0)
    assert len(after) == len(before) and f"the first is line {place + 1};" in said
    different = [a.number for a, b in zip(before, after, strict=True) if (a.params, a.values) != (b.params, b.values)]
    assert len(different) == 1 and after[different[0]].state == TrialState.FAIL


FIRST = {
    "its second half": lambda line: line[:60] + b"\n",
    "its first half": lambda line: line[60:],
    "a letter of the study's name": lambda line: line.replace(b"latency_ms", b"latency\xff\xfes"),
    "all of it, to zeros": lambda line: b"\0" * len(line) + b"\n",
    "all of it": lambda line: b"",
}


@pytest.mark.parametrize("kind", FIRST)
def test_a_damaged_first_line_costs_no_score_of_the_study_that_it_created(
    kind: str, whole: tuple[bytes, list[Evaluation]], tmp_path: Path
) -> None:
    data, before = whole
    first, _, rest = data.partition(b"\n")
    path = tmp_path / "study.journal"
    path.write_bytes(FIRST[kind](first + b"\n") + rest)
    found, asked = run(path)
    assert asked == [] and [(e.trial, e.choice, e.loss) for e in found] == [(e.trial, e.choice, e.loss) for e in before]
    assert [study.study_name for study in open_storage(path).get_all_studies()] == [
        "search latency_ms=130 memory_mb=27"
    ]


def test_a_study_that_lost_its_name_for_good_still_gives_its_scores(
    whole: tuple[bytes, list[Evaluation]], tmp_path: Path
) -> None:
    lines = whole[0].splitlines(keepends=True)
    path = tmp_path / "study.journal"
    path.write_bytes(b"".join(line for line in lines[1:] if b'"named"' not in line))
    found, asked = run(path)
    assert asked == [] and {e.choice: e.loss for e in found} == {e.choice: e.loss for e in whole[1]}


def test_a_number_beyond_reason_makes_no_room_for_studies(
    whole: tuple[bytes, list[Evaluation]], tmp_path: Path
) -> None:
    path = tmp_path / "study.journal"
    stray = b'{"op_code":2,"worker_id":"x","study_id":1000000000,"user_attr":{"a":1}}\n'
    path.write_bytes(whole[0] + stray)
    assert len(open_journal(path)[0].get_all_studies()) == 1


# Interruptions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("signal", [KeyboardInterrupt, SystemExit])
def test_stopping_a_search_again_and_again_drops_nothing(signal: type[BaseException], tmp_path: Path) -> None:
    journal, problem, said = tmp_path / "study.journal", tiny_problem(LIMITS), []

    def stop(arrangement):
        raise signal

    for _ in range(LOSSES + 2):
        with pytest.raises(signal):
            run(journal, score=stop)
    found, asked = run(journal, tell=said.append)
    assert said == [] and len(asked) == len(found)
    assert {e.choice for e in found if e.is_reference} == {tuple(map(int, c)) for c in problem.hand_made().values()}


def test_what_is_dropped_is_named_a_design_by_hand_included(tmp_path: Path) -> None:
    journal, problem = tmp_path / "study.journal", tiny_problem(LIMITS)
    quality, left = KnownQuality(problem), []
    poison = problem.arrangement(problem.hand_made()["all Conv1D"]).key

    def score(arrangement):
        if arrangement.key == poison:
            raise MemoryError
        return quality(arrangement)

    for _ in range(LOSSES):
        with pytest.raises(MemoryError):
            run(journal, score=score)
    for _ in range(2):
        left.clear()
        found, _ = run(journal, score=score, left_out=left.append)
        assert poison not in {e.arrangement.key for e in found}
        assert len(left) == 1 and f"as {LOSSES} workers ended while they scored it: all Conv1D (down.0.0: " in left[0]


def test_opening_says_nothing_of_a_sound_journal(whole: tuple[bytes, list[Evaluation]], tmp_path: Path) -> None:
    (tmp_path / "study.journal").write_bytes(whole[0])
    said: list[str] = []
    open_storage(tmp_path / "study.journal", said.append)
    assert said == []
