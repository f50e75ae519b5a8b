"""optuna-dashboard opens a search's study and shows what is infeasible as such."""

from __future__ import annotations

import io
import json
import socket
import threading
import urllib.request
from pathlib import Path

import pytest
from search_problems import KnownQuality, tiny_problem

from latency_tables.budget import Budget
from nas.errors import NasError
from nas.search.dashboard import Marked, ReadOnly, guarded, make_app, serve
from nas.search.storage import open_storage
from nas.search.study import search

pytest.importorskip("optuna_dashboard", reason="the extra dashboard is not installed")


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dashboard") / "study.journal"
    problem = tiny_problem(Budget(latency_ms=130.0, memory_mb=27.0))
    search(problem, KnownQuality(problem), path, identity={}, trials=6, sampler="random", seed=0)
    return path


def ask(app, path: str):
    status = []
    environment = {"REQUEST_METHOD": "GET", "PATH_INFO": path, "QUERY_STRING": "", "wsgi.input": io.BytesIO()}
    body = b"".join(app(environment, lambda code, headers, *rest: status.append(code)))
    assert status[0].startswith("200"), (status, body)
    return json.loads(body)


def test_the_dashboard_tells_feasible_from_infeasible_trials(journal: Path) -> None:
    app, before = make_app(journal), journal.read_bytes()
    (study,) = ask(app, "/api/studies")["study_summaries"]
    assert study["study_name"] == "search latency_ms=130 memory_mb=27"
    trials = ask(app, f"/api/studies/{study['study_id']}")["trials"]
    infeasible = set()
    for trial in trials:
        attributes = {pair["key"]: pair["value"] for pair in trial["user_attrs"]}
        breaks = any(value > 0 for value in trial["constraints"])
        assert len(trial["constraints"]) == 2
        assert attributes["feasible"] == str(not breaks)
        if breaks:
            infeasible.add(attributes["origin"])
    assert "reference: all Conv1D + SelfAttention1D" in infeasible
    assert all(origin.startswith("reference: ") for origin in infeasible)
    assert journal.read_bytes() == before


def test_the_dashboard_is_served(journal: Path) -> None:
    address: list[str] = []
    ready = threading.Event()

    def told(url: str) -> None:
        address.append(url)
        ready.set()

    threading.Thread(target=serve, args=(journal, "127.0.0.1", 0, told), daemon=True).start()
    ready.wait()
    with urllib.request.urlopen(address[0] + "api/studies") as answer:
        assert json.load(answer)["study_summaries"]


def test_a_port_in_use_and_a_missing_study_are_one_line(journal: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(NasError, match="give another --port"):
            serve(journal, "127.0.0.1", taken.getsockname()[1], print)
    with pytest.raises(NasError, match="--host is empty, which would be every address"):
        serve(journal, " ", 0, print)
    with pytest.raises(NasError, match="no study there yet; make one with nas search"):
        make_app(tmp_path / "study.journal")


def asked(app, method: str = "GET", path: str = "/api/studies", **headers: str) -> int:
    status: list[str] = []
    environment = {"REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": "", "wsgi.input": io.BytesIO()}
    environment |= {"HTTP_HOST": "127.0.0.1:8080", **{f"HTTP_{name.upper()}": text for name, text in headers.items()}}
    b"".join(app(environment, lambda code, headers, *rest: status.append(code)))
    return int(status[0].split()[0])


def test_the_dashboard_changes_nothing(journal: Path) -> None:
    before = journal.read_bytes()
    app = guarded(make_app(journal), "127.0.0.1")
    assert asked(app) == 200
    assert (
        asked(app, "DELETE", "/api/studies/0") == asked(app, "POST") == asked(app, "PUT", "/api/studies/0/note") == 405
    )
    storage = Marked(open_storage(journal))
    with pytest.raises(ReadOnly, match="changes nothing"):
        storage.delete_study(0)
    with pytest.raises(ReadOnly):
        storage.set_study_user_attr(0, "a", 1)
    assert journal.read_bytes() == before


def test_the_dashboard_answers_its_own_page_alone(journal: Path) -> None:
    app = guarded(make_app(journal), "127.0.0.1")
    assert asked(app, host="localhost:8080") == asked(app, host="[::1]:8080") == 200
    assert asked(app, host="rebound.example") == asked(app, host="rebound.example:8080") == asked(app, host="") == 403
    assert asked(app, origin="http://evil.example") == 403
    assert asked(app, origin="http://127.0.0.1:8080") == 200
    everywhere = guarded(make_app(journal), "0.0.0.0")
    assert asked(everywhere, host="192.168.1.7:8080") == 200 and asked(everywhere, host="rebound.example") == 403
