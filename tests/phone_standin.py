"""A stand-in for attached iPhones, below coremltools: programs on the PATH, and a folder as each app's container.

The phones are no parrots. Each draws latencies around a hidden truth per model, with noise and heat, answers with the
model's true outputs where it was told them, and does what a ``Behaviour`` says: dies, hangs, loses its cable.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from profiler_fakes import small

from device_profiler.device import Device, Phone
from device_profiler.lowering import Lowered, lower
from device_profiler.measure import measure
from device_profiler.runtimes.coreml import CoreMLRuntime
from device_profiler.samples import Job, Limits, RunLog
from latency_tables.record import Record

TOOLS = ("xcrun", "devicectl", "coremlcompiler")
MONITOR = "pymobiledevice3"


@dataclass
class Behaviour:
    """How one phone behaves. Models are named by the first eight characters of their content's hash; ``*`` is all."""

    noise: float = 0.003
    load_s: float = 0.0
    heat: float = 0.0  # relative slow-down that builds up while the phone is busy
    die_on: str = ""  # the app ends during the prediction of this model ...
    die_after: int = 0  # ... after so many of its predictions ...
    die_times: int = 10**6  # ... that often
    die_words: str = "App terminated due to signal 9."
    refuse_on: str = ""  # answers a prediction of this model with an error
    hang_on: str = ""  # never answers a prediction of this model
    full: bool = False  # no space left for what is sent
    unplug_after: int = 0  # predictions until the cable is pulled; 0 for never
    unplugged_s: float = 0.0
    lie: bool = False  # answers with zeros
    lie_on: str = ""  # does so under this setting of compute units alone
    no_tunnel: bool = False  # its memory cannot be seen
    developer_mode: str = "enabled"
    tunnel: str = "connected"
    product_type: str = "iPhone17,2"
    marketing_name: str = "iPhone 16 Pro Max"


class StandIn:
    """The phones on a desk: where they live and what they know."""

    def __init__(self, root: Path, names: tuple[str, ...] = ("One",)) -> None:
        self.root = root
        self.names = names
        for name in names:
            (self.phone(name) / "container").mkdir(parents=True)
            self.behave(Behaviour(), name)
        (root / "outputs").mkdir()
        (root / "bin").mkdir()
        for tool in TOOLS:
            self.install(tool)

    def install(self, tool: str) -> None:
        """Put a program on the PATH."""
        path = self.root / "bin" / tool
        path.write_text(
            f'#!/bin/sh\nexec {sys.executable} -S -E {Path(__file__).with_name("phone_programs.py")} {tool} "$@"\n'
        )
        path.chmod(0o755)

    def phone(self, name: str = "One") -> Path:
        """The folder that is a phone."""
        return self.root / "phones" / name

    def behave(self, behaviour: Behaviour, name: str = "One") -> None:
        """From now on the phone does this."""
        (self.phone(name) / "behaviour.json").write_text(json.dumps(asdict(behaviour)))

    def teach(self, lowered: Lowered) -> str:
        """Tell the phones what a model computes; gives the model's name there."""
        import torch

        name = model_name(lowered.file)
        module, _, _ = lowered.subject.build()
        with torch.no_grad():
            output = module(*(torch.from_numpy(array) for array in lowered.arrays())).numpy()
        np.save(self.root / "outputs" / f"{name}.npy", output.astype(np.float16))
        return name

    def processes(self) -> list[int]:
        """Processes of these phones that still run."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                command = (entry / "cmdline").read_bytes().decode(errors="replace")
                environment = (entry / "environ").read_bytes().decode(errors="replace")
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if "phone_programs.py" in command and str(self.root) in environment and state != "Z":
                found.append(int(entry.name))
        return found


def model_name(package: Path) -> str:
    """How the phones name a model: by the content of its weights and program."""
    digest = sha256()
    for file in sorted(package.rglob("*")):
        if file.suffix in (".bin", ".mlmodel"):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:8]


def true_latency_ms(name: str) -> float:
    """The hidden truth: between 1 and 11 ms, from the model's name."""
    return 1 + int(name, 16) % 1000 / 100


@pytest.fixture()
def phones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """One phone on the desk."""
    return stand_in(tmp_path, monkeypatch)


def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...] = ("One",)) -> StandIn:
    """Put phones on the desk and their programs on the PATH."""
    desk = StandIn(tmp_path / "desk", names)
    monkeypatch.setenv("PATH", f"{desk.root / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("STANDIN_ROOT", str(desk.root))
    return desk


QUICK = Limits(warmup=1, min_rounds=2, max_rounds=2, visit_ms=1.0, max_repeats=1, timeout_s=600.0)


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> list[Lowered]:
    """Two small packages."""
    cache = tmp_path_factory.mktemp("packages")
    return [lower(small(channels=channels, precision="fp16"), "coreml", "plain", cache) for channels in (8, 16)]


def device_of(desk: StandIn, **phone: str) -> Device:
    """A device whose app is built already."""
    app = desk.root / "ModelRunner.app"
    app.mkdir(exist_ok=True)
    settings = Phone(app_path=str(app), **phone)
    return Device(name="phone", runtime="coreml", compute_unit="CPU_AND_NE", precision="fp16", phone=settings)


def runtime_of(desk: StandIn, artifacts: list[Lowered], **phone: str) -> CoreMLRuntime:
    """The runtime of one phone, which knows what these models compute."""
    for artifact in artifacts:
        desk.teach(artifact)
    runtime = CoreMLRuntime(device_of(desk, **phone))
    runtime.phone.poll_s = 0.05
    runtime.phone.reconnect_s = 600
    return runtime


def run(
    desk: StandIn, artifacts: list[Lowered], limits: Limits = QUICK, log: RunLog | None = None, reference: bool = False
) -> list[Record]:
    """Measure the artifacts (the first as reference, where asked) and see that no process is left."""
    runtime = runtime_of(desk, artifacts)
    jobs = [Job(a.subject.workload, "plain", (a,)) for a in artifacts[int(reference) :]]
    watched = artifacts[0] if reference else None
    rows = {r.key: r for r in measure(jobs, runtime, limits, np.random.default_rng(0), reference=watched, log=log)}
    assert desk.processes() == []
    return [rows[job.workload.key] for job in jobs]


def truth(artifact: Lowered) -> float:
    """The hidden truth of an artifact, ms."""
    return true_latency_ms(model_name(artifact.file))
