"""The process in which Core AI is measured on a Mac: one workload, by the runtime that coreai-core brings.

It runs on Linux too, where a test drives it and nobody times anything.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from device_profiler.child import serve
from device_profiler.lowering import Input, sample_error

SETTINGS = {"CPU_ONLY": "cpu", "CPU_AND_GPU": "gpu", "CPU_AND_NE": "neural_engine"}  # what is preferred then


class Loaded:
    """The one workload of this process; the loop and the asset's context stay open for as long as it lives."""

    loop: asyncio.AbstractEventLoop
    function: Any = None
    inputs: dict[str, Any] = {}
    context: Any = None


def load(folder: str, unit: str) -> dict[str, Any]:
    """Load twice (cold and warm) and check one prediction; gives the fields of ``Facts``.

    The first load specialises the program for the compute unit.
    """
    from coreai.authoring.asset import AIModelAsset
    from coreai.runtime import NDArray

    manifest = json.loads((Path(folder) / "lowered.json").read_text("utf-8"))
    asset = AIModelAsset.load(Path(folder) / manifest["stats"]["file"])
    Loaded.loop = asyncio.new_event_loop()
    took = []
    for _ in range(2):
        start = time.perf_counter()
        Loaded.context = asset.executable(specialization_options=options(unit))
        Loaded.function = Loaded.loop.run_until_complete(Loaded.context.__aenter__()).load_function("main")
        took.append((time.perf_counter() - start) * 1e3)
        if len(took) == 1:
            Loaded.function = None
            Loaded.loop.run_until_complete(Loaded.context.__aexit__(None, None, None))
    specs = [
        Input(i["name"], tuple(i["shape"]), i["dtype"], None if i["values"] is None else tuple(i["values"]))
        for i in manifest["inputs"]
    ]
    wide = np.float16 if manifest["subject"]["workload"]["precision"] == "fp16" else np.float32
    Loaded.inputs = {
        spec.name: NDArray(
            np.ascontiguousarray(spec.array(index).astype(wide if spec.dtype.startswith("float") else np.int32))
        )
        for index, spec in enumerate(specs)
    }
    output = _predict()["y"].numpy()
    error = sample_error(
        output, manifest["output_shape"], manifest["expected_at"], manifest["expected"], manifest["scale"]
    )
    return {
        "load_cold_ms": took[0],
        "load_warm_ms": took[1],
        "weights_mb": manifest["stats"]["weights_mb"],
        "max_error": error,
        "numeric_error": manifest["stats"]["numeric_error"] or {},
    }


def options(unit: str) -> Any:
    """What the program is specialised for: on macOS the units that the device may use, elsewhere nothing."""
    if sys.platform != "darwin":
        return None
    from coreai.runtime import ComputeUnitKind, SpecializationOptions

    if unit == "CPU_ONLY":
        return SpecializationOptions.cpu_only()
    if unit == "ALL":
        return SpecializationOptions.default()
    return SpecializationOptions.from_preferred_compute_unit_kind(getattr(ComputeUnitKind, SETTINGS[unit])())


def _predict() -> Any:
    return Loaded.loop.run_until_complete(Loaded.function(Loaded.inputs))


def run(repeats: int) -> list[tuple[float, None]]:
    """Back-to-back predictions, each timed around the call into the runtime, in ms."""
    times: list[tuple[float, None]] = []
    for _ in range(repeats):
        start = time.perf_counter()
        _predict()
        times.append(((time.perf_counter() - start) * 1e3, None))
    return times


if __name__ == "__main__":
    serve({"load": load, "run": run})
