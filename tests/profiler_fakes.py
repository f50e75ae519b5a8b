"""Stand-ins for the profiler's tests: small modules to lower, and a runtime whose latencies are known."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from device_profiler.device import Device
from device_profiler.errors import OutOfMemory, SessionLost, TimedOut, Unsupported, WorkloadError
from device_profiler.lowering import Lowered
from device_profiler.runtimes.contract import Execution, Facts
from device_profiler.samples import Job
from device_profiler.subject import Built, Subject
from search_spaces.workload import Workload

DEVICE = Device(name="fake", runtime="onnxruntime", precision="fp32")


def workload(block: str = "Conv1D", channels: int = 8, precision: str = "fp32", **sizes: int) -> Workload:
    """A small workload."""
    shape = {"frames": 4, "height": 8, "width": 8, **sizes}
    return Workload(block, (("kernel_size", 3),), channels=channels, precision=precision, **shape)


def artifact(name: str, **stats: float) -> Lowered:
    """An artifact that nobody wrote; the scripted runtime needs only its name."""
    subject = Subject(workload(name))
    facts = {"weights_mb": 1.0, "static_peak_mb": 2.0, **stats}
    return Lowered(subject, "fake", "plain", Path(name), (), (1,), "float32", (0,), (1.0,), 1.0, facts)


def job(name: str, **stats: float) -> Job:
    """A job of one artifact."""
    lowered = artifact(name, **stats)
    return Job(lowered.subject.workload, "plain", (lowered,))


@dataclass
class Script:
    """How one workload behaves: its true latency, its noise, and what goes wrong with it."""

    ms: float = 1.0
    noise: float = 0.005
    load_error: Exception | None = None
    run_error: Exception | None = None
    errors_left: int = 10**9
    fail_after: int = 0
    max_error: float | None = 0.0
    drifts: bool = True


@dataclass
class ScriptedRuntime:
    """A runtime without a device: latencies are drawn around a hidden truth, drifting with a common factor."""

    scripts: dict[str, Script]
    seed: int = 0
    drift: list[float] = field(default_factory=list)
    source: str = "measured"
    toolkit: str = "fake"
    tolerance: float = 1e-3
    calls: int = 0
    loads: list[str] = field(default_factory=list)
    visits: list[str] = field(default_factory=list)
    open_sessions: int = 0
    capacity: float = 1e9
    closed: bool = False

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def check(self) -> None: ...

    def describe(self) -> dict[str, str]:
        return {"runtime_version": "1", "toolkit_version": "1"}

    def capacity_mb(self) -> float:
        return self.capacity

    def load(self, lowered: Lowered, timeout_s: float) -> ScriptedSession:
        name = lowered.subject.workload.block
        self.loads.append(name)
        script = self.scripts.get(name, Script())
        if script.load_error is not None:
            raise script.load_error
        self.open_sessions += 1
        return ScriptedSession(self, name, script)

    def close(self) -> None:
        self.closed = True


class ScriptedSession:
    def __init__(self, runtime: ScriptedRuntime, name: str, script: Script) -> None:
        self.runtime, self.name, self.script = runtime, name, script
        self.facts = Facts(weights_mb=1.0, activation_peak_mb=2.0, max_error=script.max_error)
        self.runs = 0
        self.closed = False

    def run(self, repeats: int, timeout_s: float) -> list[Execution]:
        runtime, script = self.runtime, self.script
        self.runs += 1
        runtime.visits.append(self.name)
        if script.run_error is not None and self.runs > script.fail_after and script.errors_left > 0:
            script.errors_left -= 1
            raise script.run_error
        runtime.calls += 1
        factor = runtime.drift[min(runtime.calls, len(runtime.drift)) - 1] if runtime.drift and script.drifts else 1.0
        return [
            Execution(float(script.ms * factor * abs(1 + script.noise * runtime.rng.standard_normal())))
            for _ in range(repeats)
        ]

    def close(self) -> None:
        self.runtime.open_sessions -= not self.closed
        self.closed = True


ERRORS: dict[str, Exception] = {
    "oom": OutOfMemory("does not fit"),
    "unsupported": Unsupported("no such operation"),
    "failed": WorkloadError("fell over"),
    "timeout": TimedOut("no answer"),
}
LOST = SessionLost("cable pulled")


def build_small(subject: Subject) -> Built:
    """A module of a few thousand parameters, named by the workload's block."""
    import torch
    from torch import nn

    shape = subject.workload

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(shape.channels, shape.channels, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.relu(self.conv(x))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Small().eval()
    return module, (torch.zeros(shape.frames, shape.channels, shape.height, shape.width),), ("x",)


def build_broken(subject: Subject) -> Built:
    """A module that cannot be exported."""
    raise RuntimeError("this block cannot be built")


def build_deadly(subject: Subject) -> Built:
    """Kills the process that builds it, as the system does when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)
    raise AssertionError


def small(factory: str = "build_small", precision: str = "fp32", **sizes: int) -> Subject:
    """A subject that one of the factories above builds."""
    return Subject(workload(precision=precision, **sizes), factory=f"profiler_fakes:{factory}")
