"""What it costs: workloads lowered for a device, run and timed there."""

from device_profiler.errors import ProfileError

__all__ = ["ProfileError"]
