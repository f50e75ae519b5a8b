"""What an export checked and found, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nas.export.checks import LARGEST

SHOWN = 5  # kinds of operations, or places, in a line


def checked_parts(facts: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(package, what its check told) of the parts that ``export.json`` tells of."""
    for name, told in (("unet", facts), *((key, facts.get(key, {})) for key in ("text_encoder", "decoder"))):
        if "check" in told:
            yield f"{name}.mlpackage", told["check"]


def sentences(facts: Mapping[str, Any]) -> Iterator[str]:
    """A line for each function that was checked, and for each package that was not."""
    for package, told in checked_parts(facts):
        if isinstance(told, str):
            yield f"{package}: {told}"
            continue
        for function, found in told.items():
            yield f"{package}, {function}: {_sentence(found)}"
    if "audit" in facts:
        yield from audit_sentences(facts["audit"])


def _sentence(found: Mapping[str, Any]) -> str:
    said = [f"off by {found['error_fp32']:.1e} in float32 and {found['error_fp16']:.1e} in float16 arithmetic"]
    largest, jump, lost = found["largest"], found["first_jump"], found["not_finite"]
    if largest is not None:
        size = max(largest["largest"], largest.get("inside") or 0.0)
        said.append(
            f"largest value {size:.3g} ({largest['operation']} at {largest['place']}), 1/{largest['headroom']:.3g} of "
            f"{LARGEST:,.0f}"
        )
    said.append(f"not finite: {', '.join(lost)}" if lost else "all finite")
    said.append(f"the error jumps at {jump['operation']}, {jump['place']}" if jump else "no operation's error jumps")
    return "; ".join(said)


def audit_sentences(told: Mapping[str, Any]) -> Iterator[str]:
    """What an audit found, in three lines."""
    largest = [f"{kind} {_size(one):.3g} at {one['place']}" for kind, one in list(told["by_operation"].items())[:SHOWN]]
    yield f"on {told['clips']} at {len(told['levels'])} noise levels, of {LARGEST:,.0f}: {', '.join(largest)}"
    lost = [f"{one['operation']} {_size(one):.3g} at {one['place']}" for one in told["overflow"]]
    yield f"would overflow: {_some(lost)}; --safe" if lost else "nothing would overflow"
    loses = [
        f"{one['operation']} {one['name']} at {one['place']}, {one['error'] or float('inf'):.2g} off"
        for one in told["loses_precision"]
    ]
    yield f"loses precision: {_some(loses)}; --safe" if loses else "nothing loses precision"


def _size(one: Mapping[str, Any]) -> float:
    return max(float(one["largest"]), float(one.get("inside") or 0.0))


def _some(said: list[str]) -> str:
    return ", ".join(said[:SHOWN]) + (f" and {len(said) - SHOWN} more" if len(said) > SHOWN else "")
