"""The process in which eager torch is measured: one workload, on CPU or CUDA."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from device_profiler import host
from device_profiler.child import serve
from device_profiler.errors import one_line
from device_profiler.lowering import Input, sample_error
from device_profiler.lowering.forms import reform
from device_profiler.subject import Subject
from device_profiler.waits import Watch


class Loaded:
    """The one workload of this process."""

    once: Callable[[], torch.Tensor]
    cuda = False
    threads = 1


def load(folder: str, threads: int, cuda: bool, graph: bool = False) -> dict[str, Any]:
    """Build, measure memory, check the output; gives the fields of ``Facts``.

    On CUDA the activation peak is the allocator's, inputs included. On a CPU it is the high-water mark of resident
    memory over what was resident before the inputs were made, after one run that brought the library's code in.

    Args:
        graph: capture one evaluation as a CUDA graph and time its replay, so that launching kernels from Python is not
            billed to the block; what cannot be captured is timed eagerly, and its notes say so.
    """
    torch.set_num_threads(threads)
    Loaded.threads = threads
    torch.set_grad_enabled(False)
    torch.backends.cudnn.benchmark = cuda
    manifest = json.loads((Path(folder) / "lowered.json").read_text("utf-8"))
    subject = Subject.from_json(manifest["subject"])
    specs = [
        Input(i["name"], tuple(i["shape"]), i["dtype"], None if i["values"] is None else tuple(i["values"]))
        for i in manifest["inputs"]
    ]
    place = torch.device("cuda" if cuda else "cpu")
    dtype = torch.float16 if subject.workload.precision == "fp16" else torch.float32

    def inputs() -> tuple[torch.Tensor, ...]:
        made = (torch.from_numpy(spec.array(index)) for index, spec in enumerate(specs))
        return tuple(x.to(place, dtype) if x.is_floating_point() else x.to(place) for x in made)

    start = time.perf_counter()
    module = reform(subject.build()[0], manifest["lowering"]).to(place, dtype)
    if cuda:
        torch.cuda.synchronize()
    cold = (time.perf_counter() - start) * 1e3
    error = _error_of(module(*inputs()), manifest)
    before = _memory_before(cuda)
    given, notes = inputs(), ""
    Loaded.once, Loaded.cuda = lambda: module(*given), cuda
    for _ in range(2):
        Loaded.once()
    peak = _memory_peak(cuda) - before
    if graph:
        try:
            Loaded.once = captured(Loaded.once)
        except (RuntimeError, AssertionError) as reason:
            notes = one_line(f"timed eagerly, not as a graph: {reason}", 160)
        else:
            error = max(error, _error_of(Loaded.once(), manifest))
    return {
        "load_cold_ms": cold,
        "weights_mb": manifest["stats"]["weights_mb"],
        "activation_peak_mb": peak if before else None,
        "max_error": error,
        "notes": notes,
    }


def _error_of(output: torch.Tensor, manifest: dict[str, Any]) -> float:
    """How far an output is from the sample that was kept when the workload was lowered."""
    return sample_error(
        output.float().cpu().numpy(),
        manifest["output_shape"],
        manifest["expected_at"],
        manifest["expected"],
        manifest["scale"],
    )


def _memory_before(cuda: bool) -> float:
    """MB in use before the inputs are made; the high-water mark begins anew."""
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated() / 1e6
        torch.cuda.reset_peak_memory_stats()
        return before
    host.return_freed_memory(True)
    host.reset_resident_peak()
    return host.resident_mb()


def _memory_peak(cuda: bool) -> float:
    """The high-water mark since ``_memory_before``, in MB."""
    if cuda:
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() / 1e6
    peak = host.resident_peak_mb()
    host.return_freed_memory(False)
    return peak


def captured(once: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    """The same call as the replay of a CUDA graph, captured after warming up on a side stream as torch asks for.

    Raises:
        RuntimeError: if something in it cannot be captured; AssertionError without a GPU.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            once()
    torch.cuda.current_stream().wait_stream(side)
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded):
        output = once()

    def replay() -> torch.Tensor:
        recorded.replay()
        return output

    return replay


def run(repeats: int) -> list[tuple[float, float | None]]:
    """(latency, wait for a processor) of back-to-back executions, in ms; on a GPU by CUDA events, with no waits."""
    if Loaded.cuda:
        return [(_on_gpu(), None) for _ in range(repeats)]
    times = []
    with Watch(Loaded.threads) as watch:
        for _ in range(repeats):
            watch.start()
            Loaded.once()
            times.append(watch.stop())
    return times


def _on_gpu() -> float:
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    first.record()
    Loaded.once()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last))


if __name__ == "__main__":
    serve({"load": load, "run": run})
