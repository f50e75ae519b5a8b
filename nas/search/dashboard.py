"""optuna-dashboard on a run's studies, to look at and not to change, with what breaks a limit marked as infeasible."""

from __future__ import annotations

import copy
import ipaddress
import socket
from collections.abc import Callable, Container
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from nas.errors import NasError
from nas.search.records import LABELS
from nas.search.storage import Through, open_storage

OLD_KEY = "constraints"  # where Optuna before 5.0 kept all values, and where optuna-dashboard 0.21 looks


READS = ("get_", "remove_session")  # calls of a storage that change nothing


class Marked(Through):
    """Trials with their constraints where the dashboard reads them as well, and the names of what they chose.

    A trial keeps the number of an option, its study the names; here each trial gets a user attribute for each position
    that holds layers. What would write is refused.
    """

    def __init__(self, inner: BaseStorage) -> None:
        super().__init__(inner)
        self._labels: dict[int, dict[str, list[str]]] = {}  # by study

    def _call(self, name: str, *args: Any) -> Any:
        if not name.startswith(READS):
            raise ReadOnly(f"{name}: the dashboard shows studies and changes nothing")
        return super()._call(name, *args)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        trial = super().get_trial(trial_id)
        for study in self.get_all_studies():
            if any(other._trial_id == trial_id for other in super().get_all_trials(study._study_id, deepcopy=False)):
                return _marked(trial, self._labels_of(study._study_id))
        return _marked(trial, {})

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        labels = self._labels_of(study_id)
        return [_marked(trial, labels) for trial in super().get_all_trials(study_id, deepcopy, states)]

    def _labels_of(self, study_id: int) -> dict[str, list[str]]:
        if not self._labels.get(study_id):
            found = super().get_study_user_attrs(study_id).get(LABELS, {})
            self._labels[study_id] = found if isinstance(found, dict) else {}
        return self._labels[study_id]

    def get_all_studies(self) -> Any:
        studies = super().get_all_studies()
        for study in studies:
            study.user_attrs = {name: value for name, value in study.user_attrs.items() if name != LABELS}
        return studies

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """Without the names: there are thousands, and each trial shows its own."""
        return {name: value for name, value in super().get_study_user_attrs(study_id).items() if name != LABELS}


class ReadOnly(RuntimeError):
    """Somebody asked the dashboard to change a study."""


def _marked(trial: FrozenTrial, labels: dict[str, list[str]]) -> FrozenTrial:
    marked = copy.copy(trial)
    names = {}
    for position, option in trial.params.items():
        options = labels.get(position, [])
        if isinstance(option, int) and 0 < option < len(options):  # the first is none
            names[position] = options[option]
    marked.user_attrs = {**trial.user_attrs, **names}
    values = list(trial.constraints.values())
    if values and OLD_KEY not in trial.system_attrs:
        marked._system_attrs = {**trial.system_attrs, OLD_KEY: values}
    return marked


def make_app(where: Path | str) -> Any:
    """The dashboard of a journal file or a database, as a WSGI application.

    Raises:
        NasError: if there is no study yet, or optuna-dashboard is not installed.
    """
    try:
        from optuna_dashboard import wsgi
    except ImportError:
        raise NasError(
            "optuna-dashboard is not installed; install it with pip install 'temporal-nas[dashboard]'"
        ) from None
    if isinstance(where, Path) and not where.exists():
        raise NasError(f"{where}: no study there yet; make one with nas search {where.parent}")
    return wsgi(Marked(open_storage(where)))


LOCAL = ("127.0.0.1", "localhost", "::1")
READING = ("GET", "HEAD", "OPTIONS")


def guarded(app: Any, host: str) -> Any:
    """An application that answers questions alone, and those of its own page alone.

    A page of another site that a browser has open may send requests here, and a name of its own may lead here (DNS
    rebinding): the Host that is asked for and the Origin of who asks must be this server's address.

    Args:
        host: what the server listens at; a wildcard address has no one name, and is left to who chose it.
    """

    def answer(environment: dict[str, Any], start: Any) -> Any:
        asked, origin = environment.get("HTTP_HOST", ""), environment.get("HTTP_ORIGIN")
        if environment["REQUEST_METHOD"] not in READING:
            return _refused(start, "405 Method Not Allowed", "the dashboard shows studies and changes nothing")
        if not _is_here(asked, host):
            return _refused(start, "403 Forbidden", f"asked for as {asked!r}, which is not this server's address")
        if origin is not None and origin.partition("://")[2] != asked:
            return _refused(start, "403 Forbidden", f"asked by {origin!r}, which is another site")
        return app(environment, start)

    return answer


def _is_here(asked: str, host: str) -> bool:
    name = asked.rsplit(":", 1)[0] if asked.rpartition(":")[2].isdigit() else asked
    name = name.strip("[]").lower()
    if host in ("0.0.0.0", "::", ""):  # noqa: S104 - said on the command line
        return bool(name) and (name in LOCAL or name == socket.gethostname().lower() or _is_address(name))
    return name == host.lower() or (host in LOCAL and name in LOCAL)


def _is_address(name: str) -> bool:
    """Whether it is a number and no name: no name of a stranger's leads here then."""
    try:
        ipaddress.ip_address(name)
        return True
    except ValueError:
        return False


def _refused(start: Any, status: str, why: str) -> list[bytes]:
    start(status, [("Content-Type", "text/plain; charset=utf-8")])
    return [f"{why}\n".encode()]


def serve(where: Path | str, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Show the dashboard until stopped; ``ready`` is called with its address.

    Raises:
        NasError: if the address is none of this machine's, or is in use.
    """
    if not host.strip():
        raise NasError("--host is empty, which would be every address of this machine; give 127.0.0.1, or 0.0.0.0")
    app = make_app(where)
    try:
        server = make_server(host, port, guarded(app, host), server_class=_Server, handler_class=_Quiet)
    except OSError as error:
        raise NasError(
            f"port {port} of {host} cannot be used ({error.strerror}); give another --port or --host"
        ) from None
    with server:
        ready(f"http://{host}:{server.server_port}/")
        server.serve_forever()


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """No line for each request."""
