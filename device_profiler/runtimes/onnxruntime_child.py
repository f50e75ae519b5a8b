"""The process in which ONNX Runtime is measured: no torch, one workload, its memory read from the system.

Memory and time are read from two sessions. The first has no memory arena and no planned reuse of buffers, and freed
blocks go back to the system at once, so that resident memory is what is alive: it runs once, so that the pages of the
runtime's code are in; then resident memory is read, the system's high-water mark set back, inputs and output made,
the workload run, the mark read. The difference is input, output and intermediates, repeatable to some kB, and a
network's is that of its parts at the worst moment. (An arena adds what it keeps of earlier moments, and planned reuse
keeps a buffer from its first tensor to its last: 10-20% more for whole networks of `tiny`.) The second session, with
ONNX Runtime's own defaults, is the one that is timed.
"""

from __future__ import annotations

import gc
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from device_profiler import host
from device_profiler.child import serve
from device_profiler.errors import Unsupported
from device_profiler.lowering import Input, sample_error
from device_profiler.waits import Watch

TRACED = 4  # evaluations under the profiler; the first ones warm up
LEVELS = {
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


class Loaded:
    """The one workload of this process."""

    binding: Any = None
    session: Any = None
    buffers: tuple[Any, ...] = ()
    threads = 1


def _open(
    path: str, threads: int, provider: str, arena: bool, optimization: str = "all", profile: str | None = None
) -> Any:
    options = ort.SessionOptions()
    options.graph_optimization_level = LEVELS[optimization]
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if threads > 1 else "0")
    options.enable_cpu_mem_arena = options.enable_mem_pattern = options.enable_mem_reuse = arena
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, profile
    session = ort.InferenceSession(path, options, providers=[provider])
    used = session.get_providers()[0]
    if used != provider:  # ONNX Runtime falls back to the CPU without an error
        raise Unsupported(f"asked for {provider}, and onnxruntime took {used}; install what {provider} needs")
    return session


def _bind(session: Any, inputs: list[Input], shape: list[int]) -> tuple[Any, Any, list[Any]]:
    binding = session.io_binding()
    kinds = {"tensor(float16)": "float16", "tensor(float)": "float32"}
    wanted = {i.name: i.type for i in session.get_inputs()}
    arrays = []
    for index, spec in enumerate(inputs):
        if spec.name not in wanted:  # an input that the graph does not read
            continue
        array = spec.array(index)
        arrays.append(np.ascontiguousarray(array.astype(kinds.get(wanted[spec.name], array.dtype), copy=False)))
        binding.bind_cpu_input(spec.name, arrays[-1])
    made = session.get_outputs()[0]
    output = ort.OrtValue.ortvalue_from_shape_and_type(shape, np.dtype(kinds.get(made.type, "float32")), "cpu")
    binding.bind_ortvalue_output(made.name, output)
    return binding, output, arrays


def _read(folder: str) -> tuple[dict[str, Any], list[Input]]:
    manifest = json.loads((Path(folder) / "lowered.json").read_text("utf-8"))
    return manifest, [
        Input(i["name"], tuple(i["shape"]), i["dtype"], None if i["values"] is None else tuple(i["values"]))
        for i in manifest["inputs"]
    ]


def load(folder: str, threads: int, provider: str, gpu: bool = False, optimization: str = "all") -> dict[str, Any]:
    """Load, measure memory, check the output; gives the fields of ``Facts``."""
    manifest, inputs = _read(folder)
    if provider not in ort.get_available_providers():
        raise Unsupported(
            f"provider {provider} is not in this onnxruntime; it has {', '.join(ort.get_available_providers())}"
        )
    path, shape = str(Path(folder) / manifest["stats"]["file"]), manifest["output_shape"]
    host.return_freed_memory(True)
    start = time.perf_counter()
    session = _open(path, threads, provider, arena=False, optimization=optimization)
    cold = (time.perf_counter() - start) * 1e3
    binding, output, arrays = _bind(session, inputs, shape)
    session.run_with_iobinding(binding)
    error = sample_error(output.numpy(), shape, manifest["expected_at"], manifest["expected"], manifest["scale"])
    del binding, output, arrays
    gc.collect()
    can_measure = host.reset_resident_peak()
    base = host.resident_mb()
    binding, output, arrays = _bind(session, inputs, shape)
    session.run_with_iobinding(binding)
    peak = host.resident_peak_mb() - base
    del binding, output, arrays, session
    gc.collect()
    host.return_freed_memory(False)

    start = time.perf_counter()
    session = _open(path, threads, provider, arena=True, optimization=optimization)
    warm = (time.perf_counter() - start) * 1e3
    binding, output, arrays = _bind(session, inputs, shape)
    Loaded.session, Loaded.binding, Loaded.buffers = session, binding, (output, arrays)
    Loaded.threads = threads
    return {
        "load_cold_ms": cold,
        "load_warm_ms": warm,
        "weights_mb": manifest["stats"]["weights_mb"],
        "static_peak_mb": manifest["stats"]["static_peak_mb"],
        "activation_peak_mb": peak if can_measure and base and not gpu else None,  # a GPU's memory is not resident
        "max_error": error,
    }


def run(repeats: int) -> list[tuple[float, float | None]]:
    """(latency, wait for a processor) of back-to-back executions, in ms; the second shows an interruption."""
    times = []
    with Watch(Loaded.threads) as watch:
        for _ in range(repeats):
            watch.start()
            Loaded.session.run_with_iobinding(Loaded.binding)
            times.append(watch.stop())
    return times


def trace(folder: str, threads: int, provider: str, gpu: bool = False, optimization: str = "all") -> str:
    """The file with ONNX Runtime's own profile of a few evaluations, in the artifact's folder; the last is warm."""
    manifest, inputs = _read(folder)
    path = str(Path(folder) / manifest["stats"]["file"])
    session = _open(path, threads, provider, True, optimization, str(Path(folder) / f"profile-{os.getpid()}"))
    binding, output, arrays = _bind(session, inputs, manifest["output_shape"])
    for _ in range(TRACED):
        session.run_with_iobinding(binding)
    del output, arrays
    return str(session.end_profiling())


if __name__ == "__main__":
    gc.disable()
    serve({"load": load, "run": run, "trace": trace})
