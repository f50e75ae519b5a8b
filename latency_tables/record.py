"""One row of a table: what one workload costs in one lowering, and where the number comes from."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from latency_tables.errors import TableError

SOURCES = ("measured", "estimated", "imported")
STATUSES = ("ok", "oom", "unsupported", "failed", "timeout", "wrong", "unstable")
METHODS = ("alone", "slope", "in_context")

TEXT = (
    "key",
    "lowering",
    "method",
    "block",
    "params",
    "precision",
    "source",
    "status",
    "reason",
    "thermal",
    "estimator",
)
WHOLE = ("channels", "frames", "height", "width", "batch", "runs")
# Digits after the point: a byte is 1e-6 MB, and 10 ns is far below any clock that a runtime offers.
DIGITS = {
    "latency_ms_median": 5,
    "latency_ms_p90": 5,
    "latency_iqr_ratio": 4,
    "latency_low_ms": 5,
    "latency_high_ms": 5,
    "load_cold_ms": 3,
    "load_warm_ms": 3,
    "weights_mb": 6,
    "activation_peak_mb": 6,
    "system_peak_mb": 6,
    "static_peak_mb": 6,
    "placement_cpu": 4,
    "placement_gpu": 4,
    "placement_ane": 4,
}
EXTRA_DIGITS = 6

_NUMBER = re.compile(r"-?[0-9]{1,15}(\.[0-9]{1,20})?([eE][-+]?[0-9]{1,3})?", re.ASCII)
_INTEGER = re.compile(r"[0-9]{1,15}", re.ASCII)
_COLUMN = re.compile(r"[a-z][a-z0-9_]{0,40}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Record:
    """One measured, estimated or imported row. ``None`` is unknown; zero is a number.

    Numbers are rounded to the table's fixed width at construction, so that a record equals the row it is saved as.

    Attributes:
        key: workload and precision, ``"Conv3D(kernel_size=3)/c320/t30/64x64/b1@fp16"``.
        lowering: how the workload was turned into something a runtime executes.
        method: ``alone``, ``slope`` or ``in_context``; (key, lowering, method) is the primary key.
        params: the block's parameters as text, ``"kernel_size=3"``.
        status: ``ok``, or why there is no number to build on, explained by ``reason``.
        latency_low_ms, latency_high_ms: the spread between repeated groups, or a prediction's interval.
        activation_peak_mb: input, output and intermediates, without weights, in MB of 10^6 bytes.
        placement_cpu, placement_gpu, placement_ane: share of the operations placed there, 0..1.
        estimator: what made an estimated row.
        extra: further numeric columns of the table (energy, ...), sorted by name.

    Raises:
        TableError: on a value of the wrong kind or outside its range.
    """

    key: str
    lowering: str
    method: str = "alone"
    block: str = ""
    params: str = ""
    channels: int | None = None
    frames: int | None = None
    height: int | None = None
    width: int | None = None
    batch: int | None = None
    precision: str = ""
    source: str = "measured"
    status: str = "ok"
    reason: str = ""
    latency_ms_median: float | None = None
    latency_ms_p90: float | None = None
    latency_iqr_ratio: float | None = None
    latency_low_ms: float | None = None
    latency_high_ms: float | None = None
    runs: int | None = None
    load_cold_ms: float | None = None
    load_warm_ms: float | None = None
    weights_mb: float | None = None
    activation_peak_mb: float | None = None
    system_peak_mb: float | None = None
    static_peak_mb: float | None = None
    placement_cpu: float | None = None
    placement_gpu: float | None = None
    placement_ane: float | None = None
    thermal: str = ""
    estimator: str = ""
    extra: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        for name in TEXT:
            value = getattr(self, name)
            if not isinstance(value, str):
                raise TableError(f"{self.key}: {name} must be text, got {value!r}; write it as a string")
            object.__setattr__(self, name, one_line(value))
        for name in WHOLE:
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not _is_whole(value) or not 0 <= value < 10**15:
                raise TableError(
                    f"{self.key}: {name} must be a whole number >= 0, got {value!r}; leave it empty if unknown"
                )
            object.__setattr__(self, name, int(value))
        for name, digits in DIGITS.items():
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, _number(self.key, name, value, digits))
        self._check_extra()
        self._check_values()

    def _check_extra(self) -> None:
        names = [name for name, _ in self.extra]
        for name in names:
            if not _COLUMN.fullmatch(name) or name in COLUMNS or names.count(name) > 1:
                raise TableError(f"{self.key}: {name!r} cannot name an extra column; use a new name of a-z, 0-9 and _")
        rounded = ((name, _number(self.key, name, value, EXTRA_DIGITS)) for name, value in self.extra)
        object.__setattr__(self, "extra", tuple(sorted(rounded)))

    def _check_values(self) -> None:
        if not self.key:
            raise TableError(
                "a row without a key; write the workload's key, such as 'Conv1D(kernel_size=3)/c16/t8/48x48/b1@fp32'"
            )
        if not self.lowering:
            raise TableError(f"{self.key}: lowering is empty; name how the workload was lowered, such as 'default'")
        for name, allowed in (("source", SOURCES), ("status", STATUSES), ("method", METHODS)):
            if getattr(self, name) not in allowed:
                raise TableError(f"{self.key}: {name} is {getattr(self, name)!r}; use one of {', '.join(allowed)}")
        base, at, precision = self.key.rpartition("@")
        if not (base and at and precision):
            raise TableError(f"{self.key}: the key names no precision; end it with @fp32 or @fp16")
        if self.precision and self.precision != precision:
            raise TableError(
                f"{self.key}: precision is {self.precision!r} but the key says {precision!r}; make them agree"
            )
        object.__setattr__(self, "precision", precision)
        if self.status == "ok" and not (self.latency_ms_median or 0.0) > 0.0:
            raise TableError(
                f"{self.key}: status ok needs latency_ms_median over 0 ms, got {self.latency_ms_median}; "
                "measure it again or give it the status that says why there is no number"
            )
        low, high = self.latency_low_ms, self.latency_high_ms
        if low is not None and high is not None and low > high:
            raise TableError(f"{self.key}: latency_low_ms {low} is over latency_high_ms {high}; swap or measure again")
        for name in ("placement_cpu", "placement_gpu", "placement_ane"):
            value = getattr(self, name)
            if value is not None and value > 1.0:
                raise TableError(f"{self.key}: {name} is a share of operations, 0..1, got {value}")

    @property
    def primary_key(self) -> tuple[str, str, str]:
        """(key, lowering, method): what may stand in a table once."""
        return self.key, self.lowering, self.method

    @property
    def ok(self) -> bool:
        """Whether the row carries a latency to build on."""
        return self.status == "ok"

    def to_row(self, extra: tuple[str, ...] = ()) -> list[str]:
        """The CSV cells, in the order of ``COLUMNS`` and then of ``extra``; unknown is empty."""
        cells = []
        for name in COLUMNS:
            value = getattr(self, name)
            if value is None:
                cells.append("")
            elif name in DIGITS:
                cells.append(f"{value:.{DIGITS[name]}f}")
            else:
                cells.append(str(value))
        more = dict(self.extra)
        return cells + [f"{more[name]:.{EXTRA_DIGITS}f}" if name in more else "" for name in extra]

    @classmethod
    def from_row(cls, row: Mapping[str, str]) -> Record:
        """A record from CSV cells; columns beyond ``COLUMNS`` become ``extra``.

        Raises:
            TableError: naming the key, the column and the value that is no number or out of range.
        """
        key = row.get("key", "")
        values: dict[str, str | int | float | None] = {}
        for name in COLUMNS:
            text = row.get(name, "")
            if name in TEXT:
                values[name] = text
            elif text == "":
                values[name] = None
            elif name in WHOLE:
                if not _INTEGER.fullmatch(text):
                    raise TableError(f"{key}: {name} is {text!r}, no whole number; leave it empty if unknown")
                values[name] = int(text)
            else:
                values[name] = _parse(key, name, text)
        extra = tuple(
            (name, _parse(key, name, text)) for name, text in row.items() if name not in COLUMNS and text != ""
        )
        return cls(**values, extra=extra)  # type: ignore[arg-type]  # the loop above gives each column its type


COLUMNS: tuple[str, ...] = tuple(field.name for field in dataclasses.fields(Record) if field.name != "extra")


def _is_whole(value: object) -> bool:
    try:
        return value == int(value)  # type: ignore[call-overload]  # anything with __int__, numpy's integers too
    except (TypeError, ValueError, OverflowError):
        return False


def _number(key: str, name: str, value: object, digits: int) -> float:
    if isinstance(value, (str, bytes, bool)):
        raise TableError(f"{key}: {name} must be a number, got {value!r}; leave it empty if unknown")
    try:
        number = float(value)  # type: ignore[arg-type]  # numpy scalars convert
    except (TypeError, ValueError, OverflowError):
        raise TableError(f"{key}: {name} must be a number, got {value!r}; leave it empty if unknown") from None
    if not (math.isfinite(number) and 0.0 <= number < 1e12):
        raise TableError(f"{key}: {name} must be a finite number >= 0, got {number}; leave it empty if unknown")
    return round(number, digits) + 0.0


def _parse(key: str, name: str, text: str) -> float:
    if not _NUMBER.fullmatch(text):
        raise TableError(f"{key}: {name} is {text!r}, no number; leave it empty if unknown")
    return float(text)


def one_line(text: str) -> str:
    """Printable text on one line: one line a row keeps a git diff readable, whatever a driver's message contains."""
    printable = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(printable.split())
