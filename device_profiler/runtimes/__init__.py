"""What executes a workload: one file a runtime.

A runtime is found by its name, in one readable dict or through an entry point.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points

# name -> "module:class"; other packages add theirs with an entry point of the group "temporal_nas.runtimes".
RUNTIMES: dict[str, str] = {
    "onnxruntime": "device_profiler.runtimes.onnxruntime:OnnxRuntime",
    "torch": "device_profiler.runtimes.torch:TorchRuntime",
    "roofline": "device_profiler.runtimes.roofline:RooflineRuntime",
    "coreml": "device_profiler.runtimes.coreml:CoreMLRuntime",
    "coreai": "device_profiler.runtimes.coreai:CoreAIRuntime",
}
ENTRY_POINT_GROUP = "temporal_nas.runtimes"


@dataclass(frozen=True)
class Listing:
    """One runtime as ``nas doctor`` shows it."""

    name: str
    usable: bool
    detail: str
    devices: Sequence[str] = field(default=())


def known_runtimes() -> dict[str, str]:
    """Every runtime by name, those of other packages included; ours win where a name is taken twice."""
    found = {point.name: point.value for point in entry_points(group=ENTRY_POINT_GROUP)}
    return {**found, **RUNTIMES}
