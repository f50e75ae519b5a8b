"""The runtimes of this machine: the contract, memory that is what it should be, and failures that become rows."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from profiler_fakes import small

from device_profiler import host
from device_profiler.child import ChildDied
from device_profiler.device import Device
from device_profiler.errors import OutOfMemory, ProfileError, Unsupported, WorkloadError
from device_profiler.lowering import lower
from device_profiler.runtimes import RUNTIMES, onnxruntime_child
from device_profiler.runtimes.contract import open_runtime
from device_profiler.runtimes.onnxruntime import OnnxRuntime
from device_profiler.runtimes.torch import TorchRuntime
from device_profiler.testing import RuntimeContract

PATIENT = 600.0  # seconds: stops a hang, and is no limit for a busy machine


class TestOnnxRuntime(RuntimeContract):
    device = Device.load("host_cpu")


class TestTorch(RuntimeContract):
    device = Device.load("host_torch")


class TestRoofline(RuntimeContract):
    device = Device.load("iphone16_pro_max_roofline")


class TestCuda(RuntimeContract):
    device: ClassVar[Device] = Device.load("host_cuda")


def test_activation_memory_is_input_output_and_one_intermediate(tmp_path: Path) -> None:
    lowered = lower(small(channels=32, frames=8, height=64, width=64), "onnx", "plain", tmp_path)
    tensor = 32 * 8 * 64 * 64 * 4 / 1e6  # 4.2 MB
    peaks = []
    for _ in range(2):
        runtime = OnnxRuntime(Device.load("host_cpu"))
        peaks.append(runtime.load(lowered, PATIENT).facts.activation_peak_mb)
        runtime.close()
    assert peaks[0] is not None and peaks[1] is not None
    assert 2 * tensor <= peaks[0] <= 4 * tensor
    assert peaks[0] == pytest.approx(peaks[1], rel=0.02)


def test_memory_over_the_limit_is_oom_and_not_a_crash(tmp_path: Path) -> None:
    lowered = lower(small(channels=32, frames=64, height=64, width=64), "onnx", "plain", tmp_path)
    runtime = OnnxRuntime(Device.load("host_cpu").model_copy(update={"memory_limit_mb": 1.0}))
    runtime.base_mb = 100.0
    with pytest.raises(OutOfMemory):
        runtime.load(lowered, PATIENT)
    runtime.close()


def test_an_unknown_provider_is_unsupported(tmp_path: Path) -> None:
    lowered = lower(small(), "onnx", "plain", tmp_path)
    runtime = OnnxRuntime(Device.load("host_cpu").model_copy(update={"provider": "XnnpackExecutionProvider"}))
    with pytest.raises(Unsupported, match="XnnpackExecutionProvider is not in this onnxruntime"):
        runtime.load(lowered, PATIENT)
    runtime.close()


def test_the_provider_is_that_of_the_compute_unit_and_the_header_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "gpu", lambda: "NVIDIA H200")
    for unit, provider in (("CPU", "CPUExecutionProvider"), ("CUDA", "CUDAExecutionProvider")):
        runtime = OnnxRuntime(Device(name="board", runtime="onnxruntime", compute_unit=unit))
        assert runtime.options()["provider"] == runtime.describe()["provider"] == provider
        assert (runtime.describe()["chip"] == "NVIDIA H200") == (unit == "CUDA")


@pytest.mark.parametrize(
    ("unit", "provider"), [("CUDA", "CPUExecutionProvider"), ("CPU", "CUDAExecutionProvider"), ("CPU", "Cpu")]
)
def test_a_provider_of_another_compute_unit_is_refused(unit: str, provider: str) -> None:
    device = Device(name="board", runtime="onnxruntime", compute_unit=unit, provider=provider)
    with pytest.raises(ProfileError, match=f"{provider} does not run on compute_unit {unit}; leave it out") as caught:
        open_runtime(device)
    assert "\n" not in str(caught.value)


def test_a_session_that_fell_back_to_the_cpu_gives_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fallen:
        def __init__(self, *given: object, **more: object) -> None: ...

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime_child.ort, "InferenceSession", Fallen)
    with pytest.raises(Unsupported, match="asked for CUDAExecutionProvider, and onnxruntime took CPUExecutionProvider"):
        onnxruntime_child._open("a.onnx", 1, "CUDAExecutionProvider", arena=True)
    onnxruntime_child._open("a.onnx", 1, "CPUExecutionProvider", arena=True)


def test_a_file_that_is_no_model_fails_with_the_runtimes_words(tmp_path: Path) -> None:
    lowered = lower(small(), "onnx", "plain", tmp_path)
    lowered.file.write_bytes(b"not a model")
    runtime = OnnxRuntime(Device.load("host_cpu"))
    with pytest.raises(WorkloadError, match="(?i)protobuf|parse"):
        runtime.load(lowered, PATIENT)
    runtime.close()


def test_a_killed_child_is_told_apart_from_an_answer(tmp_path: Path) -> None:
    import os
    import signal

    lowered = lower(small(), "onnx", "plain", tmp_path)
    runtime = OnnxRuntime(Device.load("host_cpu"))
    session = runtime.load(lowered, PATIENT)
    os.killpg(session._child.pid, signal.SIGSEGV)
    with pytest.raises(ChildDied, match="SIGSEGV"):
        session.run(1, PATIENT)
    session.close()


def test_what_cannot_be_captured_as_a_graph_is_timed_eagerly_and_says_so(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("here a graph can be captured")
    lowered = lower(small(), "module", "plain", tmp_path)
    runtime = TorchRuntime(Device.load("host_torch"))
    runtime.options = lambda: {"threads": 1, "cuda": False, "graph": True}  # type: ignore[method-assign]
    session = runtime.load(lowered, PATIENT)
    assert session.facts.notes.startswith("timed eagerly, not as a graph: ")
    assert session.run(2, PATIENT)[0].ms > 0 and session.facts.max_error == pytest.approx(0, abs=1e-6)
    runtime.close()


def test_a_graph_is_captured_after_warming_up_and_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's calls in their order, since no GPU may be at hand: warm up beside, capture once, replay from then on."""
    import contextlib

    import torch

    from device_profiler.runtimes.torch_child import captured

    log: list[str] = []

    class Stream:
        def wait_stream(self, other: object) -> None:
            log.append("wait")

    class Graph:
        def replay(self) -> None:
            log.append("replay")

    @contextlib.contextmanager
    def noting(what: object) -> Iterator[None]:
        log.append(f"in {type(what).__name__}")
        yield
        log.append("out")

    for name, value in (("Stream", Stream), ("current_stream", Stream), ("CUDAGraph", Graph)):
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.cuda, "stream", noting)
    monkeypatch.setattr(torch.cuda, "graph", noting)
    result = torch.ones(1)

    def once() -> torch.Tensor:
        log.append("run")
        return result

    replay = captured(once)
    assert log == ["wait", "in Stream", "run", "run", "run", "out", "wait", "in Graph", "run", "out"]
    assert replay() is result and replay() is result and log[-2:] == ["replay", "replay"]


@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
def test_a_compute_unit_that_a_runtime_lacks_is_refused(runtime: str) -> None:
    device = Device(name="board", runtime=runtime, compute_unit="CPU_AND_NE")
    with pytest.raises(ProfileError, match="has no compute unit CPU_AND_NE"):
        open_runtime(device)


def test_every_runtime_of_the_dict_can_be_imported() -> None:
    roofline = Device.load("iphone16_pro_max_roofline").roofline
    for name in RUNTIMES:
        unit = "ALL" if name in ("coreml", "coreai") else "CPU"
        device = Device.model_validate({"name": "board", "runtime": name, "roofline": roofline, "compute_unit": unit})
        assert open_runtime(device).toolkit
