"""What changed between two versions of a table: only what is beyond the spread of both sides counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from latency_tables.header import IDENTITY, SETTINGS
from latency_tables.record import Record
from latency_tables.reference import References
from latency_tables.table import Table

KINDS = ("slower", "faster", "heavier", "lighter", "status", "lowering", "source", "added", "removed")
MEMORY_TOLERANCE = 0.02  # activation peaks move by an allocator's rounding; weights do not move at all
_MARKUP = frozenset("&<>\"'`*_[]~|\\@#:!^$")  # each may begin something in somebody's markdown
_ROUNDING = 2e-5  # half a last digit of both sides, in ms


@dataclass(frozen=True)
class Change:
    """One row that changed.

    Attributes:
        kind: one of ``KINDS``.
        key, lowering, method: the row; for ``lowering`` the new best one.
        before, after: the values compared, as text with units.
        ratio: after over before, normalised by the reference workload; ``None`` if there is nothing to divide.
        spread: the fraction that the ratio had to pass to count.
        regression: whether it fails the check.
    """

    kind: str
    key: str
    lowering: str
    method: str
    before: str
    after: str
    ratio: float | None
    spread: float
    regression: bool


@dataclass(frozen=True)
class Diff:
    """Two tables compared.

    Attributes:
        before, after: ``device/runtime`` of the two, with their runtime versions.
        drift: the reference workload's latency after over before; latencies are divided by it (a row that another run
            measured, by that run's). ``None``: unknown on a side, so nothing is normalised.
        header: ``"runtime_version 1.30 -> 1.31"`` for each fact that changed.
        changes: regressions first, then by how much; unchanged rows are left out.
        unchanged: how many rows did not change beyond their spread.
        threshold: the fraction beyond the spread that a slower row must also exceed to be a regression.
    """

    before: str
    after: str
    drift: float | None
    header: tuple[str, ...]
    changes: tuple[Change, ...]
    unchanged: int
    threshold: float

    @property
    def regressions(self) -> tuple[Change, ...]:
        """The changes that fail the check."""
        return tuple(change for change in self.changes if change.regression)

    def counts(self) -> dict[str, int]:
        """How many changes of each kind."""
        return {kind: sum(change.kind == kind for change in self.changes) for kind in KINDS}


@dataclass(frozen=True)
class Compared:
    """A row's latency on both sides, the reference workload divided out.

    Attributes:
        before, after: the row on each side; both are ok.
        ratio: after over before.
        low, high: the least and most that the ratio can be within both sides' spread. A row changed if 1 is outside.
    """

    before: Record
    after: Record
    ratio: float
    low: float
    high: float

    @property
    def primary_key(self) -> tuple[str, str, str]:
        return self.after.primary_key

    @property
    def beyond(self) -> bool:
        """Whether the change is beyond the spread of both sides."""
        return self.low > 1.0 or self.high < 1.0


def compare(before: Table, after: Table) -> list[Compared]:
    """Every row that has a latency on both sides, by primary key."""
    old = {record.primary_key: record for record in before}
    pairs = ((old[record.primary_key], record) for record in after if record.primary_key in old)
    runs = References(before.header), References(after.header)
    return [row for pair in pairs if (row := _compared(*pair, *_row_drift(runs, *pair))) is not None]


def _compared(old: Record, new: Record, drift: float, noise: float) -> Compared | None:
    if not (old.ok and new.ok and old.latency_ms_median and new.latency_ms_median):
        return None
    (old_low, old_high), (new_low, new_high) = _interval(old), _interval(new)
    slack = 1.0 + noise
    low = new_low / drift / old_high / slack
    high = new_high / drift / old_low * slack if old_low > 0 else math.inf
    return Compared(old, new, new.latency_ms_median / old.latency_ms_median / drift, low, high)


def diff(before: Table, after: Table, threshold: float = 0.03, allow_removed: bool = False) -> Diff:
    """Compare two tables row by row.

    A row is slower or faster when the intervals between repeated groups of the two sides do not meet, after dividing by
    the reference workload's change and widening by its spread: neighbours' load shifts whole runs by tens of percent
    without showing in a row's own repeats. A row that is the same to the last digit was not measured again and has not
    changed, whatever the reference did. Estimated rows have no spread, so any change counts.

    Args:
        threshold: smallest slowdown, as a fraction, that is a regression. Rows that lost their number or disappeared,
            and measured rows replaced by estimated ones, are regressions too.
        allow_removed: rows that disappeared are no regression (a variant was dropped from the space).
    """
    drift, _ = _drift(before.header.reference or {}, after.header.reference or {})
    rows_before = {record.primary_key: record for record in before}
    rows_after = {record.primary_key: record for record in after}
    runs = References(before.header), References(after.header)
    changes: list[Change] = []
    unchanged = 0
    for key in sorted(rows_before.keys() | rows_after.keys()):
        old, new = rows_before.get(key), rows_after.get(key)
        if old is None or new is None:
            changes.append(_appeared(old, new, allow_removed))
            continue
        found = _compare(old, new, *_row_drift(runs, old, new), threshold)
        changes += found
        unchanged += not found
    changes += _lowerings(before, after)
    changes.sort(key=lambda change: (not change.regression, -_size(change), change.key, change.kind))
    facts = [
        {"toolkit_version": side.header.toolkit_version or None, **side.header.identity()} for side in (before, after)
    ]
    header = tuple(
        f"{name} {_told(facts[0].get(name))} -> {_told(facts[1].get(name))}"
        for name in (*IDENTITY, "toolkit_version", *SETTINGS)
        if facts[0].get(name) != facts[1].get(name)
    )
    return Diff(_name(before), _name(after), drift, header, tuple(changes), unchanged, threshold)


def _row_drift(runs: tuple[References, References], old: Record, new: Record) -> tuple[float, float]:
    """What a row's latency is divided by, and the spread of that; nothing for a row that was not measured again."""
    if old == new:
        return 1.0, 0.0
    drift, noise = _drift(*(run(new.primary_key) for run in runs))
    return drift or 1.0, noise


def _drift(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[float | None, float]:
    """The reference workload's change between two runs, and the spread of it on both sides."""
    values = first.get("latency_ms"), second.get("latency_ms")
    if first.get("key") != second.get("key") or not all(isinstance(v, (int, float)) and v > 0 for v in values):
        return None, 0.0
    spreads = (side.get("spread", 0.0) for side in (first, second))
    noise = sum(float(value) for value in spreads if isinstance(value, (int, float)))
    return float(values[1]) / float(values[0]), noise  # type: ignore[arg-type]  # both are numbers, checked above


def _interval(record: Record) -> tuple[float, float]:
    """The range of the row's latency between repeated groups; its IQR where there were no groups."""
    median = record.latency_ms_median or 0.0
    half = 0.5 * (record.latency_iqr_ratio or 0.0) * median
    low = record.latency_low_ms if record.latency_low_ms is not None else median - half
    high = record.latency_high_ms if record.latency_high_ms is not None else median + half
    if record.source == "estimated":
        low = high = median  # its interval is a model's error, the same in both versions, not noise between them
    return min(low, median) - _ROUNDING / 2, max(high, median) + _ROUNDING / 2


def _compare(old: Record, new: Record, drift: float, noise: float, threshold: float) -> list[Change]:
    where = (new.key, new.lowering, new.method)
    if old.status != new.status:
        after = f"{new.status}: {new.reason}" if new.reason else new.status
        return [Change("status", *where, _latency(old), _latency(new) if new.ok else after, None, 0.0, old.ok)]
    found = []
    if old.source != new.source:
        regression = old.source == "measured"
        found.append(Change("source", *where, old.source, new.source, None, 0.0, regression))
    row = _compared(old, new, drift, noise)
    if row is not None and row.beyond:
        # The half ranges that face each other: what the ratio had to pass to count.
        spread = 1.0 - row.low / row.ratio if row.ratio > 1.0 else row.high / row.ratio - 1.0
        kind = "slower" if row.ratio > 1.0 else "faster"
        worse = row.ratio > 1.0 + threshold
        found.append(Change(kind, *where, _latency(old), _latency(new), row.ratio, spread, worse))
    for name, label in (("weights_mb", "weights"), ("activation_peak_mb", "activations")):
        first, second = getattr(old, name), getattr(new, name)
        if first is None or second is None or abs(second - first) <= MEMORY_TOLERANCE * max(first, 1e-3):
            continue
        kind = "heavier" if second > first else "lighter"
        grown = second / first if first else None
        texts = (f"{label} {first:.3f} MB", f"{label} {second:.3f} MB")
        worse = second > first * (1.0 + max(threshold, MEMORY_TOLERANCE))
        found.append(Change(kind, *where, *texts, grown, MEMORY_TOLERANCE, worse))
    return found


def _appeared(old: Record | None, new: Record | None, allow_removed: bool) -> Change:
    if new is not None:
        return Change("added", new.key, new.lowering, new.method, "", _latency(new), None, 0.0, False)
    assert old is not None
    return Change("removed", old.key, old.lowering, old.method, _latency(old), "", None, 0.0, not allow_removed)


def _lowerings(before: Table, after: Table) -> list[Change]:
    """Workloads whose fastest lowering is another one now."""
    found = []
    for key in sorted(set(before.keys) & set(after.keys)):
        for method in sorted({row.method for row in before.rows(key)} & {row.method for row in after.rows(key)}):
            old, new = before.get(key, method=method), after.get(key, method=method)
            if old is not None and new is not None and old.lowering != new.lowering:
                texts = (f"{old.lowering}, {_latency(old)}", f"{new.lowering}, {_latency(new)}")
                found.append(Change("lowering", key, new.lowering, method, *texts, None, 0.0, False))
    return found


def _size(change: Change) -> float:
    if change.kind in ("status", "removed", "source") and change.regression:
        return float("inf")
    return abs((change.ratio or 1.0) - 1.0)


def _latency(record: Record) -> str:
    if not record.ok:
        return record.status
    low, high = record.latency_low_ms, record.latency_high_ms
    interval = "" if low is None or high is None else f" ({low:.3f}..{high:.3f})"
    return f"{record.latency_ms_median:.3f} ms{interval}"


def _told(value: object) -> str:
    return "unknown" if value is None else str(value)


def _name(table: Table) -> str:
    version = f" {table.header.runtime_version}" if table.header.runtime_version else ""
    return f"{table.header.device}/{table.header.runtime}{version}"


def markdown(result: Diff, limit: int = 10) -> str:
    """A pull-request comment: the verdict, the ten worst, and how many of the rest.

    What tables hold is shown as it is written: no HTML, link, mention or reference of theirs takes effect.
    """
    return _told_in_lines(result, limit, escaped)


def plain(result: Diff, limit: int = 10) -> str:
    """The same for a terminal."""
    return _told_in_lines(result, limit, str).replace("**", "").replace("`", "")


def escaped(text: str) -> str:
    """Text for markdown that means itself: markup, mentions (@), references (#) and links (:, www.) spelled out."""
    return "".join(f"&#{ord(char)};" if char in _MARKUP else char for char in text).replace("www.", "www&#46;")


def _told_in_lines(result: Diff, limit: int, shown: Callable[[str], str]) -> str:
    regressions = result.regressions
    lines = [
        f"### {shown(result.before)} -> {shown(result.after)}",
        "",
        f"**{len(regressions)} regression{'s' * (len(regressions) != 1)}** beyond spread"
        f" and a threshold of {result.threshold:.0%}; {result.unchanged} rows unchanged.",
        "",
        _normalised(result),
    ]
    lines += [f"- {shown(fact)}" for fact in result.header]
    if result.changes:
        lines += ["", "| | workload | lowering | before | after | ratio | spread |", "|---|---|---|---|---|---|---|"]
        for change in result.changes[:limit]:
            ratio = "" if change.ratio is None else f"{change.ratio:.3f}"
            mark = f"**{change.kind}**" if change.regression else change.kind
            # Within a code span nothing takes effect but its end, and a cell's.
            key = shown(change.key) if "`" in change.key else "`" + change.key.replace("|", "\\|") + "`"
            cells = (key, *map(shown, (change.lowering, change.before, change.after)))
            lines.append(f"| {mark} | {' | '.join(cells)} | {ratio} | {change.spread:.1%} |")
    rest = len(result.changes) - limit
    if rest > 0:
        lines += ["", f"and {rest} more: " + ", ".join(f"{n} {kind}" for kind, n in result.counts().items() if n) + "."]
    return "\n".join(lines) + "\n"


def _normalised(result: Diff) -> str:
    if result.drift is None:
        return "No common reference workload: latencies are compared as they are."
    return f"Latencies are divided by the reference workload's change, {result.drift:.3f}."
