"""What a header's mappings may hold, field by field: a schema by hand, since this package needs no pydantic."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from latency_tables.errors import TableError

Check = Callable[[Any], bool]


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e15


def _positive(value: Any) -> bool:
    return _number(value) and value > 0


def _share(value: Any) -> bool:
    return _number(value) and value >= 0


def _whole(value: Any) -> bool:
    return isinstance(value, int) and _share(value)


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


NAMES: dict[Check, str] = {
    _number: "a number",
    _positive: "a number over 0",
    _share: "a number of 0 or more",
    _whole: "a whole number of 0 or more",
    _text: "text",
    _texts: "a list of texts",
}
_ERRORS: dict[str, Check] = {"mape": _share, "worst": _share, "interval": _share, "networks": _whole}
_OF: dict[str, Check] = {"space": _text, "rows": _text}
_RUN: dict[str, Check] = {
    "key": _text,
    "latency_ms": _positive,
    "spread": _share,
    "drift": _number,
    "rounds": _whole,
    "disturbed_rounds": _whole,
}
FIELDS: dict[str, dict[str, Check]] = {
    "additivity": {
        **_OF,
        **_ERRORS,
        "bias": _number,
        "kendall_tau": _number,
        "peak_mape": _share,
        "reference_spread": _share,
        "date": _text,
    },
    "correction": {
        **_OF,
        **_ERRORS,
        "form": _text,
        "offset_ms": _number,
        "scale": _number,
        "per_layer_ms": _number,
        "bare_mape": _share,
    },
    "reference": _RUN,
    "details": {},
}
# Lists of mappings within: what each must hold, and what it may.
LISTS: dict[str, dict[str, tuple[dict[str, Check], dict[str, Check]]]] = {
    "additivity": {"samples": ({"predicted_ms": _positive, "measured_ms": _positive}, {"layers": _number})},
    "reference": {"others": ({"rows": _texts}, _RUN)},
}


def check_evidence(name: str, value: Mapping[str, Any]) -> None:
    """Refuse a field of the wrong kind; one that is missing, ``None`` or unknown here is left alone.

    Args:
        name: of the header's mapping: ``additivity``, ``correction``, ``reference`` or ``details``.

    Raises:
        TableError: naming the field, its value and what it must be.
    """
    _check(f"table header: {name}", value, {}, FIELDS.get(name, {}))
    for field, (needed, allowed) in LISTS.get(name, {}).items():
        items = value.get(field)
        if items is None:
            continue
        where = f"table header: {name}.{field}"
        if not isinstance(items, list) or not all(isinstance(item, Mapping) for item in items):
            raise TableError(f"{where} must be a list of mappings, got {_short(items)}; leave it out if unknown")
        for index, item in enumerate(items):
            _check(f"{where}[{index}]", item, needed, allowed)


def _check(where: str, value: Mapping[str, Any], needed: Mapping[str, Check], allowed: Mapping[str, Check]) -> None:
    for field, check in {**allowed, **needed}.items():
        given = value.get(field)
        if given is None and field not in needed:
            continue
        if not check(given):
            raise TableError(
                f"{where}.{field} must be {NAMES[check]}, got {_short(given)}; measure again, or leave it out"
            )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
