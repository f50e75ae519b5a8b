"""What the page says of the chosen network's measurement, and of one that a busy machine disturbed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def measurement(chosen: Mapping[str, Any], column: str) -> tuple[float | None, str]:
    """The number to show for ``latency_ms`` or ``peak_mb``, and how it came about; (None, "") without one.

    A latency from a disturbed machine is shown with the reference workload's change taken out, and says so. A device
    that only estimates has measured nothing.
    """
    measured = _number(chosen.get(f"{column}_measured"))
    how = "estimated" if chosen.get("measured_source") == "estimated" else "measured"
    if measured is None or column == "peak_mb" or not disturbance(chosen):
        return measured, "" if measured is None else how
    adjusted = _number(chosen.get(f"{column}_adjusted"))
    if adjusted is None:
        return measured, "measured on a disturbed machine"
    return adjusted, f"{measured:.4g} ms measured on a disturbed machine, the reference workload's change taken out"


def disturbance(chosen: Mapping[str, Any]) -> str:
    """Why the measurement was disturbed to its last try; empty if it was not."""
    said = chosen.get("measured_disturbed")
    return said if isinstance(said, str) else ""


def disturbed_sentence(chosen: Mapping[str, Any]) -> str:
    """The page's mark at the comparison; empty for an undisturbed one."""
    why = disturbance(chosen)
    if not why:
        return ""
    tries = _number(chosen.get("measured_tries")) or 1
    return (
        f"Disturbed: {why}, in the calmest of {tries:.0f} tries. Do not quote these milliseconds; on a quiet machine "
        "delete compare.json and give the same command again."
    )


def _number(value: Any) -> float | None:
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable else None
