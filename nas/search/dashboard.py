"""optuna-dashboard on a run's studies, with what breaks a limit marked as infeasible."""

from __future__ import annotations

import copy
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


class Marked(Through):
    """Trials with their constraints where the dashboard reads them as well, and the names of what they chose.

    A trial keeps the number of an option, its study the names; here each trial gets a user attribute for each position
    that holds layers. Nothing is written.
    """

    def __init__(self, inner: BaseStorage) -> None:
        super().__init__(inner)
        self._labels: dict[int, dict[str, list[str]]] = {}  # by study

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
