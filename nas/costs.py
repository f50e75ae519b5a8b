"""Costs for the search: profile what a device's table lacks, and cost arrangements from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latency_tables.cost import CostModel
from latency_tables.plan import Plan as TablePlan
from latency_tables.table import Table, table_path
from nas.console import Report, progress, say
from nas.errors import NasError
from search_spaces.plan import Plan
from search_spaces.space import Space

if TYPE_CHECKING:
    from device_profiler.device import Device
    from device_profiler.measure import Progress
    from latency_tables.record import Record


def profile_space(
    space: str,
    device: str,
    table_dir: Path,
    *,
    retry: bool = False,
    scheduler: str | None = None,
    lowerings: Sequence[str] = (),
    spatial: bool = False,
) -> dict[str, Any]:
    """Measure what the device's table lacks for the space, and sum up what the table holds.

    With a ``scheduler`` all its workers that own the device measure together. With ``spatial`` the backbone's parts
    are measured too.

    Returns:
        Path and source of the table, its rows, how many of them are new, how many have no number, and why; and each
        part's latency, where parts were asked for.
    """
    from device_profiler.device import Device
    from device_profiler.fleet import profile_fleet
    from device_profiler.profile import profile

    target = Device.load(device)
    loaded = Space.load(space)
    parts = loaded.spatial_workloads(target.precision) if spatial else ()
    keys = {row.key for row in (*loaded.workloads(target.precision), *loaded.ends(target.precision), *parts)}
    before = _rows(target, table_dir)
    with _told() as tell:
        if scheduler is not None:
            table = profile_fleet(
                space,
                target,
                table_dir,
                scheduler,
                spatial=spatial,
                lowerings=lowerings,
                retry=retry,
                progress=tell,
            )
        else:
            table = profile(space, target, table_dir, spatial=spatial, lowerings=lowerings, retry=retry, progress=tell)
    summary = _summary(target, table_dir, table, keys, before)
    if parts:
        rows = {part.name.partition(".")[2]: table.get(part.key) for part in parts}
        whole = table.get(loaded.backbone_workload(target.precision).key)
        summary["spatial"] = {name: row.latency_ms_median if row else None for name, row in rows.items()}
        summary["backbone_ms"] = whole.latency_ms_median if whole else None
    return summary


def render_parts(parts: Mapping[str, float | None], whole: float | None) -> str:
    """The backbone's parts with their latencies, their shares of the sum as bars, and the sum beside the whole."""
    known = {name: value for name, value in parts.items() if value is not None}
    total = sum(known.values())
    lines = []
    for name, value in parts.items():
        if value is None:
            lines.append(f"{name:<18} {'no number':>10}")
        else:
            lines.append(f"{name:<18} {value:>10.3f} ms {value / total:>5.0%} {'#' * round(40 * value / total)}")
    beside = f"; the backbone whole {whole:.3f} ms" if whole is not None else ""
    return "\n".join([*lines, f"{'sum':<18} {total:>10.3f} ms{beside}"])


def profile_operator(
    block: str, shape: str, device: str, table_dir: Path, *, retry: bool = False, lowerings: Sequence[str] = ()
) -> dict[str, Any]:
    """Measure one block at any shape; the summary of ``profile_space`` with its latency and peak."""
    from device_profiler.device import Device
    from device_profiler.profile import profile_operator as measure_operator

    target = Device.load(device)
    before = _rows(target, table_dir)
    with _told() as tell:
        table, workload = measure_operator(
            block, shape, target, table_dir, lowerings=lowerings, retry=retry, progress=tell
        )
    row = table.get(workload.key)
    known = row is not None and row.weights_mb is not None and row.activation_peak_mb is not None
    return {
        **_summary(target, table_dir, table, {workload.key}, before),
        "key": workload.key,
        "lowering": row.lowering if row else None,
        "latency_ms": row.latency_ms_median if row else None,
        "peak_mb": row.weights_mb + row.activation_peak_mb if row and known else None,  # type: ignore[operator]
    }


def audit_space(space: str, device: str, table_dir: Path, networks: int) -> dict[str, Any]:
    """Measure whole networks beside a space's workloads; the table's header gets the evidence and a correction.

    Raises:
        NasError: on fewer than two networks.
    """
    from device_profiler.additivity import audit_table
    from device_profiler.device import Device

    if networks < 2:
        raise NasError(f"--networks must be 2 or more, but is {networks}; 20 is a good number")
    target = Device.load(device)
    with _told() as tell:
        found, table = audit_table(space, target, table_dir, networks=networks, progress=tell)
    evidence, fit = found.evidence(), table.header.correction
    path = table_path(table_dir, target.name, target.runtime)
    message = (
        f"{path}: sums of rows against {evidence['networks']} whole networks: off by {found.mape:.1%} on average, "
        f"{found.worst:.1%} at worst, Kendall tau {found.kendall_tau:.3f}, peak memory off by {found.peak_mape:.1%}"
    )
    if fit is not None:
        message += (
            f"\ncorrection: {fit['form']} (error {fit['mape']:.1%} on networks left out, {fit['bare_mape']:.1%} bare); "
            f"90% of networks lie within {fit['interval']:.1%} of the prediction"
        )
    return {"table": str(path), "additivity": evidence, "correction": fit, "message": message}


@contextmanager
def _told() -> Iterator[Callable[[Progress], None]]:
    """Lowering and timing as two reports, one after the other."""
    with ExitStack() as bars:
        reports: dict[str, Report] = {}

        def tell(event: Progress) -> None:
            title = "lower" if event.stage == "lower" else "measure"
            if title not in reports:
                reports[title] = bars.enter_context(progress(title))
            reports[title](event.done, event.total, event.key or event.detail)

        yield tell


def _rows(device: Device, table_dir: Path) -> dict[tuple[str, str, str], Record]:
    path = table_path(table_dir, device.name, device.runtime)
    return {row.primary_key: row for row in Table.load(path)} if path.exists() else {}


def _summary(
    device: Device, table_dir: Path, table: Table, keys: set[str], before: dict[tuple[str, str, str], Record]
) -> dict[str, Any]:
    rows = [row for row in table if row.key in keys]
    bad = [row for row in rows if not row.ok]
    for row in bad:
        say(f"  {row.key}: {row.status}: {row.reason}")
    return {
        "table": str(table_path(table_dir, device.name, device.runtime)),
        "source": table.source,
        "rows": len(rows),
        "new": sum(before.get(row.primary_key) != row for row in rows),
        "not_ok": len(bad),
        "statuses": dict(Counter(row.status for row in rows)),
        "reference": table.header.reference,
    }


def load_table(device: Device, table_dir: Path) -> Table:
    """The device's table in ``table_dir``.

    Raises:
        TableError: if there is none, or it is damaged.
    """
    return Table.load(table_path(table_dir, device.name, device.runtime))


def cost_model(space: Space, table: Table, *, allow_mixed: bool = False) -> CostModel:
    """Costs of every arrangement of the space by the table's rows; measured and estimated ones mix on request only."""
    return CostModel(TablePlan.from_json(Plan.load(space).to_json()), table, allow_mixed=allow_mixed)
