"""What it costs: lowers workloads for a device, runs them there, and writes what was measured into a table."""

from device_profiler.errors import ProfileError

__all__ = ["ProfileError"]
