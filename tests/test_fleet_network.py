"""Who may reach a fleet: whoever reaches a dask worker runs code there, so it listens on this machine alone."""

from __future__ import annotations

import shlex
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fleet_worker
import psutil
import pytest
import yaml

from device_profiler import ProfileError, fleet_network
from device_profiler.device import Device
from device_profiler.fleet import serve
from device_profiler.fleet_network import own_interface
from device_profiler.runtimes import RUNTIMES
from nas.cli import main

BOARD = Device(name="board", runtime="onnxruntime").model_copy(update={"runtime": "scripted", "chip": "One"})


@pytest.fixture(autouse=True)
def _scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RUNTIMES, "scripted", fleet_worker.RUNTIME)


def named(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    monkeypatch.setattr(fleet_network, "_addresses", lambda host, port: list(addresses))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "127.0.0.5"])
def test_a_scheduler_on_this_machine_has_its_workers_here(host: str) -> None:
    ip = own_interface(f"tcp://{host}:8786", trusted=False)
    assert ip == {"[::1]": "::1", "127.0.0.5": "127.0.0.5"}.get(host, "127.0.0.1")


def test_beyond_this_machine_it_takes_certificates_or_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    named(monkeypatch, "192.0.2.7")
    monkeypatch.setattr(fleet_network, "_towards", lambda host, port: f"on the way to {host}")
    with pytest.raises(ProfileError, match="whoever reaches a worker there runs code on it") as caught:
        own_interface("tcp://lab:8786", trusted=False)
    said = str(caught.value)
    assert "tls://" in said and "--trusted-network" in said and "docs/profiler.md" in said and "\n" not in said
    assert own_interface("tls://lab:8786", trusted=False) == "on the way to 192.0.2.7"
    assert own_interface("tcp://lab:8786", trusted=True) == "on the way to 192.0.2.7"


def test_a_name_that_is_of_this_machine_and_of_another_is_not_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    named(monkeypatch, "127.0.0.1", "192.0.2.7")
    with pytest.raises(ProfileError, match="beyond this machine"):
        own_interface("tcp://both:8786", trusted=False)


def test_the_command_refuses_before_it_connects(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["worker", "tcp://192.0.2.7:8786", "--device", "host_cpu"])
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and said.count("\n") == 1 and "--trusted-network" in said


@contextmanager
def serving(address: str, folder: Path) -> Iterator[None]:
    """A worker in a thread of this process, until its scheduler lets it go."""
    ready = threading.Event()

    def run() -> None:
        with pytest.raises(ProfileError):  # its only way to end
            serve(address, BOARD, folder, lambda name: ready.set())

    thread = threading.Thread(target=run)
    thread.start()
    ready.wait()
    yield
    from distributed import Client

    with Client(address, set_as_default=False) as client:
        client.retire_workers(list(client.scheduler_info(n_workers=-1)["workers"]))
    thread.join()


def cluster(**how: Any) -> Any:
    """A scheduler in this process, without workers."""
    from distributed import LocalCluster

    return LocalCluster(n_workers=0, processes=False, host="127.0.0.1", dashboard_address="127.0.0.1:0", **how)


def listening() -> set[str]:
    return {c.laddr.ip for c in psutil.Process().net_connections("inet") if c.status == psutil.CONN_LISTEN}


def test_a_worker_of_this_machines_scheduler_listens_on_no_other_interface(tmp_path: Path) -> None:
    with cluster(protocol="tcp") as here, serving(here.scheduler_address, tmp_path):
        assert listening() == {"127.0.0.1"}


DOCS = (Path(__file__).parent.parent / "docs" / "profiler.md").read_text("utf-8")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate that signs itself, made by the command in the docs."""
    folder = tmp_path_factory.mktemp("tls")
    command = DOCS.partition("$ openssl ")[2].partition("\n")[0]
    try:
        subprocess.run(["openssl", *shlex.split(command)], check=True, capture_output=True, cwd=folder)
    except FileNotFoundError:
        pytest.skip("openssl is not here to make a certificate")
    return folder


def settings(folder: Path) -> dict[str, Any]:
    """dask's own settings for TLS, as the docs write them down."""
    text = DOCS.partition("```yaml\n# ~/.config/dask")[2].partition("\n")[2].partition("```")[0]
    return flat(yaml.safe_load(text.replace("/path", str(folder))))


def flat(mapping: dict[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in mapping.items():
        found |= flat(value, f"{above}{name}.") if isinstance(value, dict) else {f"{above}{name}": value}
    return found


def test_with_certificates_the_fleet_speaks_tls_and_lets_nobody_else_in(certificates: Path, tmp_path: Path) -> None:
    import dask
    from distributed import Client, Security

    with dask.config.set(settings(certificates)):
        with cluster(protocol="tls", security=Security()) as here, serving(here.scheduler_address, tmp_path):
            assert here.scheduler_address.startswith("tls://")
            with Client(here.scheduler_address, set_as_default=False) as client:
                (worker,) = client.scheduler_info(n_workers=-1)["workers"]
                assert worker.startswith("tls://127.0.0.1:")
            for address in (here.scheduler_address, worker):
                plain = address.replace("tls://", "tcp://")
                with dask.config.set({"distributed.comm.require-encryption": False}):
                    with pytest.raises((OSError, TimeoutError)):
                        Client(plain, security=Security(), timeout="0.5s", set_as_default=False)


def test_a_tls_address_without_certificates_is_one_line() -> None:
    with pytest.raises(ProfileError, match=r"tls://127.0.0.1:1: TLS is not configured .*docs/profiler.md") as caught:
        fleet_network.connect("tls://127.0.0.1:1")
    assert "\n" not in str(caught.value)
