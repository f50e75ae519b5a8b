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


def evaluated(errors: Mapping[str, float | str | None] | None) -> tuple[dict[str, float], tuple[str, ...]]:
    """The evaluator's errors of a lowered package that are numbers; and what to say of those that are not."""
    told = dict(errors or {})
    reason = told.pop("reason", None)
    found = {name: error for name, error in told.items() if isinstance(error, (int, float))}
    if reason is not None:
        return found, (f"not evaluated: {one_line(reason, 80)}",)
    return found, tuple(f"not finite in {name} by the evaluator" for name in told if name not in found)
