"""Checks of a whole table: values that cannot be, rows not to trust, evidence that is missing."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from latency_tables.audit import LIMIT, Audit
from latency_tables.errors import TableError
from latency_tables.header import Header
from latency_tables.record import Record
from latency_tables.table import Table
from search_spaces.workload import BYTES_PER_ELEMENT

UNSTABLE_IQR = 0.10  # spread of one workload's own repeats above which its median says little
UNSTABLE_SPREAD = 0.25  # between repeated groups
LOUD_REFERENCE = 0.02  # spread of the reference workload above which a machine was not quiet
WRONG = 0.05  # of the largest output: what a profiler takes for another function
CHEAPER_3D = 100.0  # a 3D block does all that its 1D form does, at every location at once
# What is installed here and is the runtime itself; Core ML is part of the phone's system.
_DISTRIBUTIONS = {"onnxruntime": "onnxruntime", "torch": "torch"}


@dataclass(frozen=True)
class Finding:
    """One thing to look at.

    Attributes:
        level: ``error`` (the table is not to be used as it is) or ``warning``.
        rule: a short stable name of the check.
        key: the workload, or empty for the whole table.
        message: what was found, and what to do.
    """

    level: str
    rule: str
    key: str
    message: str


def validate(table: Table | str | Path) -> list[Finding]:
    """Every finding of a table, errors first; a file that cannot be loaded is one error.

    Raises:
        TableError: if a path is given and there is no such file.
    """
    if not isinstance(table, Table):
        path = Path(table)
        if not path.exists():
            raise TableError(f"{path}: no table there; check the path, or measure one with `nas profile`")
        try:
            table = Table.load(path)
        except TableError as error:
            return [Finding("error", "unreadable", "", str(error))]
    found = [*_header(table), *_pairs(table)]
    for record in table:
        found += [finding for check in _ROW_CHECKS for finding in check(record, table.header)]
    return sorted(found, key=lambda finding: (finding.level != "error", finding.rule, finding.key))


def _header(table: Table) -> Iterator[Finding]:
    header = table.header
    if not len(table):
        yield Finding("error", "empty", "", "the table has no rows; measure some with `nas profile`")
    for name in ("chip", "os", "runtime_version", "compute_unit", "precision"):
        if not getattr(header, name):
            yield Finding("warning", "provenance", "", f"the header does not state {name}; add it, then seal the table")
    if len(table.sources) > 1:
        message = f"rows of several sources ({table.source}); costs are refused without --allow-mixed, measure the rest"
        yield Finding("warning", "mixed-sources", "", message)
    audit = Audit.of(header, table.source)
    if audit.state == "unknown":
        yield Finding(
            "warning",
            "additivity-unknown",
            "",
            f"no evidence from whole networks: predictions keep a margin of {audit.margin:.0%}; "
            "measure some: nas profile SPACE --device DEVICE --networks 20",
        )
    if audit.state == "over limit":
        message = f"error on whole networks {audit.mape:.1%} is over {LIMIT:.0%}; measure blocks in context or correct"
        yield Finding("error", "additivity-over-limit", "", message)
    spread = (header.reference or {}).get("spread")
    if isinstance(spread, (int, float)) and spread > LOUD_REFERENCE:
        message = (
            f"the reference workload spread by {spread:.1%}, over {LOUD_REFERENCE:.0%}; measure on a quiet machine"
        )
        yield Finding("warning", "not-quiet", "", message)
    installed = _installed(_DISTRIBUTIONS.get(header.runtime, ""))
    if installed and header.runtime_version and not _same_release(installed, header.runtime_version):
        message = f"measured with {header.runtime} {header.runtime_version}, {installed} is installed; measure again"
        yield Finding("warning", "stale-runtime", "", message)
    for part in header.toolkit_version.split(", "):
        name, _, version = part.partition(" ")
        toolkit = _installed(name)
        if toolkit and version and not _same_release(toolkit, version):
            message = f"lowered with {part}, {toolkit} is installed; measure again if costs moved"
            yield Finding("warning", "stale-toolkit", "", message)


def _pairs(table: Table) -> Iterator[Finding]:
    for record in table:
        if record.block.endswith("3D") and record.ok:
            twin = table.get(
                re.sub(rf"^{re.escape(record.block)}\b", lambda found: f"{found[0][:-2]}1D", record.key),
                method=record.method,
            )
            if twin is not None and _over(twin.latency_ms_median, record.latency_ms_median) > CHEAPER_3D:
                yield Finding(
                    "error",
                    "3d-cheaper-than-1d",
                    record.key,
                    f"{record.latency_ms_median} ms, over {CHEAPER_3D:.0f}x less than its 1D form's "
                    f"{twin.latency_ms_median} ms; measure both again",
                )


def _values(record: Record, header: Header) -> Iterator[Finding]:
    median, p90 = record.latency_ms_median, record.latency_ms_p90
    if median is not None and p90 is not None and p90 < median:
        yield _error("p90-under-median", record, f"p90 {p90} ms is under the median {median} ms; measure again")
    if record.weights_mb is not None:
        # On a phone what is seen of the system is growth after loading, and so without the weights.
        for name in ("static_peak_mb",) if header.runtime == "coreml" else ("system_peak_mb", "static_peak_mb"):
            peak = getattr(record, name)
            if peak is not None and peak < record.weights_mb * 0.99:
                message = (
                    f"{name} {peak} is under the weights, {record.weights_mb} MB; check its unit (MB of 10^6 bytes)"
                )
                yield _error("memory-under-weights", record, message)
    sizes = (record.channels, record.frames, record.height, record.width, record.batch)
    if record.activation_peak_mb is not None and all(sizes) and record.block[-2:] in ("1D", "3D"):
        tensor = BYTES_PER_ELEMENT.get(record.precision, 4) / 1e6
        for size in sizes:
            tensor *= size or 1
        if record.activation_peak_mb < tensor * 0.99:
            message = (
                f"activation_peak_mb {record.activation_peak_mb} is under one {tensor:.3f} MB tensor; check its unit"
            )
            # Growth that a phone bills to another process is missing from the app's.
            kind = _warning if header.runtime == "coreml" else _error
            yield kind("memory-under-tensor", record, message)
    shares = (record.placement_cpu, record.placement_gpu, record.placement_ane)
    if None not in shares and abs(sum(share or 0.0 for share in shares) - 1.0) > 0.01:
        yield _error("placement-sum", record, f"placements {shares} do not sum to 1; read the compute plan again")
    if record.block and record.block != "backbone" and record.key.partition("(")[0] not in (record.block, record.key):
        yield _error("block-of-another-key", record, f"block {record.block!r} is not the key's; correct the row")


def _answers(record: Record, header: Header) -> Iterator[Finding]:
    if record.status == "wrong":
        message = f"answers wrongly ({record.reason or 'no reason given'}); no cost is made of it"
        yield _warning("wrong-answer", record, message)
    for name, error in record.extra:
        if record.ok and name.startswith("output_error_") and error > WRONG:
            unit = name.removeprefix("output_error_")
            message = f"status ok, and on {unit} its output is off by {error:.2g} of the largest, over {WRONG:g}"
            yield _error("wrong-but-ok", record, f"{message}; give it the status wrong, or measure it again")


def _trust(record: Record, header: Header) -> Iterator[Finding]:
    if record.status == "wrong":
        return
    if record.status != "ok":
        if record.status == "unstable":
            yield _warning("unstable", record, f"unstable ({record.reason or 'no reason given'}); measure it again")
        elif not record.reason:
            yield _warning("no-reason", record, f"status {record.status} without a reason; say why")
        return
    if (record.latency_iqr_ratio or 0.0) > UNSTABLE_IQR:
        message = f"IQR ratio {record.latency_iqr_ratio:.1%} is over {UNSTABLE_IQR:.0%}; measure it on a quiet machine"
        yield _warning("unstable", record, message)
    low, high, median = record.latency_low_ms, record.latency_high_ms, record.latency_ms_median
    if record.source == "measured" and low is not None and high is not None and median:
        if (high - low) / median > UNSTABLE_SPREAD:
            message = f"groups range over {low} to {high} ms around {median} ms; measure it on a quiet machine"
            yield _warning("unstable", record, message)
    if record.weights_mb is None or record.activation_peak_mb is None:
        yield _warning("memory-unknown", record, "memory is unknown: memory budgets cannot be answered; measure it")
    if record.source == "estimated" and not record.estimator:
        yield _error("no-estimator", record, "an estimated row must name its estimator; correct the row")


_ROW_CHECKS: tuple[Callable[[Record, Header], Iterator[Finding]], ...] = (_values, _answers, _trust)


def _error(rule: str, record: Record, message: str) -> Finding:
    return Finding("error", rule, record.key, message)


def _warning(rule: str, record: Record, message: str) -> Finding:
    return Finding("warning", rule, record.key, message)


def _over(first: float | None, second: float | None) -> float:
    return first / second if first and second else 0.0


def _same_release(first: str, second: str) -> bool:
    """Versions agree in their first two numbers; what follows fixes bugs."""
    return first.split("+")[0].split(".")[:2] == second.split("+")[0].split(".")[:2]


def _installed(distribution: str) -> str | None:
    """The installed version, from its metadata: nothing is imported."""
    try:
        return importlib.metadata.version(distribution) if distribution else None
    except importlib.metadata.PackageNotFoundError:
        return None
