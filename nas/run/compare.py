"""The chosen network measured whole: again where the machine was disturbed, and set against the table's own day."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.config import RunConfig
from nas.console import progress, say

if TYPE_CHECKING:
    from device_profiler.device import Device
    from device_profiler.samples import RunLog
    from latency_tables.record import Record
    from search_spaces.arrangement import Arrangement
    from search_spaces.space import Space

FILE = "compare.json"
CALMER = 0.9  # a try this much calmer than the one before is worth another
PAUSES_S = (5.0, 15.0)  # before the second and the third try: a neighbour's burst is often over by then


@dataclass(frozen=True)
class Taken:
    """One try: the network and the bare backbone timed in the same rounds, and the reference workload beside them.

    ``reference_ms`` is what the reference took beside the visits that count, ``known_ms`` what it took when the table
    was measured; None is unknown.
    """

    network: Record
    backbone: Record
    reference_ms: float | None
    known_ms: float | None
    drift: float

    @property
    def change(self) -> float | None:
        """The machine's slowness now over that of the table's day, by the reference workload."""
        return self.reference_ms / self.known_ms if self.reference_ms and self.known_ms else None

    @property
    def disturbed(self) -> str:
        """Why these are not the latencies of a quiet machine; empty if they are."""
        rows = (("network", self.network), ("backbone", self.backbone))
        if self.change is not None and self.change > 1 + self.drift:
            return (
                f"the reference workload took {self.reference_ms:.3g} ms where the table has {self.known_ms:.3g} ms "
                f"({100 * (self.change - 1):+.0f}%)"
            )
        return next((f"the {name} is {row.reason}" for name, row in rows if "unstable:" in row.reason), "")

    @property
    def badness(self) -> float:
        """Lower is better: tries are compared by it."""
        return math.inf if not self.network.ok else self.change or self.network.latency_iqr_ratio or 0.0

    def facts(self) -> dict[str, Any]:
        """What the run notes. ``adjusted`` latencies have the reference workload's change taken out."""
        network, backbone = self.network, self.backbone
        return {
            "latency_ms_measured": network.latency_ms_median,
            "latency_ms_adjusted": self._adjusted(network),
            "peak_mb_measured": _sum(network.weights_mb, network.activation_peak_mb),
            "backbone_latency_ms_measured": backbone.latency_ms_median,
            "backbone_latency_ms_adjusted": self._adjusted(backbone),
            "measured_status": network.status,
            "measured_source": network.source,
            "measured_disturbed": self.disturbed,
            "reference_ms": self.reference_ms,
            "reference_ms_of_table": self.known_ms,
        }

    def _adjusted(self, row: Record) -> float | None:
        return row.latency_ms_median / self.change if row.latency_ms_median and self.change else None


def measure_chosen(config: RunConfig, out: Path, *, sleep: Callable[[float], None] = time.sleep) -> dict[str, Any]:
    """Lower and time the whole chosen network, and the bare backbone beside it in the same interleaved rounds.

    Within a try disturbed visits are repeated, as in profiling. A try that was disturbed as a whole (the reference
    workload slower than when the table was measured by more than profiling allows, or a row that never became stable)
    is made again after a pause, for as long as that helps, and the calmest counts.

    Returns:
        What ``compare.json`` holds beside the arrangement's key: see ``Taken.facts``, and ``measured_tries``.
    """
    from device_profiler.device import Device
    from search_spaces.arrangement import Arrangement
    from search_spaces.space import Space

    device, space = Device.load(config.device), Space.load(config.space)
    arrangement = Arrangement.load(out / "arrangement.yaml")
    tries: list[Taken] = []
    with progress("compare") as report:
        for pause in (0.0, *PAUSES_S):
            if pause:
                say(f"compare    disturbed: {tries[-1].disturbed}; measured again in {pause:g} s")
                sleep(pause)
            tries.append(_take(config, out, device, space, arrangement, report))
            if not (tries[-1].disturbed and tries[-1].network.latency_ms_median) or _stays(tries):
                break
    best = min(tries, key=lambda taken: (bool(taken.disturbed), taken.badness))
    measured = {**best.facts(), "measured_tries": len(tries)}
    for line in _said(best, measured):
        say(f"compare    {line}")
    return {"key": arrangement.key, **measured}


def _stays(tries: Sequence[Taken]) -> bool:
    """Whether waiting helped so little that the disturbance is here to stay."""
    return len(tries) > 1 and tries[-1].badness > CALMER * tries[-2].badness


def _take(
    config: RunConfig,
    out: Path,
    device: Device,
    space: Space,
    arrangement: Arrangement,
    report: Callable[[int, int, str], None],
) -> Taken:
    from device_profiler.profile import measure_workloads
    from device_profiler.samples import Limits, RunLog

    log, drift = RunLog(), Limits().drift
    wholes, bare = (
        space.network_workloads(arrangement, device.precision),
        space.frame_workloads(device.precision),
    )
    records = measure_workloads(
        [workload for workload, _ in (*wholes, *bare)],
        device,
        space=config.space,
        arrangements={arrangement.key: arrangement},
        cache_dir=out / "table" / ".cache",
        seed=config.seed,
        progress=lambda p: report(p.done, p.total, p.stage),
        log=log,
    )
    network, backbone = (
        in_one(rows, [calls for _, calls in several], held_mb(space, device.precision))
        for rows, several in ((records[: len(wholes)], wholes), (records[len(wholes) :], bare))
    )
    all_of_them = "visits were disturbed" in network.reason
    now = log.reference_ms(math.inf if all_of_them else drift)
    return Taken(network, backbone, now, _reference_of_table(out, device, backbone, log), drift)


def in_one(rows: Sequence[Record], calls: Sequence[int], held_mb: float) -> Record:
    """What the parts of a network cost together: the first that has no number, where one has none.

    Args:
        calls: of each part. held_mb: what is alive beside a part that runs more than once.
    """
    if len(rows) == 1 or not all(row.ok for row in rows):
        return next((row for row in rows if not row.ok), rows[0])
    latency = [(row.latency_ms_median or 0.0) * times for row, times in zip(rows, calls, strict=True)]
    beside = [held_mb if times > 1 else 0.0 for times in calls]
    peaks = [(row.activation_peak_mb or 0.0) + mb for row, mb in zip(rows, beside, strict=True)]
    unstable = next((row for row in rows if "unstable:" in row.reason), rows[0])
    return replace(
        unstable,
        key=rows[0].key,
        latency_ms_median=sum(latency),
        weights_mb=sum(row.weights_mb or 0.0 for row in rows),
        activation_peak_mb=max(peaks),
    )


def held_mb(space: Space, precision: str) -> float:
    """What stays alive while a network of this space runs frame by frame."""
    from search_spaces.planning import load_plan
    from search_spaces.workload import BYTES_PER_ELEMENT

    elements = max((part.live for part in load_plan(space).backbone_rest), default=0)
    return elements * BYTES_PER_ELEMENT[precision] / 1e6


def _reference_of_table(out: Path, device: Device, backbone: Record, log: RunLog) -> float | None:
    """What this run's reference workload took when the table's row of the backbone was measured."""
    from latency_tables.reference import References
    from nas.run.costs import load_table

    told = References(load_table(device, out / "table").header)(backbone.primary_key)
    ms = told.get("latency_ms")
    same = told.get("key") == log.reference_key
    return float(ms) if same and isinstance(ms, int | float) and ms > 0 else None


def _said(best: Taken, facts: dict[str, Any]) -> Sequence[str]:
    """What a person is told at once: a network without a number, or one from a disturbed machine."""
    if not best.network.ok:
        return [f"the chosen network has no number: {best.network.status}: {best.network.reason}"]
    if not best.disturbed:
        return []
    known = facts["latency_ms_adjusted"]
    out = f"; {known:.1f} ms with the reference workload's change taken out" if known else ""
    return [f"still disturbed after {facts['measured_tries']} tries: {best.disturbed}. Measured {_ms(best)}{out}"]


def _ms(taken: Taken) -> str:
    return f"{taken.network.latency_ms_median:.1f} ms"


def _sum(*values: float | None) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def write(out: Path, facts: dict[str, Any]) -> None:
    """``compare.json``, written whole or not at all."""
    from nas.files import write_whole

    write_whole(out / FILE, json.dumps(facts, indent=1))
