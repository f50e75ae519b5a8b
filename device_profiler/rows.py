"""From samples to rows: medians, spreads and facts of a workload, or why it has none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np

from device_profiler.errors import one_line
from device_profiler.runtimes.contract import Facts, Runtime
from device_profiler.samples import Job, Limits, RunLog, Sample, _Active
from latency_tables.record import Record
from search_spaces.workload import Workload


def _usable(active: _Active, part: int, limit_ms: float, interrupted: bool = False) -> list[Sample]:
    return [
        s
        for s in active.samples
        if s.part == part
        and not s.first
        and (s.beside_ms is None or s.beside_ms <= limit_ms)
        and (interrupted or not s.interrupted)
    ]


def _iqr_ratio(values: Sequence[float]) -> float:
    low, middle, high = np.percentile(values, [25, 50, 75])
    return float((high - low) / middle)


def shape_columns(workload: Workload) -> dict[str, str | int]:
    """The columns that a workload states by itself."""
    return {
        "block": workload.block,
        "params": ",".join(f"{name}={value}" for name, value in workload.params),
        "channels": workload.channels,
        "frames": workload.frames,
        "height": workload.height,
        "width": workload.width,
        "batch": workload.batch,
        "precision": workload.precision,
    }


def failure(
    job: Job, status: str, reason: str, source: str = "measured", found: Mapping[str, float] | None = None
) -> Record:
    """The row of a workload that gave no number; ``found`` are further columns, see ``error_columns``."""
    columns = shape_columns(job.workload)
    return Record(
        key=job.workload.key,
        lowering=job.lowering,
        method=job.method,
        source=source,
        status=status,
        reason=one_line(reason),
        extra=tuple((found or {}).items()),
        **columns,  # type: ignore[arg-type]  # text and whole numbers, as their columns are
    )


def _estimate(active: _Active, runtime: Runtime) -> Record:
    """The row of a runtime that computes its answer: no runs, no spread."""
    session = active.parts[0].session
    assert session is not None
    return replace(
        failure(active.job, "unstable", "", runtime.source),
        status="ok",
        latency_ms_median=session.run(1, 1.0)[0].ms,
        **_fact_columns(session.facts),  # type: ignore[arg-type]
    )


def _fact_columns(facts: Facts) -> dict[str, object]:
    columns: dict[str, object] = {
        name: getattr(facts, name)
        for name in (
            "load_cold_ms",
            "load_warm_ms",
            "weights_mb",
            "activation_peak_mb",
            "system_peak_mb",
            "static_peak_mb",
            "placement_cpu",
            "placement_gpu",
            "placement_ane",
        )
    }
    extra = tuple(error_columns(facts).items())
    return {**columns, "thermal": facts.thermal or "", "estimator": facts.estimator, "extra": extra}


def error_columns(facts: Facts) -> dict[str, float]:
    """``numeric_error_fp32``, ``output_error_ane`` and the like: how right the numbers were, where that is known.

    An error that is not finite has no column; the row's reason says it.
    """
    both = {"numeric_error": facts.numeric_error, "output_error": facts.output_error}
    named = {f"{kind}_{name}": error for kind, errors in both.items() for name, error in errors.items()}
    return {name: error for name, error in named.items() if math.isfinite(error)}


def summarise(active: _Active, limits: Limits, log: RunLog, runtime: Runtime) -> Record:
    """The row of a timed workload, from the samples of undisturbed rounds (of all, where too few were undisturbed)."""
    job, notes = active.job, []
    limit_ms = log.limit_ms(limits.drift)
    kept = [_usable(active, number, limit_ms) for number in range(len(active.parts))]
    if any(len({s.round_index for s in samples}) < min(5, limits.min_rounds) for samples in kept):
        kept = [_usable(active, number, math.inf, True) for number in range(len(active.parts))]
        notes.append("unstable: most visits were disturbed by other work on the machine")
    ratio = max(_iqr_ratio([s.ms for s in samples]) for samples in kept)
    if ratio >= limits.iqr_ratio:
        rounds = len({s.round_index for s in kept[0]})
        notes.append(f"unstable: IQR ratio {ratio:.3f} over {limits.iqr_ratio:g} after {rounds} rounds")
    latency = latency_of(job, [[s.ms for s in samples] for samples in kept])
    notes.extend(latency.notes)
    if active.facts.notes:
        notes.append(active.facts.notes)
    gross = ratio >= limits.gross_iqr_ratio or not latency.median > 0
    thirds = _by_thirds(job, kept)
    numbers = {
        "latency_ms_median": latency.median if latency.median > 0 else None,
        "latency_ms_p90": latency.p90,
        "latency_iqr_ratio": ratio,
        "latency_low_ms": max(0.0, min(thirds)) if thirds else None,
        "latency_high_ms": max(0.0, *thirds) if thirds else None,
        "runs": sum(len(samples) for samples in kept),
        **_fact_columns(active.facts),
    }
    record = failure(job, "unstable", "", runtime.source)
    status = "unstable" if gross else "ok"
    return replace(record, status=status, reason=one_line("; ".join(notes)), **numbers)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Latency:
    """A row's latency in ms. ``overhead_ms`` and ``residual_ms`` are what a slope found beside it."""

    median: float
    p90: float | None
    overhead_ms: float | None = None
    residual_ms: float | None = None
    notes: tuple[str, ...] = ()


def latency_of(job: Job, samples: Sequence[Sequence[float]]) -> Latency:
    """Median and 90th percentile of a job from the samples of its parts, by its method.

    ``slope`` fits latency = overhead + slope x k by least squares over the medians of k stacked copies; a residual
    over 5% of the slope is noted, since a placement that flips as k grows shows there.
    """
    medians = [median(values) for values in samples]
    if job.method == "alone":
        return Latency(medians[0], float(np.percentile(samples[0], 90)))
    if job.method == "in_context":
        difference = medians[0] - medians[1]
        note = () if difference > 0 else ("the segment with the block was not slower than the one without",)
        return Latency(difference, None, notes=note)
    counts = np.asarray(job.counts, dtype=float)
    slope, overhead = np.polyfit(counts, np.asarray(medians), 1)
    residual = float(np.abs(overhead + slope * counts - np.asarray(medians)).max())
    notes = [f"overhead {overhead:.4f} ms a call, residual {residual:.4f} ms over k={','.join(map(str, job.counts))}"]
    if slope > 0 and residual > 0.05 * slope * counts.max():
        notes.append("not a line: the placement may change with the number of copies")
    return Latency(float(slope), None, float(overhead), residual, tuple(notes))


def _by_thirds(job: Job, kept: Sequence[Sequence[Sample]]) -> list[float]:
    """The latency from the early, middle and late rounds apart: how far the row moved within its run."""
    rounds = sorted({s.round_index for s in kept[0]})
    if len(rounds) < 6:
        return []
    size = len(rounds) / 3
    found = []
    for third in range(3):
        chosen = set(rounds[round(third * size) : round((third + 1) * size)])
        parts = [[s.ms for s in samples if s.round_index in chosen] for samples in kept]
        if all(parts):
            found.append(latency_of(job, parts).median)
    return found
