"""Which reference latency a row was measured beside: a table grows over several runs, on better and worse days."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from latency_tables.header import Header
from latency_tables.table import Table

PrimaryKey = tuple[str, str, str]
_SEPARATOR = " / "


def with_run(table: Table, run: Mapping[str, Any] | None, measured: Collection[PrimaryKey]) -> dict[str, Any] | None:
    """The header's ``reference`` after a run that measured some of the table's rows.

    The reference of the largest set of rows stays where it is; the runs of other rows stand under ``others``, each with
    its rows.

    Args:
        run: the reference workload's latency and spread in that run; None if it had none.
        measured: primary keys of its rows.
    """
    rows = {record.primary_key for record in table}
    runs = [
        ({name: value for name, value in told.items() if name != "rows"}, (keys - set(measured)) & rows)
        for told, keys in _runs(table.header, rows)
    ]
    runs.append((dict(run) if run else {}, set(measured) & rows))
    held = sorted((one for one in runs if one[1]), key=lambda one: len(one[1]), reverse=True)
    if not held:
        return dict(run) if run else None
    first, *others = held
    named = [{**told, "rows": [_SEPARATOR.join(key) for key in sorted(keys)]} for told, keys in others]
    return {**first[0], **({"others": named} if named else {})} or None


def reference_of(header: Header, primary_key: PrimaryKey) -> Mapping[str, Any]:
    """Latency and spread of the reference workload in the run that measured the row; empty if unknown."""
    wanted = _SEPARATOR.join(primary_key)
    told = header.reference or {}
    return next((run for run in _others(told) if wanted in run.get("rows", ())), told)


def _others(told: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found = told.get("others")
    return [run for run in found if isinstance(run, dict)] if isinstance(found, list) else []


def _runs(header: Header, rows: set[PrimaryKey]) -> list[tuple[Mapping[str, Any], set[PrimaryKey]]]:
    told = header.reference or {}
    others = [(run, {key for key in rows if _SEPARATOR.join(key) in set(run.get("rows", ()))}) for run in _others(told)]
    rest = rows.difference(*(keys for _, keys in others))
    return [({name: value for name, value in told.items() if name != "others"}, rest), *others]
