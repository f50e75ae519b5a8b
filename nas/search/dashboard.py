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

from optuna.trial import FrozenTrial, TrialState

from nas.errors import NasError
from nas.search.storage import Through, open_storage

OLD_KEY = "constraints"  # where Optuna before 5.0 kept all values, and where optuna-dashboard 0.21 looks


READS = ("get_", "remove_session")  # calls of a storage that change nothing


class Marked(Through):
    """Trials with their constraints where the dashboard reads them as well. What would write is refused."""

    def _call(self, name: str, *args: Any) -> Any:
        if not name.startswith(READS):
            raise ReadOnly(f"{name}: the dashboard shows studies and changes nothing")
        return super()._call(name, *args)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        return _marked(super().get_trial(trial_id))

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        return [_marked(trial) for trial in super().get_all_trials(study_id, deepcopy, states)]


class ReadOnly(RuntimeError):
    """Somebody asked the dashboard to change a study."""


def _marked(trial: FrozenTrial) -> FrozenTrial:
    values = list(trial.constraints.values())
    if not values or OLD_KEY in trial.system_attrs:
        return trial
    marked = copy.copy(trial)
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
    """Show the dashboard until stopped; ``ready`` is called with its address."""
    app = make_app(where)
    try:
        server = make_server(host, port, guarded(app, host), server_class=_Server, handler_class=_Quiet)
    except OSError as error:
        raise NasError(f"port {port} of {host} cannot be used ({error.strerror}); give another --port") from None
    with server:
        ready(f"http://{host}:{server.server_port}/")
        server.serve_forever()


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """No line for each request."""
