"""What executes a workload: one file a runtime.

A runtime is found by its name, in one readable dict or through an entry point.
"""

from __future__ import annotations

from device_profiler.errors import ProfileError
from search_spaces.registry import Registry

# name -> "module:class"; other packages add theirs with an entry point of the group "temporal_nas.runtimes".
RUNTIMES: dict[str, str] = {
    "onnxruntime": "device_profiler.runtimes.onnxruntime:OnnxRuntime",
    "torch": "device_profiler.runtimes.torch:TorchRuntime",
    "roofline": "device_profiler.runtimes.roofline:RooflineRuntime",
    "coreml": "device_profiler.runtimes.coreml:CoreMLRuntime",
    "coreai": "device_profiler.runtimes.coreai:CoreAIRuntime",
}
ENTRY_POINT_GROUP = "temporal_nas.runtimes"


REGISTRY: Registry[type] = Registry("runtime", ENTRY_POINT_GROUP, RUNTIMES, type, ProfileError)
