"""optuna-dashboard on a run's studies, with what breaks a limit marked as infeasible."""

from __future__ import annotations

import copy
from collections.abc import Callable, Container
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from optuna.trial import FrozenTrial, TrialState

from nas.errors import NasError
from nas.search.storage import Through, open_storage

OLD_KEY = "constraints"  # where Optuna before 5.0 kept all values, and where optuna-dashboard 0.21 looks


class Marked(Through):
    """Trials with their constraints where the dashboard reads them as well; nothing is written."""

    def get_trial(self, trial_id: int) -> FrozenTrial:
        return _marked(super().get_trial(trial_id))

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        return [_marked(trial) for trial in super().get_all_trials(study_id, deepcopy, states)]


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


def serve(where: Path | str, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Show the dashboard until stopped; ``ready`` is called with its address."""
    app = make_app(where)
    try:
        server = make_server(host, port, app, server_class=_Server, handler_class=_Quiet)
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
