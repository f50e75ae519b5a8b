"""Core AI on the Mac that the profiler runs on, a child process for each workload: Core ML's successor.

No Mac has run this yet; ``docs/hardware.md`` says what was driven and how.
"""

from __future__ import annotations

import importlib.util
import platform
import sys
from typing import Any

from device_profiler.device import Device
from device_profiler.errors import ProfileError
from device_profiler.runtimes.in_child import ChildRuntime
from device_profiler.subject import package_version

OLDEST_MACOS = 27  # the first with the Core AI framework, which alone uses GPU and Neural Engine
UNITS = ("ALL", "CPU_AND_NE", "CPU_AND_GPU", "CPU_ONLY")


class CoreAIRuntime(ChildRuntime):
    """The same door as ``mac``, with Core AI behind it. See ``coreai_child`` for what is timed."""

    toolkit = "coreai"
    child_module = "device_profiler.runtimes.coreai_child"

    def __init__(self, device: Device) -> None:
        super().__init__(device)
        self.tolerance = 5e-2
        if device.compute_unit not in UNITS:
            raise ProfileError(
                f"{device.name}: runtime coreai has no compute unit {device.compute_unit}; "
                f"it is one of {', '.join(UNITS)}."
            )

    def check(self) -> None:
        """A Mac with macOS 27 or later, and coreai-torch. Elsewhere its runtime checks numbers and is no clock."""
        if sys.platform != "darwin":
            raise ProfileError(
                f"{self.device.name}: Core AI is timed on a Mac, and this is {platform.system()}, where its runtime "
                "checks numbers and is no clock; run this command on a Mac."
            )
        if importlib.util.find_spec("coreai_torch") is None:
            raise ProfileError(
                f"{self.device.name}: runtime coreai needs coreai-torch; pip install 'temporal-nas[coreai]'."
            )
        version = platform.mac_ver()[0]
        if int(version.partition(".")[0] or 0) < OLDEST_MACOS:
            raise ProfileError(
                f"{self.device.name}: Core AI needs macOS {OLDEST_MACOS} or later, and this is {version}; update it, "
                "or use the device mac."
            )

    def describe(self) -> dict[str, str]:
        """This Mac, its system and the toolkit."""
        tools = ", ".join(f"{name} {package_version(name)}" for name in ("coreai-torch", "coreai-core", "torch"))
        return {
            **super().describe(),
            "runtime_version": f"Core AI of macOS {platform.mac_ver()[0]}",
            "toolkit_version": tools,
            "notes": "Memory and placement columns are empty: Core AI's runtime tells neither.",
        }

    def options(self) -> dict[str, Any]:
        """The compute units that Core AI may use."""
        return {"unit": self.device.compute_unit}
