"""Who runs a trial, and whether that worker is still there: one rule for every storage.

A running trial names its worker and counts its worker's beats. A worker of this machine is gone when its process is;
one elsewhere when its beat has stood still for a lease, by the clock of whoever watches: no two clocks are compared.
"""

from __future__ import annotations

import os
import platform
import threading
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import optuna
import psutil
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

LEASE = 60.0  # seconds without a beat after which a worker elsewhere is gone
BEATS = 4  # a lease
OWNER, BEAT = "worker", "beat"  # user attributes of a running trial


@dataclass(frozen=True)
class Owner:
    """A worker: one process that searches one study.

    Attributes:
        machine: host, boot and process namespace: process numbers mean the same within it.
        pid, born: the process and when it began, so that one with the same number is not taken for it.
        token: of this search, as a process may search more than once.
    """

    machine: str
    pid: int
    born: float
    token: str

    @classmethod
    def me(cls) -> Owner:
        return cls(_machine(), os.getpid(), _born(os.getpid()) or 0.0, uuid.uuid4().hex[:8])

    def to_json(self) -> dict[str, Any]:
        return {"machine": self.machine, "pid": self.pid, "born": self.born, "token": self.token}

    @classmethod
    def of(cls, trial: FrozenTrial) -> Owner | None:
        data = trial.user_attrs.get(OWNER)
        if not isinstance(data, dict) or data.keys() != cls.__dataclass_fields__.keys():
            return None
        return cls(**data) if type(data["pid"]) is int else None

    def gone(self) -> bool:
        """Whether the process is known to have ended; False where that cannot be seen."""
        if self.machine != _machine() or _born(self.pid) == self.born:
            return False
        try:
            os.kill(self.pid, 0)
        except PermissionError:  # another user's, and hidden from this one
            return False
        except OSError:
            pass
        return True


def _born(pid: int) -> float | None:
    """When a process began, by a clock that nobody sets; ``None`` if it has ended."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        if Path("/proc/self/stat").exists():
            state, *fields = stat.read_text().rsplit(")", 1)[1].split()
            return None if state in "ZX" else float(fields[18])  # ticks from boot to its start
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else round(process.create_time())
    except (OSError, psutil.NoSuchProcess):
        return None


@cache
def _machine() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id")
    parts = [platform.node(), boot.read_text().strip() if boot.exists() else ""]
    try:
        parts.append(os.readlink("/proc/self/ns/pid"))
    except OSError:
        pass
    return " ".join(parts)


class Keeper:
    """A thread that beats for this worker's trials and watches the beats of others.

    Args:
        storage: of the study; its calls may wait. study_id: in it.
        owner: this worker. lease: seconds without a beat after which another is gone.
    """

    def __init__(self, storage: BaseStorage, study_id: int, owner: Owner, lease: float = LEASE) -> None:
        self._storage, self._study_id = storage, study_id
        self.owner, self._lease = owner, lease
        self._mine: tuple[int, ...] = ()
        self._beat = 0
        self._seen: dict[int, tuple[Any, float]] = {}  # trial id -> its beat, and since when that stands still
        self._looked = time.monotonic()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)

    def __enter__(self) -> Keeper:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=1.0)  # a storage that is away keeps it; it is a daemon

    def hold(self, trial_ids: Iterable[int]) -> None:
        """Beat for these trials from now on, and for no other."""
        with self._lock:
            self._mine, self._beat = tuple(trial_ids), 0

    def dead(self, trial: FrozenTrial) -> bool:
        """Whether nobody runs a running trial any more."""
        owner = Owner.of(trial)
        if owner == self.owner:
            return trial._trial_id not in self._mine  # written twice by a call that was repeated
        if owner is not None and owner.gone():
            return True
        with self._lock:
            beat, since = self._seen.get(trial._trial_id, (None, self._looked))
            return self._looked - since > self._lease and beat == _beat_of(trial)

    def look(self, running: Iterable[FrozenTrial]) -> None:
        """Note the beats of running trials. After a gap, when this worker saw nothing, all of them count from now."""
        now = time.monotonic()
        with self._lock:
            blind = now - self._looked > 2 * self._lease / BEATS
            self._looked = now
            seen = {}
            for trial in running:
                beat = _beat_of(trial)
                known = self._seen.get(trial._trial_id)
                stands = known is not None and known[0] == beat and not blind
                seen[trial._trial_id] = known if stands and known is not None else (beat, now)
            self._seen = seen

    def _run(self) -> None:
        while not self._stop.wait(self._lease / BEATS):
            try:
                self._renew()
                self.look(self._storage.get_all_trials(self._study_id, deepcopy=False, states=(TrialState.RUNNING,)))
            except Exception:  # the search itself meets the same fault, and says it
                continue

    def _renew(self) -> None:
        with self._lock:
            mine = self._mine
            self._beat += 1
            beat = self._beat
        for trial_id in mine:
            try:
                self._storage.set_trial_user_attr(trial_id, BEAT, beat)
            except optuna.exceptions.UpdateFinishedTrialError:
                continue  # it ended just now


def _beat_of(trial: FrozenTrial) -> Any:
    return trial.user_attrs.get(BEAT, 0)
