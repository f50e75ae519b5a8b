"""Memory on the phone, by a monitor program beside the stand-in: what it recovers, and what it says if it cannot."""

import dataclasses
import shutil
from pathlib import Path

import pytest
from phone_programs import needs
from phone_standin import MONITOR, QUICK, Behaviour, StandIn, artifacts, model_name, phones, run, runtime_of

from device_profiler.lowering import Lowered
from device_profiler.runtimes.phone_memory import MemoryWatch

__all__ = ["artifacts", "phones"]
ONCE = dataclasses.replace(QUICK, min_rounds=1, max_rounds=1)


def test_the_growth_of_app_and_system_is_recovered(phones: StandIn, artifacts: list[Lowered]) -> None:
    phones.install(MONITOR)
    for row, artifact in zip(run(phones, artifacts, ONCE), artifacts, strict=True):
        app, engine = needs(model_name(artifact.file))
        assert row.status == "ok", row.reason
        assert row.activation_peak_mb == pytest.approx(app)
        assert row.system_peak_mb == pytest.approx(app + engine)
        assert row.static_peak_mb not in (row.activation_peak_mb, row.system_peak_mb)


def test_a_monitor_that_fails_leaves_the_columns_empty_and_says_why(phones: StandIn, artifacts: list[Lowered]) -> None:
    phones.install(MONITOR)
    phones.behave(Behaviour(no_tunnel=True))
    (row,) = run(phones, artifacts[:1], ONCE)
    assert row.status == "ok" and row.latency_ms_median
    assert row.activation_peak_mb is None and row.system_peak_mb is None
    assert (
        "memory not measured: pymobiledevice3 gave no snapshots: Device is not reachable; start tunneld" in row.reason
    )


def test_without_the_program_the_table_says_what_to_install(phones: StandIn) -> None:
    assert shutil.which(MONITOR) is None
    assert "install the extra 'iphone'" in runtime_of(phones, []).describe()["notes"]
    phones.install(MONITOR)
    assert "lower bounds" in runtime_of(phones, []).describe()["notes"]


def test_the_program_is_found_beside_python_too(
    phones: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment = tmp_path / "environment" / "bin"
    environment.mkdir(parents=True)
    (environment / MONITOR).symlink_to("/bin/true")
    assert not MemoryWatch.available()
    monkeypatch.setattr("sys.executable", str(environment / "python"))
    assert MemoryWatch.available() and "lower bounds" in runtime_of(phones, []).describe()["notes"]
