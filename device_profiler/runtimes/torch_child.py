"""The process in which eager torch is measured: one workload, on CPU or CUDA."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch

from device_profiler import host
from device_profiler.child import serve
from device_profiler.lowering import Input, sample_error
from device_profiler.subject import Subject


class Loaded:
    """The one workload of this process."""

    module: torch.nn.Module
    inputs: tuple[torch.Tensor, ...] = ()
    cuda = False


def load(folder: str, threads: int, cuda: bool) -> dict[str, Any]:
    """Build, measure memory, check the output; gives the fields of ``Facts``.

    On CUDA the activation peak is the allocator's, inputs included. On a CPU it is the high-water mark of resident
    memory over what was resident before the inputs were made, after one run that brought the library's code in.
    """
    torch.set_num_threads(threads)
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
    module = subject.build()[0].to(place, dtype)
    if cuda:
        torch.cuda.synchronize()
    cold = (time.perf_counter() - start) * 1e3
    output = module(*inputs())
    shape, at = manifest["output_shape"], manifest["expected_at"]
    error = sample_error(output.float().cpu().numpy(), shape, at, manifest["expected"], manifest["scale"])
    del output
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        before = float(torch.cuda.memory_allocated())
        torch.cuda.reset_peak_memory_stats()
    else:
        host.return_freed_memory(True)
        host.reset_resident_peak()
        before = host.resident_mb()
    Loaded.module, Loaded.inputs, Loaded.cuda = module, inputs(), cuda
    for _ in range(2):
        module(*Loaded.inputs)
    if cuda:
        torch.cuda.synchronize()
        peak = (torch.cuda.max_memory_allocated() - before) / 1e6
    else:
        peak = host.resident_peak_mb() - before
        host.return_freed_memory(False)
    return {
        "load_cold_ms": cold,
        "weights_mb": manifest["stats"]["weights_mb"],
        "activation_peak_mb": peak if before else None,
        "max_error": error,
    }


def run(repeats: int) -> list[tuple[float, float | None]]:
    """(latency, processor time) of back-to-back executions, in ms: by CUDA events on a GPU, by the clocks on a CPU."""
    times: list[tuple[float, float | None]] = []
    for _ in range(repeats):
        if Loaded.cuda:
            first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            first.record()
            Loaded.module(*Loaded.inputs)
            last.record()
            last.synchronize()
            times.append((first.elapsed_time(last), None))
        else:
            start, busy = time.perf_counter(), time.process_time()
            Loaded.module(*Loaded.inputs)
            busy = time.process_time() - busy
            times.append(((time.perf_counter() - start) * 1e3, busy * 1e3))
    return times


if __name__ == "__main__":
    serve({"load": load, "run": run})
