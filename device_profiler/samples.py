"""Raw samples of a measurement: what is timed, within which limits, and the log that keeps every number."""

from __future__ import annotations

import csv
import gzip
import io
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

import numpy as np

from device_profiler.lowering import Lowered
from device_profiler.runtimes.contract import Facts, Session
from search_spaces.workload import Workload


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
