"""Which workloads of a space a table lacks."""

from __future__ import annotations

from dataclasses import dataclass

from latency_tables.table import Table
from search_spaces.plan import Plan


@dataclass(frozen=True)
class Coverage:
    """A space against one table.

    Attributes:
        space, device, runtime: what was compared.
        source: where the rows come from.
        ok: keys with a number.
        failed: key -> ``"oom: reason"`` for workloads that were tried and have none.
        missing: keys without a row.
        command: what measures the missing ones.
        begun: whether the table has a row that is the space's own; a text encoder or a decoder is many spaces'.
    """

    space: str
    device: str
    runtime: str
    source: str
    ok: tuple[str, ...]
    failed: dict[str, str]
    missing: tuple[str, ...]
    command: str
    begun: bool

    @property
    def complete(self) -> bool:
        """Whether every workload has a row, failed ones included: a failure is a result."""
        return not self.missing


def coverage(plan: Plan, table: Table, precision: str | None = None) -> Coverage:
    """Compare the workloads of a plan, the two ends of its model among them, with the rows of a table.

    Args:
        precision: by default the table's; fp32 if it states none.
    """
    precision = precision or table.header.precision or "fp32"
    keys = plan.keys(precision, ends=True)
    ok, failed = [], {}
    for key in keys:
        rows = table.rows(key)
        if any(row.ok for row in rows):
            ok.append(key)
        elif rows:
            failed[key] = f"{rows[0].status}: {rows[0].reason or 'no reason given'}"
    header = table.header
    return Coverage(
        plan.space,
        header.device,
        header.runtime,
        table.source,
        tuple(ok),
        failed,
        table.missing(keys),
        f"nas profile {plan.space} --device {header.device}",
        any(key in table for key in plan.keys(precision)),
    )
