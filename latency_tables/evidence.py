"""What a table's header says beside its identity: evidence of whole networks, a correction, the reference workload."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latency_tables.errors import TableError

LARGEST = 1e12  # of any latency, error or count in a header
_NUMBERS = {
    "additivity": ("mape", "worst", "kendall_tau", "peak_mape", "interval", "reference_spread", "networks"),
    "correction": ("mape", "worst", "kendall_tau", "bare_mape", "interval", "networks", "offset", "scale", "per_layer"),
    "reference": ("latency_ms", "spread"),
}
_TEXTS = ("space", "rows", "key", "form", "date")


def check_evidence(part: str, found: Mapping[str, Any]) -> None:
    """Refuse a part of a header in which a number is none, or a list holds something else.

    Headers are edited by hand and sealed again; whatever reads them later counts on these kinds.

    Raises:
        TableError: naming the field.
    """
    for name in _NUMBERS.get(part, ()):
        _check_number(f"{part}.{name}", found.get(name))
    for name in _TEXTS if part in _NUMBERS else ():
        if not isinstance(found.get(name, ""), str):
            raise _wrong(f"{part}.{name}", "text", found[name])
    if part == "additivity":
        for index, row in enumerate(_rows("additivity.samples", found.get("samples"))):
            for name in ("predicted_ms", "measured_ms"):
                where = f"additivity.samples[{index}].{name}"
                _check_number(where, row.get(name))
                if row.get(name) is None or row[name] <= 0:
                    raise _wrong(where, "a number over 0", row.get(name))
    if part == "reference":
        for index, run in enumerate(_rows("reference.others", found.get("others"))):
            where, rows = f"reference.others[{index}]", run.get("rows", [])
            for name in _NUMBERS["reference"]:
                _check_number(f"{where}.{name}", run.get(name))
            if not isinstance(rows, list) or not all(isinstance(row, str) for row in rows):
                raise _wrong(f"{where}.rows", "a list of rows' names", rows)


def _rows(where: str, value: Any) -> list[Mapping[str, Any]]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(row, Mapping) for row in value):
        raise _wrong(where, "a list of mappings", value)
    return value


def _check_number(where: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= LARGEST:
        raise _wrong(where, f"a number of at most {LARGEST:g}", value)
    if where.endswith(".networks") and (not isinstance(value, int) or value < 0):
        raise _wrong(where, "a whole number of 0 or more", value)


def _wrong(where: str, rule: str, value: Any) -> TableError:
    return TableError(
        f"table header: {where} must be {rule}, got {value!r:.60}; restore the file from git, or measure again"
    )
