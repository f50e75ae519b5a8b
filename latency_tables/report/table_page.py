"""A table as a page: what costs how much, what beats what, how sure it is, and what changed since the last version."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from latency_tables.agreement import kendall_tau
from latency_tables.audit import Audit
from latency_tables.coverage import Coverage, coverage
from latency_tables.diff import compare, diff
from latency_tables.record import Record
from latency_tables.report import figures
from latency_tables.report.page import Figure, claim_page, render_page, write_page
from latency_tables.table import Table
from latency_tables.validate import validate
from search_spaces.plan import Plan, list_plans

HERE = Path(__file__).parent

Pair = tuple[str, Record, Record]


def write_table_page(
    path: Path,
    table: Table,
    since: tuple[str, Table] | None = None,
    beside: Table | None = None,
    threshold: float = 0.03,
    overwrite: bool = False,
) -> Path:
    """Write the page of a table to ``path``, one file that opens offline.

    Args:
        since: what to call an earlier version, and that version.
        beside: another device's table, for a figure of both.
        threshold: smallest slowdown since then that counts, as a fraction.

    Raises:
        TableError: if another file than a page of ours is there, unless ``overwrite``.
    """
    claim_page(path, overwrite)
    return write_page(path, render_table(table, since, beside, threshold), overwrite)


def render_table(
    table: Table, since: tuple[str, Table] | None = None, beside: Table | None = None, threshold: float = 0.03
) -> str:
    """The page as text."""
    rows = best_rows(table)
    best = {row.primary_key for row in rows}
    pairs = dimension_pairs(rows)
    drawn: dict[str, Figure] = {
        "cost": figures.cost_figure(rows),
        "memory": figures.memory_figure(rows),
        "dimension": figures.dimension_figure(pairs),
        "placement": figures.placement_figure(rows),
        "spread": figures.spread_figure(rows),
        "networks": figures.networks_figure(list((table.header.additivity or {}).get("samples") or ())),
    }
    shared: list[tuple[Record, Record]] = []
    if beside is not None:
        shared = both(rows, best_rows(beside))
        drawn["beside"] = figures.beside_figure(shared, name(table), name(beside))
    change = None
    if since is not None:
        change = diff(since[1], table, threshold)
        drawn["change"] = figures.change_figure(compare(since[1], table), change.changes, threshold)
    return render_page(
        HERE,
        "table.html.j2",
        {title: figure for title, figure in drawn.items() if figure["data"]},
        {"number": _number},
        title=name(table),
        header=table.header,
        source=table.source,
        audit=Audit.of(table.header, table.source),
        verdict=verdict(rows, pairs),
        tiles=_tiles(table),
        pairs=pairs,
        closest=min(pairs, key=_ratio, default=None),
        widest=max(pairs, key=_ratio, default=None),
        ratio=_ratio,
        shared=shared,
        beside=None if beside is None else name(beside),
        beside_rank=_rank_agreement(shared),
        since=None if since is None else since[0],
        change=change,
        findings=validate(table),
        coverages=covered(table),
        rows=[(row, row.primary_key in best) for row in table],
        facts=_facts(table),
    )


def name(table: Table) -> str:
    return f"{table.header.device}/{table.header.runtime}"


def best_rows(table: Table) -> list[Record]:
    """The row that costs are made of, for each workload that has one."""
    return [row for key in table.keys if (row := table.get(key)) is not None]


def dimension_pairs(rows: Sequence[Record]) -> list[Pair]:
    """(what is compared, 1D row, 3D row): the cheapest of each form of an operator at each shape."""
    cheapest: dict[tuple[str, str, str], Record] = {}
    for row in rows:
        operator, form = row.block[:-2], row.block[-2:]
        if form in ("1D", "3D") and row.latency_ms_median:
            place = (operator, figures.shape(row), form)
            if place not in cheapest or row.latency_ms_median < (cheapest[place].latency_ms_median or 0.0):
                cheapest[place] = row
    found = []
    for (operator, at, form), row in sorted(cheapest.items()):
        other = cheapest.get((operator, at, "3D"))
        if form == "1D" and other is not None:
            below = at.replace("/", " ")
            found.append((f"{operator}<br><span style='font-size:10px'>{below}</span>", row, other))
    return found


def both(ours: Sequence[Record], theirs: Sequence[Record]) -> list[tuple[Record, Record]]:
    """Workloads that both have with a latency, whatever the precision."""
    known = {row.key.rpartition("@")[0]: row for row in theirs if row.latency_ms_median}
    pairs = ((row, known.get(row.key.rpartition("@")[0])) for row in ours if row.latency_ms_median)
    return [(row, other) for row, other in pairs if other is not None]


def covered(table: Table) -> list[Coverage]:
    """How much of each shipped space the table holds, where it holds anything of it."""
    found = (coverage(Plan.load(space), table) for space in list_plans())
    return [entry for entry in found if entry.begun]


def verdict(rows: Sequence[Record], pairs: Sequence[Pair]) -> str:
    """Two sentences: the range of costs, and what the third dimension costs."""
    blocks = [row for row in rows if row.block in figures.COLOURS and row.latency_ms_median]
    if not blocks:
        return "The table has no row of a temporal block with a number."
    low = min(blocks, key=lambda row: row.latency_ms_median or 0.0)
    high = max(blocks, key=lambda row: row.latency_ms_median or 0.0)
    told = (
        f"One temporal block costs from {_number(low.latency_ms_median)} ms ({figures.label(low)} at "
        f"{figures.shape(low)}) to {_number(high.latency_ms_median)} ms ({figures.label(high)} at "
        f"{figures.shape(high)})."
    )
    if pairs:
        ahead = sum(_ratio(pair) > 1.0 for pair in pairs)
        told += f" The 1D form is the faster one in {ahead} of {len(pairs)} pairs."
    return told


def _ratio(pair: Pair) -> float:
    _, one, three = pair
    return (three.latency_ms_median or 0.0) / (one.latency_ms_median or 1.0)


def _rank_agreement(pairs: Sequence[tuple[Record, Record]]) -> float | None:
    """Kendall's tau between two devices' latencies."""
    if len(pairs) < 3:
        return None
    here, there = ([row.latency_ms_median or 0.0 for row in rows] for rows in zip(*pairs, strict=True))
    tau = kendall_tau(here, there)
    return tau if np.isfinite(tau) else None


def _tiles(table: Table) -> list[tuple[str, str, str]]:
    """(name, value, note) of the numbers to look at first."""
    good = sum(row.ok for row in table)
    audit = Audit.of(table.header, table.source)
    tiles = [("Workloads", f"{len(best_rows(table))}", f"{good} of {len(table)} rows have a number")]
    tiles.append(
        ("Source", table.source.partition(":")[0] or "empty", f"{table.header.chip}, {table.header.precision}")
    )
    if audit.mape is None:
        tiles.append(("Error on networks", "unknown", "no whole networks measured"))
    else:
        tiles.append(("Error on networks", f"{audit.mape:.1%}", f"mean of {audit.networks} whole networks"))
    reference = table.header.reference or {}
    spread = reference.get("spread")
    if isinstance(spread, int | float):
        tiles.append(("Machine", f"{spread:.1%}", "spread of the reference workload through the run"))
    else:
        tiles.append(("Updated", table.header.updated or "unknown", "no reference workload"))
    return tiles


def _facts(table: Table) -> list[tuple[str, str]]:
    mapping = table.header.to_mapping()
    plain = [(key.replace("_", " "), str(value)) for key, value in mapping.items() if not isinstance(value, dict)]
    nested = [
        (key, ", ".join(f"{inner.replace('_', ' ')} {value}" for inner, value in entry.items() if inner != "samples"))
        for key, entry in mapping.items()
        if isinstance(entry, dict)
    ]
    return plain + nested


def _number(value: Any) -> str:
    """Three digits that count; ``-`` for what is unknown."""
    if value is None:
        return "-"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
