"""The one timing loop of all runtimes: interleaved rounds, a reference workload between, a rule for when to stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Generator as Generator_
from dataclasses import dataclass, replace
from statistics import median

from numpy.random import Generator

from device_profiler import host
from device_profiler.errors import SessionLost, TimedOut, WorkloadError, WrongAnswer
from device_profiler.lowering import Lowered
from device_profiler.rows import _estimate, _iqr_ratio, _usable, error_columns, failure, summarise
from device_profiler.runtimes.contract import Execution, Facts, Runtime, Session
from device_profiler.samples import Job, Limits, RunLog, Sample, _Active, _Part
from latency_tables.record import Record

ATTEMPTS = 3  # how often a workload is loaded again after losing its session through no fault of its own


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
        ``timeout``, ``wrong``, ``unstable``. A workload never takes the run down with it.
    """
    run = _Run(jobs, runtime, limits, rng, reference, log or RunLog(), progress)
    try:
        while run.waiting:
            ready = yield from run.load_some()
            yield from run.estimate(ready) if runtime.source == "estimated" else run.time(ready)
    finally:
        run.close()


class _Run:
    """The state of one measurement: what waits, how many are through, and the session of the reference workload."""

    def __init__(
        self,
        jobs: Sequence[Job],
        runtime: Runtime,
        limits: Limits,
        rng: Generator,
        reference: Lowered | None,
        log: RunLog,
        progress: OnProgress,
    ) -> None:
        self.runtime, self.limits, self.rng, self.reference = runtime, limits, rng, reference
        self.log, self.progress = log, progress
        self.capacity_mb = runtime.capacity_mb()
        self.waiting = [_Active(job, [_Part(lowered) for lowered in job.parts]) for job in jobs]
        self.total, self.finished, self.next_round = len(self.waiting), 0, 0
        self.watch: Session | None = None

    def close(self) -> None:
        if self.watch is not None:
            self.watch.close()
        self.runtime.close()
        self.log.flush()

    def load_some(self) -> Generator_[Record, None, list[_Active]]:
        """Load the next group; yields the rows of what cannot be loaded, and returns the others."""
        ready: list[_Active] = []
        for active in _take_group(self.waiting, self.limits.group_size, self.capacity_mb):
            self.progress(Progress("load", self.finished + len(ready), self.total, active.job.workload.key))
            try:
                for part in active.parts:
                    part.session = _load(self.runtime, part.lowered, self.limits)
                    part.facts = part.session.facts
            except WorkloadError as error:
                yield self._failed(active, error)
            except SessionLost as error:
                self.finished += yield from _requeue(active, error, self.waiting, self.runtime)
            else:
                ready.append(active)
        return ready

    def estimate(self, ready: list[_Active]) -> Iterator[Record]:
        """The rows of a runtime that estimates."""
        for active in ready:
            self.finished += 1
            yield _estimate(active, self.runtime)
            active.close()

    def time(self, ready: list[_Active]) -> Iterator[Record]:
        """Rounds until every workload is stable or gone; each row as soon as it is known."""
        if ready:
            self._begin_watch()
        first_round = self.next_round
        while ready:
            yield from self._visited(ready)
            self.log.flush()
            self.next_round += 1
            rounds = self.next_round - first_round
            told = f"round {rounds}, {len(ready)} workloads"
            self.progress(Progress("time", self.finished, self.total, detail=told))
            if rounds < self.limits.min_rounds:
                continue
            for active in _finished(ready, self.limits, rounds, self.log):
                ready.remove(active)
                active.close()
                self.finished += 1
                record = summarise(active, self.limits, self.log, self.runtime)
                self.progress(Progress("row", self.finished, self.total, record.key, record.status))
                yield record
            _cool_down(self.log, self.limits, self.next_round - 1, bool(ready))

    def _begin_watch(self) -> None:
        """Open the reference workload beside the others; without it the run goes on unwatched."""
        if self.reference is None or self.watch is not None:
            return
        try:
            self.watch = _load(self.runtime, self.reference, self.limits)
            self.watch.run(self.limits.warmup + 1, self.limits.timeout_s)
            self.log.reference_key = self.reference.subject.key
        except (WorkloadError, SessionLost):
            self.watch = None

    def _visited(self, ready: list[_Active]) -> Iterator[Record]:
        """One round; yields the rows of those that failed in it, and puts back those that lost their session."""
        lost: list[_Active] = []
        for active, outcome in _round(ready, self.watch, self.next_round, self.limits, self.rng, self.log):
            ready.remove(active)
            if isinstance(outcome, WorkloadError):
                yield self._failed(active, outcome)
            else:
                lost.append(active)
        for active in lost:
            gone = SessionLost("its session was lost")
            self.finished += yield from _requeue(active, gone, self.waiting, self.runtime)
        if lost and self.watch is not None:
            self.watch.close()
            self.watch = None

    def _failed(self, active: _Active, error: WorkloadError) -> Record:
        active.close()
        self.finished += 1
        found = error.found if isinstance(error, WrongAnswer) else None
        return failure(active.job, error.status, str(error), self.runtime.source, found)


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
    try:
        check_answers(session.facts, runtime.tolerance, lowered.lowering)
    except WrongAnswer:
        session.close()
        raise
    return session


def check_answers(facts: Facts, tolerance: float, lowering: str) -> None:
    """Refuse what computes something else, as it was loaded or on one of the compute units that it may run on.

    Raises:
        WrongAnswer: naming the units, with what was found for the row's columns.
    """
    error = facts.max_error
    wrong = [unit for unit, off in facts.output_error.items() if not off <= tolerance]
    if wrong:
        told = ", ".join(f"{unit} {_off(facts.output_error[unit])}" for unit in wrong)
        right = [unit for unit in facts.output_error if unit not in wrong]
        rest = f"right on {', '.join(right)}: use another compute_unit" if right else "no unit answers rightly"
        raise WrongAnswer(
            f"its outputs are wrong on {told} (allowed: {tolerance:g}); {rest}, or another lowering than {lowering!r}",
            error_columns(facts),
        )
    if error is not None and not error <= tolerance:
        raise WrongAnswer(
            f"its outputs are {_off(error)} against the torch module (allowed: {tolerance:g}); "
            f"lowering {lowering!r} or the runtime computes another function",
            error_columns(facts),
        )


def _off(error: float) -> str:
    return f"off by {error:.2g} of the largest value" if math.isfinite(error) else "not finite or of another shape"


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
