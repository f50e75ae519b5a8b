"""Is a network's cost the sum of its parts? Whole random networks and every part, timed in the same interleaved run."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from device_profiler.device import Device
from device_profiler.errors import ProfileError
from device_profiler.measure import OnProgress
from device_profiler.profile import CACHE, measure_workloads, note_run, profile, table_to_go_on_with
from device_profiler.samples import Limits, RunLog
from latency_tables.agreement import kendall_tau
from latency_tables.correction import MIN_NETWORKS, Correction, fit_correction, interval_of
from latency_tables.cost import CostModel
from latency_tables.header import Header
from latency_tables.record import Record
from latency_tables.table import Table, table_path
from search_spaces.arrangement import Arrangement
from search_spaces.planning import load_plan
from search_spaces.space import Space
from search_spaces.workload import Workload

# With the device's own timeout_s and cool_down_s, where no other limits are given.
LIMITS = Limits(min_rounds=15, max_rounds=30, seconds=120.0, lockstep=True, group_size=200)


@dataclass(frozen=True)
class Row:
    """One whole network: what its parts promise and what it took. ms, and MB of 10^6 bytes.

    Attributes:
        summed_peak_mb: what adding up every part's own peak would promise: the naive model of memory.
    """

    arrangement: Arrangement
    predicted_ms: float
    measured_ms: float
    predicted_peak_mb: float
    measured_peak_mb: float
    summed_peak_mb: float

    @property
    def error(self) -> float:
        """Predicted over measured latency, minus one."""
        return self.predicted_ms / self.measured_ms - 1

    @property
    def peak_error(self) -> float:
        """Predicted over measured peak memory, minus one."""
        return self.predicted_peak_mb / self.measured_peak_mb - 1


@dataclass(frozen=True)
class Additivity:
    """The evidence: shares of one, and how quiet the machine was (``reference_spread`` below 0.02 is quiet).

    Attributes:
        rows_digest: which rows of the space's workloads were summed (``latency_tables.audit.rows_digest``).
        failed: the networks without a number, as ``key: status: reason``; they have no row.
    """

    space: str
    rows: tuple[Row, ...]
    records: tuple[Record, ...]
    reference: dict[str, float | int | str]
    rows_digest: str = ""
    failed: tuple[str, ...] = ()

    @property
    def mape(self) -> float:
        """Mean absolute error of the predicted latencies."""
        return float(np.mean([abs(row.error) for row in self.rows]))

    @property
    def worst(self) -> float:
        """Largest absolute error of a predicted latency."""
        return max(abs(row.error) for row in self.rows)

    @property
    def bias(self) -> float:
        """Mean error of the predicted latencies: below zero where whole networks are slower than their parts."""
        return float(np.mean([row.error for row in self.rows]))

    @property
    def peak_mape(self) -> float:
        """Mean absolute error of the predicted peak memory."""
        return float(np.mean([abs(row.peak_error) for row in self.rows]))

    @property
    def kendall_tau(self) -> float:
        """Kendall's tau of predicted and measured latencies, -1..1; not a number if one side is all ties."""
        return kendall_tau([row.predicted_ms for row in self.rows], [row.measured_ms for row in self.rows])

    @property
    def interval(self) -> float:
        """Half the width, as a fraction, of the interval around a prediction that holds 90% of the networks."""
        return interval_of([row.error for row in self.rows])

    def correction(self) -> Correction:
        """What makes sums into wholes here, fitted on these networks with cross-validation.

        Raises:
            TableError: with too few networks.
        """
        return fit_correction(
            [row.predicted_ms for row in self.rows],
            [row.measured_ms for row in self.rows],
            [row.arrangement.num_layers for row in self.rows],
        )

    def evidence(self) -> dict[str, Any]:
        """What a table's header keeps of it; what is unknown is left out."""
        found = {
            "space": self.space,
            "rows": self.rows_digest or None,
            "mape": round(self.mape, 5),
            "worst": round(self.worst, 5),
            "bias": round(self.bias, 5),
            "interval": round(self.interval, 5),
            "kendall_tau": round(self.kendall_tau, 5) if len(self.rows) > 1 else None,
            "peak_mape": round(self.peak_mape, 5),
            "networks": len(self.rows),
            "failed": list(self.failed) or None,
            "reference_spread": self.reference.get("spread"),
            "date": datetime.date.today().isoformat(),
            "samples": [
                {
                    "predicted_ms": round(row.predicted_ms, 3),
                    "measured_ms": round(row.measured_ms, 3),
                    "layers": row.arrangement.num_layers,
                }
                for row in self.rows
            ],
        }
        return {name: value for name, value in found.items() if value is not None}


def random_networks(space: Space, count: int, seed: int) -> list[Arrangement]:
    """Distinct random arrangements, none of them empty."""
    rng = np.random.default_rng(seed)
    found: dict[str, Arrangement] = {}
    for _ in range(100 * count):
        if len(found) == count:
            break
        drawn = space.sample(rng)
        if drawn.num_layers:
            found[drawn.key] = drawn
    return list(found.values())


def check_additivity(
    space: str | Path,
    device: str | Path | Device,
    *,
    cache_dir: str | Path,
    arrangements: Sequence[Arrangement] | None = None,
    networks: int = 20,
    method: str | None = None,
    limits: Limits | None = None,
    seed: int = 0,
    progress: OnProgress | None = None,
    log: RunLog | None = None,
    keep: Callable[[Sequence[Record]], None] | None = None,
) -> Additivity:
    """Measure every workload of a space and whole networks together, and compare sums with wholes.

    All take part in the same rounds, so that a machine's drift moves predictions and measurements alike. A network
    that could not be measured is left out, and named in ``failed``.

    Args:
        networks: fewer are measured where the space has fewer.
        limits: ``LIMITS`` with the device's timeout_s and cool_down_s, if none are given.
        keep: given all records once they are measured, before anything can be wrong with them.

    Raises:
        ProfileError: if a workload, or every network, could not be measured.
    """
    loaded = Space.load(space)
    target = device if isinstance(device, Device) else Device.load(device)
    limits = limits or replace(LIMITS, timeout_s=target.timeout_s, cool_down_s=target.cool_down_s)
    chosen = list(arrangements) if arrangements is not None else random_networks(loaded, networks, seed)
    if not chosen:
        raise ProfileError(f"{loaded.name}: no network to measure beside its parts; allow a layer at some position.")
    log = log or RunLog()
    wholes = [loaded.network_workload(arrangement, target.precision) for arrangement in chosen]
    parts = loaded.workloads(target.precision)
    records = measure_workloads(
        [*parts, *wholes],
        target,
        space=space,
        arrangements={arrangement.key: arrangement for arrangement in chosen},
        method=method,
        limits=limits,
        seed=seed,
        progress=progress,
        cache_dir=cache_dir,
        log=log,
    )
    if keep is not None:
        keep(records)
    table = Table(Header(target.name, target.runtime, precision=target.precision), records)
    model = _costs_of_parts(loaded, table, method)
    rows, failed = _compared(model, table, chosen, wholes)
    if not rows:
        raise ProfileError(
            f"none of {len(chosen)} networks has a number; {failed[0]}; measure with other arrangements."
        )
    reference = log.summary(limits.drift)
    return Additivity(loaded.name, rows, tuple(records), reference, model.rows_digest, failed)


def _costs_of_parts(space: Space, table: Table, method: str | None) -> CostModel:
    """What parts add up to.

    Raises:
        ProfileError: if one of them has no number.
    """
    model = CostModel(load_plan(space), table, method=method)
    for part in model.rows.values():
        if not part.ok:
            raise ProfileError(
                f"{part.key}: no number to add up ({part.status}: {part.reason}); measure again on a quieter machine."
            )
    return model


def _compared(
    model: CostModel, table: Table, chosen: Sequence[Arrangement], wholes: Sequence[Workload]
) -> tuple[tuple[Row, ...], tuple[str, ...]]:
    """Sums beside wholes, and the networks that have no number."""
    costs = model.cost(np.stack([model.encode(arrangement.labels()) for arrangement in chosen]))
    rows, failed = [], []
    for index, (arrangement, workload) in enumerate(zip(chosen, wholes, strict=True)):
        record = table.get(workload.key)
        if record is None or record.latency_ms_median is None:
            bad = table.rows(workload.key)[0]
            failed.append(f"{workload.key}: {bad.status}: {bad.reason}")
            continue
        rows.append(
            Row(
                arrangement,
                float(costs.latency_ms[index]),
                record.latency_ms_median,
                float(costs.peak_mb[index]),
                _own_peak(record),
                sum(_own_peak(model.rows[key]) * count for key, count in _parts(model, arrangement).items()),
            )
        )
    return tuple(rows), tuple(failed)


def _own_peak(record: Record) -> float:
    return (record.weights_mb or 0.0) + (record.activation_peak_mb or 0.0)


def _parts(model: CostModel, arrangement: Arrangement) -> Counter[str]:
    """How often each workload is part of a network; workloads without precision, a whole backbone's once."""
    parts = Counter([model.plan.backbone_workload])
    parts.update({part.workload: part.calls for part in model.plan.backbone_rest})
    chosen = arrangement.labels()
    for position in model.plan.positions:
        workloads = {layer.label: layer.workload for layer in position.layers}
        for label in chosen.get(position.name, ()):
            parts[workloads[label]] += position.calls
    return parts


def audit_table(
    space: str | Path,
    device: str | Path | Device,
    table_dir: str | Path,
    *,
    networks: int = 20,
    method: str | None = None,
    limits: Limits | None = None,
    seed: int = 0,
    progress: OnProgress | None = None,
    cache_dir: str | Path | None = None,
) -> tuple[Additivity, Table]:
    """Measure a space's workloads and whole networks in the same rounds, and write all of it into the device's table.

    The rows of this run replace those of the space's workloads, and the header gets the evidence, the fitted correction
    (of ``MIN_NETWORKS`` and more) and the reference workload of the run. The networks themselves have no rows: nothing
    but the evidence needs them.

    Raises:
        ProfileError, TableError: as ``profile`` and ``check_additivity``; rows with a number are in the table even so,
            and no evidence, as the earlier was of other rows.
    """
    target = device if isinstance(device, Device) else Device.load(device)
    folder = Path(cache_dir) if cache_dir is not None else Path(table_dir) / CACHE
    profile(space, target, table_dir, method=method, seed=seed, progress=progress, cache_dir=folder)
    path = table_path(table_dir, target.name, target.runtime)
    table = table_to_go_on_with(target, table_dir, seed)
    before, log = table.header, RunLog()

    def keep(records: Sequence[Record]) -> None:
        parts = [record for record in records if record.ok and not record.key.startswith("network:")]
        table.append(parts)
        table.header = replace(table.header, additivity=None, correction=None)
        drift = (limits or LIMITS).drift
        note_run(table, before, log.summary(drift) or None, [record.primary_key for record in parts])
        table.save(path)

    found = check_additivity(
        space,
        target,
        cache_dir=folder,
        networks=networks,
        method=method,
        limits=limits,
        seed=seed,
        progress=progress,
        log=log,
        keep=keep,
    )
    enough = len(found.rows) >= MIN_NETWORKS
    fitted = {"space": found.space, "rows": found.rows_digest, **found.correction().to_mapping()} if enough else None
    table.header = replace(table.header, additivity=found.evidence(), correction=fitted)
    table.save(path)
    return found, table
