"""Core ML on a Mac itself: real coremltools in a child process, over a stand-in for its extension module."""

import json
import os
import platform
from pathlib import Path

import numpy as np
import pytest
from phone_standin import QUICK, artifacts, model_name, true_latency_ms

from device_profiler import ProfileError
from device_profiler.device import Device
from device_profiler.lowering import Lowered
from device_profiler.measure import measure
from device_profiler.runtimes.coreml import CoreMLRuntime
from device_profiler.samples import Job
from latency_tables.record import Record

__all__ = ["artifacts"]
STANDIN = Path(__file__).with_name("mac_standin")


class Mac:
    """A machine that takes itself for a Mac, as far as coremltools can see."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.behave()

    def behave(self, **how: bool | str) -> None:
        (self.root / "behaviour.json").write_text(
            json.dumps({"lie": False, "lie_on": "", "refuse_on": "", "refuse": False, "die": False, **how})
        )

    def teach(self, lowered: Lowered) -> None:
        import torch

        module, _, _ = lowered.subject.build()
        with torch.no_grad():
            output = module(*(torch.from_numpy(array) for array in lowered.arrays())).numpy()
        np.save(self.root / f"{model_name(lowered.file)}.npy", output)

    def measure(self, artifacts: list[Lowered], unit: str = "CPU_AND_NE") -> list[Record]:
        runtime = CoreMLRuntime(Device.load("mac").model_copy(update={"compute_unit": unit}))
        runtime.check()
        for artifact in artifacts:
            self.teach(artifact)
        jobs = [Job(a.subject.workload, "plain", (a,)) for a in artifacts]
        rows = {r.key: r for r in measure(jobs, runtime, QUICK, np.random.default_rng(0))}
        return [rows[job.workload.key] for job in jobs]


@pytest.fixture()
def mac(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mac:
    monkeypatch.syspath_prepend(str(STANDIN))  # child processes get this process's path, and find sitecustomize there
    monkeypatch.setenv("MAC_STANDIN", str(tmp_path))
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr(platform, "mac_ver", lambda: ("15.5", ("", "", ""), "arm64"))
    tool = tmp_path / "sw_vers"
    tool.write_text("#!/bin/sh\necho 15.5\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return Mac(tmp_path)


def test_the_rows_recover_the_hidden_truth(mac: Mac, artifacts: list[Lowered]) -> None:
    for row, artifact in zip(mac.measure(artifacts), artifacts, strict=True):
        assert row.status == "ok", row.reason
        assert row.latency_ms_median == pytest.approx(true_latency_ms(model_name(artifact.file)), rel=0.02)
        assert row.load_cold_ms == 200 and row.load_warm_ms is not None and row.load_warm_ms >= 30
        assert (row.placement_ane, row.placement_cpu, row.placement_gpu) == (0.75, 0.25, 0)
        assert row.static_peak_mb and row.activation_peak_mb is None


def test_the_compute_unit_reaches_core_ml(mac: Mac, artifacts: list[Lowered]) -> None:
    (row,) = mac.measure(artifacts[:1], "CPU_ONLY")
    assert (row.placement_ane, row.placement_cpu) == (0, 1)


@pytest.mark.parametrize(
    ("how", "status", "words"),
    [
        ({"lie": True}, "wrong", "wrong on cpu off by 1 of the largest value, ane off by 1"),
        ({"refuse": True}, "unsupported", "too large for the Neural Engine"),
        ({"die": True}, "failed", "SIGABRT: BNNS: unexpected shape"),
    ],
)
def test_what_goes_wrong_is_a_row_with_its_reason(
    mac: Mac, artifacts: list[Lowered], how: dict[str, bool], status: str, words: str
) -> None:
    mac.behave(**how)
    (row,) = mac.measure(artifacts[:1])
    assert row.status == status and words in row.reason


def test_a_mac_says_which_it_is(mac: Mac) -> None:
    about = CoreMLRuntime(Device.load("mac")).describe()
    assert about["runtime_version"] == "Core ML of macOS 15.5" and "coremltools 9" in about["toolkit_version"]
    assert "Memory columns are empty" in about["notes"]


def test_elsewhere_or_on_an_old_mac_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = CoreMLRuntime(Device.load("mac"))
    with pytest.raises(ProfileError, match="mac: Core ML runs on a Mac, and this is Linux; run this command on a Mac"):
        runtime.check()
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr(platform, "mac_ver", lambda: ("14.7", ("", "", ""), "arm64"))
    with pytest.raises(ProfileError, match="packages need macOS 15 or later, and this is 14.7; update it"):
        runtime.check()
