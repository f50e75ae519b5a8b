"""Eager torch on CPU or CUDA, as the device says: what a training engineer sees, and a check on the other runtimes."""

from __future__ import annotations

import importlib.util
from typing import Any

from device_profiler.device import Device
from device_profiler.errors import ProfileError
from device_profiler.runtimes.in_child import ChildRuntime
from device_profiler.subject import package_version


class TorchRuntime(ChildRuntime):
    """The module itself, in a child process; CUDA events and allocator peaks on a GPU, see ``torch_child``."""

    toolkit = "module"
    child_module = "device_profiler.runtimes.torch_child"
    base_mb = 2000.0

    def __init__(self, device: Device) -> None:
        super().__init__(device)
        if device.compute_unit not in ("CPU", "CPU_ONLY", "CUDA"):
            raise ProfileError(
                f"{device.name}: runtime torch has no compute unit {device.compute_unit}; set it to CPU or CUDA."
            )

    @property
    def cuda(self) -> bool:
        """Whether the workloads run on an NVIDIA GPU."""
        return self.device.compute_unit == "CUDA"

    def check(self) -> None:
        """torch must be there, and see a GPU where one is asked for."""
        if importlib.util.find_spec("torch") is None:
            raise ProfileError("runtime torch needs the package torch; install it with pip.")
        if self.cuda:
            import torch

            if not torch.cuda.is_available():
                raise ProfileError(
                    f"{self.device.name}: compute_unit CUDA, but torch {torch.__version__} sees no GPU; "
                    "install a CUDA build of torch and the driver, or use host_torch."
                )

    def describe(self) -> dict[str, str]:
        """Versions; the GPU's name where one is used."""
        about = {
            **super().describe(),
            "runtime_version": package_version("torch"),
            "toolkit_version": f"torch {package_version('torch')}",
        }
        if self.cuda and self.device.chip == "host":
            import torch

            about["chip"] = torch.cuda.get_device_name()
        return about

    def options(self) -> dict[str, Any]:
        """Thread count, where to run, and whether as a CUDA graph."""
        return {"threads": self.device.threads, "cuda": self.cuda, "graph": self.device.cuda_graph}

    def _limit(self, limit_mb: float) -> float:
        return 1e6 if self.cuda else super()._limit(limit_mb)  # a CUDA context maps far more than it uses
