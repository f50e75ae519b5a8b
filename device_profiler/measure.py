"""The one timing loop of all runtimes: interleaved rounds, a reference workload between, a rule for when to stop."""

from __future__ import annotations

import csv
import gzip
import io
import math
import time
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Generator as Generator_
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

import numpy as np
from numpy.random import Generator

from device_profiler import host
from device_profiler.errors import SessionLost, TimedOut, WorkloadError, one_line
from device_profiler.lowering import Lowered
from device_profiler.runtimes import Execution, Facts, Runtime, Session
from latency_tables.record import Record
from search_spaces.workload import Workload

ATTEMPTS = 3  # how often a workload is loaded again after losing its session through no fault of its own


@dataclass(frozen=True)
class Limits:
    """How long and how carefully to measure.

    Args:
        warmup: executions thrown away after loading.
        min_rounds, max_rounds: rounds a workload takes part in; disturbed visits do not count towards the least.
        visit_ms: a visit repeats the workload until about this much time is spent, ``max_repeats`` times at most.
        iqr_ratio: stable when the interquartile range of all samples is below this share of their median.
        gross_iqr_ratio: a row noisier than this at the cap has no number (``unstable``); below, it says so and stands.
        seconds: cap of the time spent executing one workload.
        timeout_s: for loading and for one visit; ``lowering_timeout_s`` for lowering.
        drift: a visit beside which the reference is slower than at its quiet level by more than this share is repeated.
        cool_down_s: pause after a round whose reference was that much slower.
        group_size: workloads timed together in interleaved rounds.
        lockstep: every workload takes part in the same rounds until all are stable, so that drift cancels in sums.
    """

    warmup: int = 2
    min_rounds: int = 11
    max_rounds: int = 40
    visit_ms: float = 12.0
    max_repeats: int = 12
    iqr_ratio: float = 0.05
    gross_iqr_ratio: float = 1.0
    seconds: float = 20.0
    timeout_s: float = 120.0
    lowering_timeout_s: float = 900.0
    drift: float = 0.10
    cool_down_s: float = 0.0
    group_size: int = 40
    lockstep: bool = False


@dataclass(frozen=True)
class Progress:
    """What is going on: ``stage`` is lower, load, time or row; ``done`` of ``total`` workloads are through it."""

    stage: str
    done: int
    total: int
    key: str = ""
    detail: str = ""


OnProgress = Callable[[Progress], None]


def silent(event: Progress) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Job:
    """One row to be: the artifacts to time and the method by which their times make its latency.

    ``alone`` has one part. ``slope`` has the block stacked k times, a part for each of ``counts``. ``in_context`` has a
    segment with the block and the segment without it.
    """

    workload: Workload
    lowering: str
    parts: tuple[Lowered, ...]
    method: str = "alone"
    counts: tuple[int, ...] = (1,)


@dataclass(frozen=True)
class Sample:
    """One execution. ``round_index`` counts through the run; the first of a visit finds cold caches and is marked.

    So is one that the system interrupted to run something else. Marked samples are kept, and left out of statistics.
    ``beside_ms`` is the slower of the reference workload's latencies just before and just after the visit.
    """

    part: int
    round_index: int
    first: bool
    interrupted: bool
    ms: float
    at_s: float
    load: float
    beside_ms: float | None = None


@dataclass
class _Part:
    lowered: Lowered
    session: Session | None = None
    facts: Facts = Facts()
    repeats: int = 1
    spent_s: float = 0.0


@dataclass
class _Active:
    job: Job
    parts: list[_Part]
    samples: list[Sample] = field(default_factory=list)
    attempts: int = 0

    @property
    def facts(self) -> Facts:
        """What loading told of the workload: of its single copy, or of the segment that holds it.

        A segment's own weights are taken off; its peak stays, as the least that is known to be enough.
        """
        facts = self.parts[0].facts
        without = self.parts[-1].facts.weights_mb
        if self.job.method == "in_context" and facts.weights_mb is not None and without is not None:
            return replace(facts, weights_mb=max(0.0, facts.weights_mb - without))
        return facts

    def close(self) -> None:
        for part in self.parts:
            if part.session is not None:
                part.session.close()
                part.session = None


class RunLog:
    """What a run leaves beside its rows: every raw sample, and how the reference workload fared.

    Args:
        path: a ``.csv.gz`` to append samples to as each round ends; None keeps none.
    """

    COLUMNS = (
        "run",
        "key",
        "lowering",
        "method",
        "part",
        "round",
        "first",
        "interrupted",
        "ms",
        "beside_ms",
        "at_s",
        "load",
    )

    def __init__(self, path: Path | None = None, run: str = "") -> None:
        self.path = path
        self.run = run or time.strftime("%Y%m%dT%H%M%S")
        self.reference: list[tuple[int, float]] = []  # (round, ms)
        self.reference_key = ""
        self._lines: list[tuple[object, ...]] = []

    def add(self, job: Job | None, samples: Sequence[Sample]) -> None:
        """Note the samples of one visit; ``job`` is None for the reference workload."""
        if job is None:
            self.reference.extend((s.round_index, s.ms) for s in samples if not (s.first or s.interrupted))
        key, lowering, method = (job.workload.key, job.lowering, job.method) if job else (self.reference_key, "", "")
        self._lines.extend(
            (
                self.run,
                key,
                lowering,
                method,
                s.part,
                s.round_index,
                int(s.first),
                int(s.interrupted),
                f"{s.ms:.5f}",
                "" if s.beside_ms is None else f"{s.beside_ms:.5f}",
                f"{s.at_s:.3f}",
                s.load,
            )
            for s in samples
        )

    def take(self) -> str:
        """What was noted since the last call, as lines of CSV."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(self._lines)
        self._lines.clear()
        return text.getvalue()

    def flush(self) -> None:
        """Append what was noted to the file."""
        text = self.take()
        if self.path is not None and text:
            append_samples(self.path, text)

    def reference_by_round(self) -> dict[int, float]:
        """Median latency of the reference workload in each round, ms."""
        rounds: dict[int, list[float]] = {}
        for index, ms in self.reference:
            rounds.setdefault(index, []).append(ms)
        return {index: median(values) for index, values in rounds.items()}

    def limit_ms(self, threshold: float) -> float:
        """What the reference may take beside a visit that counts: its quiet level and ``threshold`` of it.

        The quiet level is the lower quartile: neighbours and heat only ever make a machine slower, and on a busy one
        the median itself is disturbed. Infinite without a reference.
        """
        if not self.reference:
            return math.inf
        return (1 + threshold) * float(np.percentile([ms for _, ms in self.reference], 25))

    def reference_ms(self, threshold: float) -> float | None:
        """Median latency of the reference beside the visits that count, or beside all where ``threshold`` is inf.

        None without a reference.
        """
        limit = self.limit_ms(threshold)
        kept = [ms for _, ms in self.reference if ms <= limit]
        return median(kept) if kept else None

    def disturbed(self, threshold: float) -> set[int]:
        """Rounds whose reference, in the middle, was over ``limit_ms``."""
        limit = self.limit_ms(threshold)
        return {index for index, ms in self.reference_by_round().items() if ms > limit}

    def summary(self, threshold: float) -> dict[str, float | int | str]:
        """The reference workload through the run, for the table's header.

        ``spread`` is the interquartile range of its round medians over their median: the machine is quiet below 0.02.
        ``drift`` is the largest deviation of a round. Empty without a reference.
        """
        values = list(self.reference_by_round().values())
        if not values:
            return {}
        middle = median(values)
        low, high = np.percentile(values, [25, 75])
        return {
            "key": self.reference_key,
            "latency_ms": round(middle, 4),
            "spread": round(float(high - low) / middle, 4),
            "drift": round(max(abs(v / middle - 1) for v in values), 4),
            "rounds": len(values),
            "disturbed_rounds": len(self.disturbed(threshold)),
        }


def append_samples(path: Path, text: str) -> None:
    """Append lines of raw samples: a complete gzip member, so that a kill loses at most one round."""
    if not path.exists():
        text = ",".join(RunLog.COLUMNS) + "\n" + text
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(gzip.compress(text.encode(), mtime=0))


def measure(
    jobs: Sequence[Job],
    runtime: Runtime,
    limits: Limits,
    rng: Generator,
    *,
    reference: Lowered | None = None,
    log: RunLog | None = None,
    progress: OnProgress = silent,
) -> Iterator[Record]:
    """Time workloads in interleaved rounds until each is stable, and yield each record as soon as it is.

    Rounds visit the workloads in shuffled order, with the reference workload before and after each visit: neighbours'
    load and heat shift whole runs by tens of percent and stay invisible inside one workload's own repeats. A visit
    beside which the reference was slower than at its quiet level does not count, and another round is made for it.

    Args:
        jobs: what to measure; jobs are grouped so that a group's memory stays under the runtime's capacity.
        rng: shuffles the order.
        reference: a small artifact re-measured through the run; None for a runtime that estimates.
        log: takes every raw sample.

    Yields:
        One record per job. ``status`` is ``ok``, or says why there is no number: ``oom``, ``unsupported``, ``failed``,
        ``timeout``, ``unstable``. A workload never takes the run down with it.
    """
    log = log or RunLog()
    capacity_mb = runtime.capacity_mb()
    waiting = [_Active(job, [_Part(lowered) for lowered in job.parts]) for job in jobs]
    total, finished = len(waiting), 0
    watch: Session | None = None
    next_round = 0
    try:
        while waiting:
            group = _take_group(waiting, limits.group_size, capacity_mb)
            ready: list[_Active] = []
            for active in group:
                progress(Progress("load", finished + len(ready), total, active.job.workload.key))
                try:
                    for part in active.parts:
                        part.session = _load(runtime, part.lowered, limits)
                        part.facts = part.session.facts
                except WorkloadError as error:
                    active.close()
                    finished += 1
                    yield failure(active.job, error.status, str(error), runtime.source)
                    continue
                except SessionLost as error:
                    finished += yield from _requeue(active, error, waiting, runtime)
                    continue
                ready.append(active)
            if runtime.source == "estimated":
                for active in ready:
                    finished += 1
                    yield _estimate(active, runtime)
                    active.close()
                continue
            if reference is not None and watch is None and ready:
                try:
                    watch = _load(runtime, reference, limits)
                    watch.run(limits.warmup + 1, limits.timeout_s)
                    log.reference_key = reference.subject.key
                except (WorkloadError, SessionLost):
                    watch = None
            first_round = next_round
            while ready:
                lost: list[_Active] = []
                for active, outcome in _round(ready, watch, next_round, limits, rng, log):
                    ready.remove(active)
                    if isinstance(outcome, WorkloadError):
                        active.close()
                        finished += 1
                        yield failure(active.job, outcome.status, str(outcome), runtime.source)
                    else:
                        lost.append(active)
                for active in lost:
                    finished += yield from _requeue(active, SessionLost("its session was lost"), waiting, runtime)
                if lost and watch is not None:
                    watch.close()
                    watch = None
                log.flush()
                next_round += 1
                rounds = next_round - first_round
                progress(Progress("time", finished, total, detail=f"round {rounds}, {len(ready)} workloads"))
                if rounds < limits.min_rounds:
                    continue
                for active in _finished(ready, limits, rounds, log):
                    ready.remove(active)
                    active.close()
                    finished += 1
                    record = summarise(active, limits, log, runtime)
                    progress(Progress("row", finished, total, record.key, record.status))
                    yield record
                _cool_down(log, limits, next_round - 1, bool(ready))
    finally:
        if watch is not None:
            watch.close()
        runtime.close()
        log.flush()


def _take_group(waiting: list[_Active], size: int, capacity_mb: float) -> list[_Active]:
    """Take from the front what fits together; a workload that fits nowhere still gets a group of its own."""
    group: list[_Active] = []
    used = 0.0
    while waiting and len(group) < size:
        needed = sum(_memory_mb(part.lowered) for part in waiting[0].parts)
        if group and used + needed > capacity_mb:
            break
        used += needed
        group.append(waiting.pop(0))
    return group


def _memory_mb(lowered: Lowered) -> float:
    stats = lowered.stats
    return 100.0 + float(stats.get("weights_mb", 0)) + float(stats.get("static_peak_mb", 0))


def _load(runtime: Runtime, lowered: Lowered, limits: Limits) -> Session:
    session = runtime.load(lowered, limits.timeout_s)
    error = session.facts.max_error
    if error is not None and not error <= runtime.tolerance:
        session.close()
        off = "not finite or of another shape" if math.isinf(error) else f"off by {error:.2g} of the largest value"
        raise WorkloadError(
            f"its outputs are {off} against the torch module (allowed: {runtime.tolerance:g}); "
            f"lowering {lowered.lowering!r} or the runtime computes another function"
        )
    return session


def _requeue(
    active: _Active, error: SessionLost, waiting: list[_Active], runtime: Runtime
) -> Generator_[Record, None, int]:
    """Put a workload back that lost its session through another's fault; give up after ``ATTEMPTS``."""
    active.close()
    active.attempts += 1
    if active.attempts < ATTEMPTS:
        waiting.append(active)
        return 0
    yield failure(active.job, "failed", f"lost its session {ATTEMPTS} times: {error}", runtime.source)
    return 1


def _round(
    ready: list[_Active], watch: Session | None, index: int, limits: Limits, rng: Generator, log: RunLog
) -> list[tuple[_Active, WorkloadError | SessionLost]]:
    """One visit to every part in shuffled order; gives the workloads that did not survive it."""
    visits = [(active, number) for active in ready for number in range(len(active.parts))]
    gone: dict[int, tuple[_Active, WorkloadError | SessionLost]] = {}
    before = _reference_ms(watch, index, limits, log)
    for at in rng.permutation(len(visits)):
        active, number = visits[at]
        if id(active) in gone:
            continue
        try:
            samples = _visit(active.parts[number], number, index, limits)
        except (WorkloadError, SessionLost) as error:
            gone[id(active)] = (active, error)
            continue
        after = _reference_ms(watch, index, limits, log)
        if before is not None and after is not None:
            samples = [replace(sample, beside_ms=max(before, after)) for sample in samples]
        before = after
        active.samples.extend(samples)
        log.add(active.job, samples)
    return list(gone.values())


def _reference_ms(watch: Session | None, index: int, limits: Limits, log: RunLog) -> float | None:
    """The reference workload's latency now: the better of two executions, after one that warms up."""
    if watch is None:
        return None
    try:
        samples = _samples(watch.run(3, limits.timeout_s), 0, index, True)
    except (WorkloadError, SessionLost):
        return None
    log.add(None, samples)
    return min(sample.ms for sample in samples[1:])


def _visit(part: _Part, number: int, index: int, limits: Limits) -> list[Sample]:
    session = part.session
    assert session is not None
    if part.spent_s == 0.0:
        warm = session.run(max(1, limits.warmup), limits.timeout_s)
        once = max(min(run.ms for run in warm), 1e-3)
        part.repeats = min(limits.max_repeats, max(1, math.ceil(limits.visit_ms / once)))
    skip = part.repeats > 1
    times = session.run(part.repeats + skip, limits.timeout_s)
    took = sum(run.ms for run in times) / 1e3
    part.spent_s += took
    if took > limits.timeout_s:
        raise TimedOut(f"one visit took {took:.1f} s, over {limits.timeout_s:g} s")
    return _samples(times, number, index, skip)


def _samples(times: Sequence[Execution], number: int, index: int, skip_first: bool) -> list[Sample]:
    now, load = time.time(), host.load_average()
    return [
        Sample(number, index, skip_first and i == 0, run.interrupted, run.ms, now, load) for i, run in enumerate(times)
    ]


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


def _stable(active: _Active, limits: Limits, limit_ms: float) -> bool:
    for number in range(len(active.parts)):
        samples = _usable(active, number, limit_ms)
        if len({s.round_index for s in samples}) < limits.min_rounds:
            return False
        if _iqr_ratio([s.ms for s in samples]) >= limits.iqr_ratio:
            return False
    return True


def _finished(ready: list[_Active], limits: Limits, rounds: int, log: RunLog) -> list[_Active]:
    limit_ms = log.limit_ms(limits.drift)
    done = [
        active
        for active in ready
        if rounds >= limits.max_rounds
        or sum(part.spent_s for part in active.parts) >= limits.seconds * len(active.parts)
        or _stable(active, limits, limit_ms)
    ]
    if limits.lockstep and len(done) < len(ready):
        return []
    return done


def _cool_down(log: RunLog, limits: Limits, index: int, more: bool) -> None:
    rounds = log.reference_by_round()
    if more and limits.cool_down_s and index in rounds:
        if rounds[index] > (1 + limits.drift) * median(rounds.values()):
            time.sleep(limits.cool_down_s)


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


def failure(job: Job, status: str, reason: str, source: str = "measured") -> Record:
    """The row of a workload that gave no number."""
    columns = shape_columns(job.workload)
    return Record(
        key=job.workload.key,
        lowering=job.lowering,
        method=job.method,
        source=source,
        status=status,
        reason=one_line(reason),
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
    return {**columns, "thermal": facts.thermal or "", "estimator": facts.estimator}


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
