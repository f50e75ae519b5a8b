"""The rows that a table should have, and their records: each row's workload is refused, or lowered and measured."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from device_profiler.admission import admit
from device_profiler.device import Device
from device_profiler.errors import ProfileError, WorkloadError
from device_profiler.lowering.forms import LOWERING_NAMES
from latency_tables.record import Record
from latency_tables.table import Table
from search_spaces.arrangement import Arrangement
from search_spaces.errors import nearest
from search_spaces.workload import Workload

if TYPE_CHECKING:
    from device_profiler.lowering import Lowered
    from device_profiler.measure import OnProgress
    from device_profiler.runtimes.contract import Runtime
    from device_profiler.samples import Limits, RunLog
    from device_profiler.subject import Subject

    Lowering = tuple[tuple[Subject, ...], tuple[int, ...]]  # what to lower for a row, copies of the block in each

SLOPE_COUNTS = (1, 2, 4)
ALL = "all"


@dataclass(frozen=True)
class Wanted:
    """One row to be: (key, lowering, method) is its primary key."""

    workload: Workload
    lowering: str
    method: str
    arrangement: Arrangement | None = None

    @property
    def primary_key(self) -> tuple[str, str, str]:
        """What the row will be found by."""
        return self.workload.key, self.lowering, self.method


def wanted_rows(
    workloads: Iterable[Workload], device: Device, lowerings: Sequence[str] = (), method: str | None = None
) -> list[Wanted]:
    """The rows that a table of the device should have for these workloads."""
    from device_profiler.lowering import default_lowerings
    from device_profiler.runtimes.contract import load_runtime_class

    toolkit = load_runtime_class(device).toolkit
    names = tuple(lowerings) or device.lowerings
    for name in names:
        if name not in (*LOWERING_NAMES, ALL):
            raise ProfileError(
                f"unknown lowering {name!r}.{nearest(name, LOWERING_NAMES)} "
                f"Known lowerings: {', '.join(LOWERING_NAMES)}, and all."
            )
    how = method or device.method
    if how not in ("alone", "slope", "in_context"):
        raise ProfileError(f"unknown method {how!r}; it is alone, slope or in_context.")
    rows = []
    for workload in workloads:
        possible = default_lowerings(toolkit, workload)
        for name in possible if ALL in names else [n for n in names if n in possible] or possible[:1]:
            rows.append(Wanted(workload, name, how if workload.is_block else "alone"))
    return rows


def missing_rows(
    table: Table | None, wanted: Sequence[Wanted], retry: bool = False, source: str = "measured"
) -> list[Wanted]:
    """What of ``wanted`` the table lacks; an unstable row counts as lacking, one without a number where ``retry``.

    Args:
        source: of the rows that are made: where that is ``measured``, an estimate counts as lacking.
    """
    again = {"unstable"} | ({"oom", "unsupported", "failed", "timeout", "wrong"} if retry else set())
    kept = (row for row in table or () if not (source == "measured" and row.source == "estimated"))
    have = {row.primary_key: row.status for row in kept}
    return [row for row in wanted if have.get(row.primary_key, "unstable") in again]


def _subjects(row: Wanted, space: str) -> tuple[tuple[Subject, ...], tuple[int, ...]]:
    """What to lower for a row, and how many copies of the block each has."""
    from device_profiler.subject import SEGMENT, Subject

    origin = space if row.workload.block in ("backbone", "network", "spatial") else ""
    subject = Subject(row.workload, origin, row.arrangement)
    if row.method == "slope":
        return tuple(subject.with_copies(count) for count in SLOPE_COUNTS), SLOPE_COUNTS
    if row.method == "in_context":
        segment = replace(subject, factory=SEGMENT)
        return (segment, segment.with_copies(0)), (1, 0)
    return (subject,), (1,)


def records_of(
    wanted: Sequence[Wanted],
    device: Device,
    runtime: Runtime,
    space: str,
    limits: Limits | None,
    seed: int,
    progress: OnProgress | None,
    cache: Path,
    log: RunLog | None,
) -> Iterator[Record]:
    """Refuse, lower, then measure; a record for each wanted row, as soon as it is known."""
    import numpy as np

    from device_profiler.lowering import Lowered
    from device_profiler.measure import measure, silent
    from device_profiler.samples import Job, Limits

    if limits is None:
        limits = replace(Limits(), timeout_s=device.timeout_s, cool_down_s=device.cool_down_s)
    tell = progress or silent
    admitted: list[Wanted] = []
    for row in wanted:
        try:
            admit(row.workload, row.lowering, device)
        except WorkloadError as error:
            yield _failure(row, error, runtime)
        else:
            admitted.append(row)
    if not admitted:
        return
    plans = [_subjects(row, space) for row in admitted]
    owners = [index for index, (subjects, _) in enumerate(plans) for _ in subjects]
    artifacts: dict[int, Lowered | WorkloadError] = {}
    failed = yield from _lowered(admitted, plans, owners, device, runtime, limits, cache, tell, artifacts)
    jobs = []
    for index, (row, (_, counts)) in enumerate(zip(admitted, plans, strict=True)):
        parts = [artifacts[n] for n, owner in enumerate(owners) if owner == index]
        good = tuple(part for part in parts if isinstance(part, Lowered))
        if index not in failed:
            jobs.append(Job(row.workload, row.lowering, good, row.method, counts))
    reference = artifacts.get(len(owners))
    yield from measure(
        jobs,
        runtime,
        limits,
        np.random.default_rng(seed),
        reference=reference if isinstance(reference, Lowered) else None,
        log=log,
        progress=tell,
    )


def _lowered(
    admitted: Sequence[Wanted],
    plans: Sequence[Lowering],
    owners: Sequence[int],
    device: Device,
    runtime: Runtime,
    limits: Limits,
    cache: Path,
    tell: OnProgress,
    artifacts: dict[int, Lowered | WorkloadError],
) -> Generator[Record, None, set[int]]:
    """Lower every subject into ``artifacts``, the reference workload of a runtime that measures last.

    Args:
        owners: of each subject, the row that it is for.

    Yields:
        The record of a row that cannot be lowered. Returns their numbers.
    """
    from device_profiler.lowering import lower_all
    from device_profiler.measure import Progress
    from device_profiler.subject import reference_subject

    jobs = [
        (subject, runtime.toolkit, row.lowering)
        for row, (subjects, _) in zip(admitted, plans, strict=True)
        for subject in subjects
    ]
    if runtime.source == "measured":
        jobs.append((reference_subject(device.precision), runtime.toolkit, "plain"))
    failed: set[int] = set()
    workers = min(2, os.cpu_count() or 1)
    for index, artifact in lower_all(jobs, cache, workers=workers, timeout_s=limits.lowering_timeout_s):
        artifacts[index] = artifact
        tell(Progress("lower", len(artifacts), len(jobs), jobs[index][0].key))
        if isinstance(artifact, WorkloadError) and index < len(owners) and owners[index] not in failed:
            failed.add(owners[index])
            yield _failure(admitted[owners[index]], artifact, runtime)
    return failed


def _failure(row: Wanted, error: WorkloadError, runtime: Runtime) -> Record:
    from device_profiler.rows import failure
    from device_profiler.samples import Job

    return failure(Job(row.workload, row.lowering, (), row.method), error.status, str(error), runtime.source)
