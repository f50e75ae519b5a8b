"""Costs for the search: profile what a device's table lacks, and cost arrangements from it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latency_tables.cost import CostModel
from latency_tables.plan import Plan as TablePlan
from latency_tables.table import Table, table_path
from nas.console import progress, say
from search_spaces.plan import Plan
from search_spaces.space import Space

if TYPE_CHECKING:
    from device_profiler.device import Device


def profile_space(space: str, device: str, table_dir: Path, *, retry: bool = False) -> dict[str, Any]:
    """Measure what the device's table lacks for the space, and sum up what the table holds.

    Returns:
        Path and source of the table, its rows, how many were measured now, how many have no number, and why.
    """
    from device_profiler.device import Device
    from device_profiler.profile import profile

    target = Device.load(device)
    path = table_path(table_dir, target.name, target.runtime)
    before = {row.primary_key: row for row in Table.load(path)} if path.exists() else {}
    with progress("profile") as report:
        table = profile(
            space,
            target,
            table_dir,
            retry=retry,
            progress=lambda p: report(p.done, p.total, f"{p.stage} {p.key} {p.detail}".strip()),
        )
    keys = {workload.key for workload in Space.load(space).workloads(target.precision)}
    rows = [row for row in table if row.key in keys]
    bad = [row for row in rows if not row.ok]
    for row in bad:
        say(f"  {row.key}: {row.status}: {row.reason}")
    return {
        "table": str(path),
        "source": table.source,
        "rows": len(rows),
        "measured": sum(before.get(row.primary_key) != row for row in table),
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


def cost_model(space: Space, table: Table, *, allow_estimated: bool = True) -> CostModel:
    """Costs of every arrangement of the space by the table's rows."""
    return CostModel(TablePlan.from_json(Plan.load(space).to_json()), table, allow_mixed=allow_estimated)
