"""Core ML's compute units: those that a device may use, and the setting under which one of them is asked alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from device_profiler.errors import WorkloadError, one_line

# Core ML has no setting for the GPU or the Neural Engine without the CPU: it does what they cannot.
SETTING_OF = {"cpu": "CPU_ONLY", "gpu": "CPU_AND_GPU", "ane": "CPU_AND_NE"}
UNITS: dict[str, tuple[str, ...]] = {
    "ALL": ("cpu", "gpu", "ane"),
    "CPU_AND_NE": ("cpu", "ane"),
    "CPU_AND_GPU": ("cpu", "gpu"),
    "CPU_ONLY": ("cpu",),
}


def output_errors(
    setting: str, own: float, error_under: Callable[[str], float]
) -> tuple[dict[str, float], tuple[str, ...]]:
    """How far off the answer is on each unit that a device may use; and why one could not be asked.

    Args:
        setting: the device's compute units, a key of ``UNITS``.
        own: the error under that setting. error_under: gives it for another one, or raises ``WorkloadError``.
    """
    found, notes = {}, []
    for unit in UNITS[setting]:
        wanted = SETTING_OF[unit]
        try:
            found[unit] = own if wanted == setting else error_under(wanted)
        except WorkloadError as error:
            notes.append(f"{unit} could not be asked alone: {one_line(error, 80)}")
    return found, tuple(notes)


def finite(errors: Mapping[str, float | str | None] | None) -> dict[str, float]:
    """The evaluator's errors of a lowered package that are numbers."""
    return {name: error for name, error in (errors or {}).items() if isinstance(error, (int, float))}
