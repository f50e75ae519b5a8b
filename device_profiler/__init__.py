"""What it costs: workloads lowered for a device, run and timed there."""

from typing import TYPE_CHECKING

from search_spaces.lazily import lazily

if TYPE_CHECKING:
    from device_profiler.additivity import check_additivity
    from device_profiler.device import Device
    from device_profiler.errors import ProfileError
    from device_profiler.profile import measure_workloads, profile_operator
    from device_profiler.profile import profile as profile_space

__all__ = [
    "Device",
    "ProfileError",
    "check_additivity",
    "measure_workloads",
    "profile_operator",
    "profile_space",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "Device": "device_profiler.device",
        "ProfileError": "device_profiler.errors",
        "check_additivity": "device_profiler.additivity",
        "measure_workloads": "device_profiler.profile",
        "profile_operator": "device_profiler.profile",
        "profile_space": "device_profiler.profile:profile",  # ``profile`` at the face is the module
    },
)
