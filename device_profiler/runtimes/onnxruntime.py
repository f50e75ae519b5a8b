"""ONNX Runtime on this machine's CPU: the embedded default, measured in fresh child processes without torch."""

from __future__ import annotations

import importlib.util
from typing import Any

from device_profiler.device import Device
from device_profiler.errors import ProfileError
from device_profiler.runtimes.in_child import ChildRuntime
from device_profiler.subject import package_version


class OnnxRuntime(ChildRuntime):
    """Sessions of ONNX Runtime with the device's thread count and execution provider.

    ``weights_mb`` is read from the file (bytes of the initializers): unlike the growth of the process at load it is
    exact, and does not contain the session's own structures. ``activation_peak_mb`` is measured in the process, see
    ``onnxruntime_child``.
    """

    toolkit = "onnx"
    child_module = "device_profiler.runtimes.onnxruntime_child"

    def __init__(self, device: Device) -> None:
        super().__init__(device)
        if device.compute_unit not in ("CPU", "CPU_ONLY", "CUDA"):
            raise ProfileError(
                f"{device.name}: runtime onnxruntime has no compute unit {device.compute_unit}; set it to CPU or CUDA."
            )

    def check(self) -> None:
        """Both packages must be there."""
        for package in ("onnxruntime", "onnx"):
            if importlib.util.find_spec(package) is None:
                raise ProfileError(f"runtime onnxruntime needs the package {package}; install it with pip.")

    def describe(self) -> dict[str, str]:
        """Versions read from the packages' metadata."""
        return {
            **super().describe(),
            "runtime_version": package_version("onnxruntime"),
            "toolkit_version": f"torch {package_version('torch')}, onnx {package_version('onnx')}",
        }

    def options(self) -> dict[str, Any]:
        """Thread count and provider."""
        return {"threads": self.device.threads, "provider": self.device.provider}
