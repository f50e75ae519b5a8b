"""A study's journal file: whole lines or none when writing, everything that can be read when reading."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._storage import JournalOperation
from optuna.study import StudyDirection
from optuna.trial import TrialState

from latency_tables.files import tell_unlocked
from nas.errors import NasError
from search_spaces.writing import lock

START = b'{"op_code":'
OPERATIONS = frozenset(int(operation) for operation in JournalOperation)
NAMED = "named"  # user attribute of a study: its name and how many directions it has, for when its first line is lost
NAMELESS = "damaged "  # before the number of a study whose name is lost
MOST_LOST = 8  # studies in a row that may have lost the lines that create them
LOOKED = 1_000_000  # bytes of a file in which a journal's first record is looked for
# What a record that Optuna cannot apply raises in it.
UNFIT = (KeyError, ValueError, TypeError, AttributeError, AssertionError, OverflowError, IndexError)


class Journal(JournalFileBackend):
    """Optuna's journal file, with a lock that dies with its holder, whole lines or none, and damage left out.

    Optuna's own locks are files: one left by a killed process stops all others for half a minute, and two processes
    that break it at once end each other. This one is the kernel's. What a process that died while it wrote has left
    of a line is cut off by the next writer. What a power cut, a network file system or an editor has left in the middle
    (blank lines, zeros, half a line, two lines in one) is passed over, where Optuna gives up all that follows.

    Trials are numbered by the lines that create them, and later lines go by number: of a damaged line that created a
    trial an empty failed one is kept in its place, or everything after would be taken for its neighbour's.

    Attributes:
        damaged: numbers of the lines that cannot be read. lines: how many there are so far.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path = path
        self.damaged: list[int] = []
        self._begin()

    def _begin(self) -> None:
        self._given, self._offset, self.lines = 0, 0, 0
        self._study = 0
        self.damaged.clear()

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Records from a number on; those that cannot be read have none."""
        if log_number_from < self._given:
            self._begin()
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):  # somebody writes it just now, or died while he did
                    break
                self._offset += len(line)
                self.lines += 1
                record = self._read(line)
                if record is None:
                    continue
                self._given += 1
                if self._given > log_number_from:
                    yield record

    def _read(self, line: bytes) -> dict[str, Any] | None:
        text = line.strip(b"\0 \t\r\n")
        if not text:
            return None  # nothing was ever written there
        record = parsed(text)
        if record is None:
            self.damaged.append(self.lines)
            last = text.rfind(START)
            record = parsed(text[last:]) if last > 0 else None  # half a line, and a whole one behind it
        if record is None:
            record = stand_in(text, self._study)
        if record is not None and record["op_code"] == JournalOperation.CREATE_TRIAL:
            self._study = record.get("study_id", self._study)
        return record

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        with self._path.open("r+b", buffering=0) as file:
            if not lock(file.fileno(), wait=True):
                tell_unlocked(self._path.parent)
            end = _whole_lines(file)
            try:
                view = memoryview(text)
                while view:
                    view = view[file.write(view) :]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(end)
                raise


class Readable(JournalStorage):
    """Studies of a journal; records that cannot be applied are left out, as those that cannot be read.

    Attributes:
        unfit: how many of them.
    """

    def __init__(self, journal: Journal) -> None:
        self.unfit = 0
        super().__init__(journal)

    def _sync_with_backend(self) -> None:
        replay = self._replay_result
        for record in self._backend.read_logs(replay.log_number_read):
            self._make_room(record)
            try:
                replay.apply_logs([record])
                self._name(record)
            except UNFIT:
                if str(record.get("worker_id", "")).startswith(self._worker_id_prefix):
                    raise  # an answer to this very process
                self.unfit += 1
                if record.get("op_code") == JournalOperation.CREATE_TRIAL:
                    study = record.get("study_id")
                    empty = _empty_trial(study if isinstance(study, int) else 0)
                    replay._apply_create_trial(empty)

    def _make_room(self, record: dict[str, Any]) -> None:
        """Have a study that a record speaks of, where the line that created it is lost: its trials are kept."""
        replay, study = self._replay_result, record.get("study_id")
        if isinstance(study, int) and study < replay._next_study_id + MOST_LOST:
            while replay._next_study_id <= study:
                replay._apply_create_study(_nameless_study(replay._next_study_id))

    def _name(self, record: dict[str, Any]) -> None:
        """Give a study that lost its name the one that it noted."""
        if record["op_code"] != JournalOperation.SET_STUDY_USER_ATTR or NAMED not in record["user_attr"]:
            return
        named, studies = record["user_attr"][NAMED], self._replay_result._studies
        study, name, count = studies[record["study_id"]], named["name"], named["directions"]
        if study.study_name.startswith(NAMELESS) and name not in [other.study_name for other in studies.values()]:
            study.study_name, study._directions = str(name), [StudyDirection.MINIMIZE] * int(count)


def open_journal(path: Path) -> tuple[Readable, str]:
    """The studies of a journal file, and a line on what of it cannot be read; an empty line if all can.

    Raises:
        NasError: if the file is no journal. OSError: if it cannot be read or made.
    """
    _check(path)
    journal = Journal(path)
    storage = Readable(journal)
    lost = len(journal.damaged) + storage.unfit
    if not lost:
        return storage, ""
    first = f", the first is line {journal.damaged[0]}" if journal.damaged else ""
    return storage, f"{path}: {lost} of {journal.lines} lines are damaged{first}; they are left out, the rest is kept"


def parsed(text: bytes) -> dict[str, Any] | None:
    """A record, if the text is one."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("worker_id"), str):
        return None
    operation = record.get("op_code")
    return record if isinstance(operation, int) and operation in OPERATIONS else None


def stand_in(text: bytes, study: int) -> dict[str, Any] | None:
    """What keeps the numbers right in place of a line that created a trial or a study and cannot be read."""
    if START + b"4," in text or b'"distributions"' in text or b'"fixed_params"' in text:
        return _empty_trial(study)
    name = re.search(rb'"study_name":("(?:[^"\\]|\\.)*"),"directions":(\[[0-9,]+\])', text)
    if name is None:
        return None  # if it created a study, what is said of that one makes room for it
    try:
        found = {"study_name": json.loads(name[1]), "directions": json.loads(name[2])}
    except ValueError:
        return None
    return {"op_code": int(JournalOperation.CREATE_STUDY), "worker_id": "", **found}


def _nameless_study(number: int) -> dict[str, Any]:
    directions = [int(StudyDirection.MINIMIZE)] * 2
    create = int(JournalOperation.CREATE_STUDY)
    return {"op_code": create, "worker_id": "", "study_name": f"{NAMELESS}{number}", "directions": directions}


def _empty_trial(study: int) -> dict[str, Any]:
    create, failed = int(JournalOperation.CREATE_TRIAL), int(TrialState.FAIL)
    return {"op_code": create, "worker_id": "", "study_id": study, "datetime_start": None, "state": failed}


def _whole_lines(file: Any) -> int:
    """Cut the file after its last whole line, stand there, and return where that is."""
    end = file.seek(0, os.SEEK_END)
    if end:
        file.seek(end - 1)
        if file.read(1) != b"\n":
            start = max(0, end - 1_000_000)
            file.seek(start)
            end = start + file.read(end - start).rfind(b"\n") + 1
            file.truncate(end)
            file.seek(end)
    return int(end)


def _check(path: Path) -> None:
    """Refuse a file that is no journal before Optuna appends to it, and one of version 0.1 before it is read whole."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb") as lines:
        head = lines.read(LOOKED)
    if START not in head:
        raise NasError(f"{path}: not an Optuna journal; move it away to search here")
    if b"CategoricalDistribution" in head:
        raise NasError(
            f"{path}: a study of version 0.1, which kept every option's label in every trial; this version does not "
            "read it: move it away to search again"
        )
