"""The process in which Core ML is measured on a Mac itself: one workload, through coremltools' ``MLModel``."""

from __future__ import annotations

import json
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from device_profiler.child import serve
from device_profiler.errors import Unsupported, WorkloadError, one_line
from device_profiler.lowering import Input, expected_of_device, sample_error
from device_profiler.quiet import quiet
from device_profiler.runtimes.units import evaluated, output_errors

SHARES = {
    "MLCPUComputeDevice": "placement_cpu",
    "MLGPUComputeDevice": "placement_gpu",
    "MLNeuralEngineComputeDevice": "placement_ane",
}


class Loaded:
    """The one workload of this process."""

    model: Any = None
    inputs: dict[str, Any] = {}


def load(folder: str, unit: str) -> dict[str, Any]:
    """Load twice (cold and warm), check one prediction, read the compute plan; gives the fields of ``Facts``.

    The first load is from the package and compiles for the compute units; the second is of what that compiled. Inputs
    are float32, which coremltools would otherwise make of float16 ones before each prediction.
    """
    manifest = json.loads((Path(folder) / "lowered.json").read_text("utf-8"))
    with quiet():
        import coremltools as ct

        units = ct.ComputeUnit[unit]
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            model = ct.models.MLModel(str(Path(folder) / manifest["stats"]["file"]), compute_units=units)
        if model.__proxy__ is None:
            words = "; ".join(str(w.message).rpartition(": ")[2] for w in said if "predict" in str(w.message))
            raise Unsupported(f"Core ML of this macOS does not load it: {words or 'the package is newer than it'}")
        compiled = model.get_compiled_model_path()
        start = time.perf_counter()
        ct.models.CompiledMLModel(compiled, compute_units=units)
        warm = (time.perf_counter() - start) * 1e3
        shares = _placement(compiled, units)
    specs = [
        Input(i["name"], tuple(i["shape"]), i["dtype"], None if i["values"] is None else tuple(i["values"]))
        for i in manifest["inputs"]
    ]
    Loaded.model = model
    Loaded.inputs = {
        spec.name: spec.array(index).astype(np.float32 if spec.dtype.startswith("float") else np.int32)
        for index, spec in enumerate(specs)
    }
    error = _error_of(model, manifest)

    def error_under(setting: str) -> float:
        try:
            with quiet():
                other = ct.models.CompiledMLModel(compiled, compute_units=ct.ComputeUnit[setting])
                return _error_of(other, manifest)
        except Exception as problem:  # of any class: Core ML's own, or Python's from within
            raise WorkloadError(one_line(problem)) from None

    errors, notes = output_errors(unit, error, error_under)
    numeric, more = evaluated(manifest["stats"].get("numeric_error"))
    return {
        "load_cold_ms": model.load_duration_in_nano_seconds / 1e6,
        "load_warm_ms": warm,
        "weights_mb": manifest["stats"]["weights_mb"],
        "static_peak_mb": manifest["stats"]["static_peak_mb"],
        "max_error": error,
        "output_error": errors,
        "numeric_error": numeric,
        "notes": "; ".join((*more, *notes)),
        **shares,
    }


def _error_of(model: Any, manifest: dict[str, Any]) -> float:
    output = model.predict(dict(Loaded.inputs)).get("y")
    if output is None:
        raise WorkloadError("the prediction came back without outputs")
    expected = expected_of_device(manifest["stats"], manifest["expected"])
    return sample_error(
        np.asarray(output), manifest["output_shape"], manifest["expected_at"], expected, manifest["scale"]
    )


def _placement(compiled: str, units: Any) -> dict[str, float]:
    """Share of the operations that Core ML prefers to run on each unit; empty where it does not tell."""
    from coremltools.models.compute_plan import MLComputePlan

    plan = MLComputePlan.load_from_path(compiled, compute_units=units)
    program = plan.model_structure.program
    if program is None:
        return {}
    usages = map(plan.get_compute_device_usage_for_mlprogram_operation, program.functions["main"].block.operations)
    preferred = Counter(SHARES.get(type(use.preferred_compute_device).__name__, "") for use in usages if use)
    total = sum(preferred.values())
    return {name: preferred[name] / total for name in SHARES.values()} if total else {}


def run(repeats: int) -> list[tuple[float, None]]:
    """Back-to-back predictions, each timed by coremltools around Core ML's own call, in ms."""
    times: list[tuple[float, None]] = []
    for _ in range(repeats):
        Loaded.model.predict(dict(Loaded.inputs))
        times.append((Loaded.model.last_predict_duration_in_nano_seconds / 1e6, None))
    return times


if __name__ == "__main__":
    serve({"load": load, "run": run})
