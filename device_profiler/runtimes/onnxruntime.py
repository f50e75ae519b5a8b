"""ONNX Runtime on this machine's CPU or GPU: the embedded default, measured in fresh child processes without torch."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from device_profiler import host
from device_profiler.child import Child
from device_profiler.device import Device
from device_profiler.errors import ProfileError
from device_profiler.lowering import Lowered
from device_profiler.runtimes.in_child import ChildRuntime
from device_profiler.subject import package_version
from device_profiler.trace import Event, onnx_events, places_of

# Execution providers of each compute unit; the first is used where the device names none.
_CPU = tuple(f"{name}ExecutionProvider" for name in ("CPU", "Xnnpack", "Dnnl", "OpenVINO", "ACL"))
PROVIDERS = {
    "CPU": _CPU,
    "CPU_ONLY": _CPU,
    "CUDA": ("CUDAExecutionProvider", "TensorrtExecutionProvider"),
}


class OnnxRuntime(ChildRuntime):
    """Sessions of ONNX Runtime with the device's thread count and execution provider.

    ``weights_mb`` is read from the file (bytes of the initializers): unlike the growth of the process at load it is
    exact, and does not contain the session's own structures. ``activation_peak_mb`` is measured in the process, see
    ``onnxruntime_child``; it is unknown on a GPU.
    """

    toolkit = "onnx"
    child_module = "device_profiler.runtimes.onnxruntime_child"

    def __init__(self, device: Device) -> None:
        super().__init__(device)
        fitting = PROVIDERS.get(device.compute_unit)
        if fitting is None:
            raise ProfileError(
                f"{device.name}: runtime onnxruntime has no compute unit {device.compute_unit}; set it to CPU or CUDA."
            )
        self.gpu = device.compute_unit == "CUDA"
        self.provider = device.provider or fitting[0]
        if self.provider not in fitting:
            raise ProfileError(
                f"{device.name}: provider {self.provider} does not run on compute_unit {device.compute_unit}; "
                f"leave it out, or set one of {', '.join(fitting)}."
            )

    def check(self) -> None:
        """Both packages must be there."""
        for package in ("onnxruntime", "onnx"):
            if importlib.util.find_spec(package) is None:
                raise ProfileError(f"runtime onnxruntime needs the package {package}; install it with pip.")

    def describe(self) -> dict[str, str]:
        """The provider, and versions read from the packages' metadata; the GPU's name where one is used."""
        gpu = {"chip": host.gpu()} if self.gpu and self.device.chip == "host" else {}
        return {
            **super().describe(),
            **gpu,
            "provider": self.provider,
            "runtime_version": package_version("onnxruntime"),
            "toolkit_version": f"torch {package_version('torch')}, onnx {package_version('onnx')}",
        }

    def options(self) -> dict[str, Any]:
        """Thread count, provider, whether that is a GPU's, and how far the graph is optimised."""
        level = self.device.optimization or "all"
        return {"threads": self.device.threads, "provider": self.provider, "gpu": self.gpu, "optimization": level}

    def trace(self, lowered: Lowered, timeout_s: float) -> list[Event]:
        """ONNX Runtime's own profile of one evaluation after warming up; its clock costs each operation a little."""
        child = Child(self.child_module, threads=self.device.threads)
        try:
            file = Path(child.call("trace", timeout_s, folder=str(lowered.folder), **self.options()))
        finally:
            child.close()
        told = json.loads(file.read_text("utf-8"))
        file.unlink()
        return onnx_events(told, places_of(lowered.file))

    def _limit(self, limit_mb: float) -> float:
        return 1e6 if self.gpu else super()._limit(limit_mb)  # a CUDA context maps far more than it uses
