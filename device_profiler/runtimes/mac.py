"""Core ML on the Mac that the profiler runs on: no phone, no Xcode, a child process for each workload."""

from __future__ import annotations

import importlib.util
import platform
import sys
from typing import Any

from device_profiler.device import Device
from device_profiler.errors import ProfileError
from device_profiler.runtimes.in_child import ChildRuntime
from device_profiler.subject import package_version

OLDEST_MACOS = 15  # packages are made for iOS 18, and macOS 15 is its sister


class MacRuntime(ChildRuntime):
    """What the ``coreml`` runtime is for a device with ``local: true``. See ``coreml_child`` for what is timed."""

    toolkit = "coreml"
    child_module = "device_profiler.runtimes.coreml_child"

    def __init__(self, device: Device) -> None:
        super().__init__(device)
        self.tolerance = 5e-2

    def check(self) -> None:
        """A Mac with macOS 15 or later, and coremltools."""
        if sys.platform != "darwin":
            raise ProfileError(
                f"{self.device.name}: Core ML runs on a Mac, and this is {platform.system()}; run this command on a "
                "Mac, or use iphone16_pro_max_roofline for an estimate."
            )
        if importlib.util.find_spec("coremltools") is None:
            raise ProfileError(
                f"{self.device.name}: runtime coreml needs the package coremltools; install it with pip."
            )
        version = platform.mac_ver()[0]
        if int(version.partition(".")[0] or 0) < OLDEST_MACOS:
            raise ProfileError(
                f"{self.device.name}: packages need macOS {OLDEST_MACOS} or later, and this is {version}; update it."
            )

    def describe(self) -> dict[str, str]:
        """This Mac, its system and the toolkit."""
        version = f"macOS {platform.mac_ver()[0]}"
        return {
            **super().describe(),
            "runtime_version": f"Core ML of {version}",
            "toolkit_version": f"coremltools {package_version('coremltools')}, torch {package_version('torch')}",
            "notes": "Memory columns are empty: Core ML tells none of its own; static_peak_mb is the plan.",
        }

    def options(self) -> dict[str, Any]:
        """The compute units that Core ML may use."""
        return {"unit": self.device.compute_unit}
