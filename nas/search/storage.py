"""Where a study is kept: a journal file, or a database for many machines; who uses it waits while it is away."""

from __future__ import annotations

import copy
import errno
import os
import re
import threading
import time
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from nas.console import say
from nas.errors import NasError
from nas.search.journal import open_journal

RETRY_FIRST, RETRY_LAST = 0.2, 2.0  # seconds between tries of a storage that is away: doubled from one to the other
DRAFT = -1  # id of the trial that is not yet written
# What Optuna's own storage is made for: how sqlalchemy names it with a driver, and what brings that.
KINDS = {
    "postgresql": ("postgresql+psycopg", "pip install 'temporal-nas[postgres]'"),
    "mysql": ("mysql+pymysql", "pip install pymysql"),
    "mariadb": ("mariadb+pymysql", "pip install pymysql"),
    "sqlite": ("sqlite", "it comes with Python"),
}
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT)
# PostgreSQL's classes of SQLSTATE that pass: connection, resources, operator intervention; 40: deadlock, try again.
PASSING = ("08", "53", "57", "40")

UNKNOWN_HOST = re.compile("resolve host|translate host name|not known")  # a wrong URL, when it is the first call

Say = Callable[[str], None]


def open_storage(where: Path | str, tell: Say = say) -> Patient:
    """The storage at ``where``: a journal file's path, or a database's URL.

    A database that does not answer is waited for; calls of what is returned wait in the same way.

    Raises:
        NasError: if the file is no journal, the URL cannot be understood, or the database refuses this user.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if isinstance(where, Path):
        try:
            studies, damage = open_journal(where)
        except OSError as error:
            raise NasError(f"{where}: {error.strerror or error}; give a folder that can be written") from error
        if damage:
            tell(damage)
        return Patient(studies, str(where), tell)
    return _open_database(where, tell)


def shown(url: str) -> str:
    """A database's URL as messages may show it: without its password, and without options, which may hold one.

    Raises:
        NasError: if it is no URL of a database that studies can be kept in, or one whose driver is not here.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    scheme, there, rest = url.partition("://")
    if there and rest.count("@") > 1:  # sqlalchemy would take half of the password for the host, and show it
        raise NasError(f"--storage {scheme}://…: an @ in a user's name or password is written %40; write it so")
    try:
        parsed = make_url(url)
        name = parsed.set(query={}).render_as_string(hide_password=True)
    except (ArgumentError, ValueError):
        told = re.sub(r"(://[^/:]*):[^/]*", r"\1:***", url.split("@")[-1])[:100]
        raise NasError(
            f"--storage {told}: must be the URL of a database, such as "
            "postgresql+psycopg://user@host/name; leave it out for the run's own journal file"
        ) from None
    _check_driver(parsed, name)
    return name


def _check_driver(url: Any, name: str) -> None:
    """Refuse a database that Optuna does not keep studies in, or whose driver is not installed, with what is."""
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    kind, _, driver = url.drivername.partition("+")
    if kind not in KINDS:
        known = f"Known kinds: {', '.join(KINDS)}"
        near = " Did you mean postgresql+psycopg://?" if kind == "postgres" else ""
        raise NasError(f"--storage {name}: studies are not kept in {kind!r}.{near} {known}")
    try:
        url.get_dialect().import_dbapi()
    except (ImportError, NoSuchModuleError, ArgumentError) as error:
        spelt, package = KINDS[kind]
        raise NasError(
            f"--storage {name}: its driver is not here ({error}); write {spelt}:// and install it: {package}"
        ) from None


def _open_database(url: str, tell: Say) -> Patient:
    from sqlalchemy.exc import ProgrammingError, SQLAlchemyError

    name = shown(url)
    patience = _Patience(name, tell)
    while True:
        try:
            found = RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
            break
        except ProgrammingError as error:  # another process is making the tables at this moment
            if "already exists" not in str(error) and "duplicate key" not in str(error):
                raise NasError(f"{name}: {_first_line(error)}") from None
            time.sleep(RETRY_FIRST)
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            reason = outage(error)
            if reason is None and "duplicate key" in str(error):
                time.sleep(RETRY_FIRST)
                continue
            if reason is None or not url.startswith(("postgresql", "mysql")) or UNKNOWN_HOST.search(reason):
                raise NasError(f"{name}: {reason or _first_line(error)}; correct --storage") from None
            patience.wait(reason)
        except RuntimeError as error:  # Optuna on a schema of another version
            raise NasError(f"{name}: {_first_line(error)}") from None
    patience.over()
    return Patient(optuna.storages.get_storage(found), name, tell, found.engine.dispose)


def outage(error: BaseException) -> str | None:
    """Why a storage is away, in one line; ``None`` if the error is not one that passes."""
    from sqlalchemy.exc import DBAPIError, OperationalError
    from sqlalchemy.exc import TimeoutError as PoolTimeout

    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno in FULL else None
    cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
    if isinstance(cause, PoolTimeout):
        return _first_line(cause)
    if not isinstance(cause, DBAPIError):
        return None
    state = getattr(cause.orig, "sqlstate", None)
    passes = state.startswith(PASSING) if state else isinstance(cause, OperationalError)
    text = _first_line(cause.orig or cause)
    if any(wrong in text for wrong in ("password authentication", "does not exist", "no password", "no pg_hba")):
        return None
    return text if passes or cause.connection_invalidated else None


def _first_line(error: BaseException) -> str:
    """What a driver says, without its addresses and advice."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    told = next((line for line in lines if "failed: " in line), lines[0])
    return told.rsplit("failed: ", 1)[-1].removeprefix("FATAL: ").strip()


class _Patience:
    """Waits longer from try to try; says once that it does, and once that it is over."""

    def __init__(self, name: str, tell: Say) -> None:
        self._name, self._tell = name, tell
        self._since: float | None = None
        self._pause = RETRY_FIRST
        self._lock = threading.Lock()

    def wait(self, reason: str) -> None:
        with self._lock:
            if self._since is None:
                self._since = time.monotonic()
                self._tell(f"storage    {self._name} does not answer ({reason}); waiting for it, nothing is lost")
            pause = self._pause
            self._pause = min(2 * pause, RETRY_LAST)
        time.sleep(pause)

    def over(self) -> None:
        if self._since is None:
            return
        with self._lock:
            if self._since is not None:
                self._tell(f"storage    {self._name} answers again after {time.monotonic() - self._since:.0f} s")
            self._since, self._pause = None, RETRY_FIRST


class Through(BaseStorage):
    """A storage in front of another: every call goes through ``_call``."""

    def __init__(self, inner: BaseStorage) -> None:
        self._inner = inner

    def _call(self, name: str, *args: Any) -> Any:
        return getattr(self._inner, name)(*args)

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        return int(self._call("create_new_study", directions, study_name))

    def delete_study(self, study_id: int) -> None:
        self._call("delete_study", study_id)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        self._call("set_study_user_attr", study_id, key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self._call("set_study_system_attr", study_id, key, value)

    def get_study_id_from_name(self, study_name: str) -> int:
        return int(self._call("get_study_id_from_name", study_name))

    def get_study_name_from_id(self, study_id: int) -> str:
        return str(self._call("get_study_name_from_id", study_id))

    def get_study_directions(self, study_id: int) -> Any:
        return self._call("get_study_directions", study_id)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return dict(self._call("get_study_user_attrs", study_id))

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return dict(self._call("get_study_system_attrs", study_id))

    def get_all_studies(self) -> Any:
        return self._call("get_all_studies")

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        return int(self._call("create_new_trial", study_id, template_trial))

    def set_trial_param(self, trial_id: int, param_name: str, value: float, distribution: BaseDistribution) -> None:
        self._call("set_trial_param", trial_id, param_name, value, distribution)

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        return int(self._call("get_trial_id_from_study_id_trial_number", study_id, trial_number))

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        return bool(self._call("set_trial_state_values", trial_id, state, values))

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        self._call("set_trial_intermediate_value", trial_id, step, intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._call("set_trial_user_attr", trial_id, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._call("set_trial_system_attr", trial_id, key, value)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        return self._call("get_trial", trial_id)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        found: list[FrozenTrial] = self._call("get_all_trials", study_id, deepcopy, states)
        return found

    def remove_session(self) -> None:
        self._call("remove_session")


class Patient(Through):
    """Calls that wait while the storage is away, and say so in one line.

    A call may have done its work before its answer was lost, and is then done twice; whoever creates or ends trials
    checks for that (see ``nas.search.study``).
    """

    def __init__(self, inner: BaseStorage, name: str, tell: Say = say, close: Callable[[], None] | None = None) -> None:
        super().__init__(inner)
        self.name = name
        self._patience = _Patience(name, tell)
        self._close = close

    def close(self) -> None:
        """Let go of what is held open; a later call opens it again."""
        if self._close is not None:
            self._close()

    def _call(self, name: str, *args: Any) -> Any:
        while True:
            try:
                found = super()._call(name, *args)
            except Exception as error:
                reason = outage(error)
                if reason is None:
                    raise
                self._patience.wait(reason)
            else:
                self._patience.over()
                return found


class Drafting(Through):
    """Trials are drafted in memory and written whole: a proposal is visible to others with all it says, or not at all.

    Within ``drafting``, ``study.ask`` on this storage makes a draft; ``keep`` writes it as one record, where Optuna
    alone writes one for every parameter and attribute. The other trials stay those that were given: a sampler that
    asks for them many times reads nothing.
    """

    def __init__(self, inner: BaseStorage) -> None:
        super().__init__(inner)
        self._draft: FrozenTrial | None = None
        self._study_id = 0
        self._others: list[FrozenTrial] | None = None
        self._by_state: dict[tuple[TrialState, ...], list[FrozenTrial]] = {}
        self._attrs: tuple[dict[str, Any], dict[str, Any]] = ({}, {})

    @contextmanager
    def drafting(
        self, others: list[FrozenTrial], user_attrs: dict[str, Any], system_attrs: dict[str, Any]
    ) -> Iterator[Drafting]:
        """Draft a trial beside all ``others`` of the study, from these attributes; what is not kept is forgotten."""
        self._others, self._attrs = others, (dict(user_attrs), dict(system_attrs))
        self._by_state = {}
        try:
            yield self
        finally:
            self._draft, self._others = None, None

    def keep(self) -> int:
        """Write the draft; returns the trial's id."""
        assert self._draft is not None
        return super().create_new_trial(self._study_id, self._draft)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        if template_trial is not None or self._others is None:
            return super().create_new_trial(study_id, template_trial)
        self._study_id = study_id
        self._draft = FrozenTrial(
            number=len(self._others),
            trial_id=DRAFT,
            state=TrialState.RUNNING,
            value=None,
            datetime_start=datetime.now(),
            datetime_complete=None,
            params={},
            distributions={},
            user_attrs=self._attrs[0],
            system_attrs=self._attrs[1],
            intermediate_values={},
        )
        return DRAFT

    def get_trial(self, trial_id: int) -> FrozenTrial:
        return self._draft if trial_id == DRAFT and self._draft is not None else super().get_trial(trial_id)

    def set_trial_param(self, trial_id: int, param_name: str, value: float, distribution: BaseDistribution) -> None:
        if trial_id != DRAFT or self._draft is None:
            super().set_trial_param(trial_id, param_name, value, distribution)
            return
        self._draft.params = {**self._draft.params, param_name: distribution.to_external_repr(value)}
        self._draft.distributions = {**self._draft.distributions, param_name: distribution}

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        if trial_id != DRAFT or self._draft is None:
            super().set_trial_user_attr(trial_id, key, value)
            return
        self._draft.set_user_attr(key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        if trial_id != DRAFT or self._draft is None:
            super().set_trial_system_attr(trial_id, key, value)
            return
        self._draft._system_attrs[key] = value

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        if self._others is None:
            return super().get_all_trials(study_id, deepcopy, states)
        found = self._others
        if states is not None:
            key = tuple(state for state in TrialState if state in states)
            if key not in self._by_state:
                self._by_state[key] = [trial for trial in found if trial.state in key]
            found = self._by_state[key]
        return copy.deepcopy(found) if deepcopy else found
