"""Numbers and nested values of a run as the report's words, and what of a file can be read as a number at all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nas.report.folder import Row, as_mapping


def number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def value_of(mapping: Mapping[str, Any], name: str) -> float | None:
    return number(mapping.get(name))


def loss_of(row: Row) -> float:
    return row["loss"] if row["loss"] is not None else math.inf


def latency_of(row: Row) -> float:
    return row["latency_ms"] if row["latency_ms"] is not None else math.inf


def ms(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g} ms" if abs(value) < 10 else f"{value:.1f} ms"


def mb(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2g} MB" if abs(value) < 1 else f"{value:.1f} MB"


def loss_text(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"


def percent(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:.1f}%"


def count_text(value: float | None) -> str:
    if value is None:
        return "unknown"
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"


def seconds_text(value: float) -> str:
    if value >= 60:
        minutes, seconds = divmod(round(value), 60)
        return f"{minutes} min {seconds} s"
    return f"{value:.1f} s"


def listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else "none"


def named(name: Any) -> str:
    """``latency_ms`` as ``latency (ms)``, ``max_rank`` as ``max rank``."""
    words = str(name).split("_")
    units = {"ms": "(ms)", "mb": "(MB)", "s": "(s)"}
    return " ".join([*words[:-1], units.get(words[-1], words[-1])] if len(words) > 1 else words)


def inline(value: Any) -> str:
    """Nested values in one line: ``a 1, b 2 to 3``."""
    if value is None or value == {} or value == []:
        return ""
    if isinstance(value, Mapping):
        return ", ".join(f"{named(name)} {inline(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        if len(value) == 2 and all(isinstance(item, int | float) for item in value):
            return f"{value[0]:.4g} to {value[1]:.4g}"
        return " ".join(inline(item) for item in value)
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def facts(value: Any) -> list[tuple[str, str]]:
    """A mapping as (name, text) pairs; what is nested in it in one line."""
    return [(named(name), inline(item) or "none") for name, item in as_mapping(value).items()]
