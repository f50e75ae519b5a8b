"""Which reference latency a row was measured beside: a table grows over several runs, on better and worse days."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from latency_tables.header import Header

PrimaryKey = tuple[str, str, str]
_SEPARATOR = " / "


def with_run(
    header: Header, rows: Iterable[PrimaryKey], run: Mapping[str, Any] | None, measured: Collection[PrimaryKey]
) -> dict[str, Any] | None:
    """The header's ``reference`` after a run that measured some of a table's rows.

    The reference of the largest set of rows stands by itself; those of other rows stand under ``others``, each with its
    rows.

    Args:
        header: as it was before the run. rows: the table's, after it.
        run: the reference workload's latency and spread in that run; None if it had none.
        measured: primary keys of its rows.
    """
    every, new = set(rows), set(measured)
    runs: list[tuple[Mapping[str, Any], set[PrimaryKey]]] = []
    for told, keys in [*((told, keys - new) for told, keys in _runs(header, every)), (run or {}, new & every)]:
        same = next((known for of, known in runs if of == told), None)
        if same is not None:
            same |= keys
        elif keys:
            runs.append((told, set(keys)))
    runs.sort(key=lambda one: len(one[1]), reverse=True)
    others = [{**told, "rows": [_SEPARATOR.join(key) for key in sorted(keys)]} for told, keys in runs[1:]]
    first = runs[0][0] if runs else run or {}
    return {**first, **({"others": others} if others else {})} or None


class References:
    """The reference workload in the run that measured each of a table's rows: call it with a row's primary key.

    The answer is latency and spread; empty if unknown.
    """

    def __init__(self, header: Header) -> None:
        self._first: Mapping[str, Any] = header.reference or {}
        self._others: dict[str, Mapping[str, Any]] = {}
        for run in _others(self._first):
            for row in run.get("rows", ()):
                self._others.setdefault(row, run)

    def __call__(self, primary_key: PrimaryKey) -> Mapping[str, Any]:
        return self._others.get(_SEPARATOR.join(primary_key), self._first)


def _others(told: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found = told.get("others")
    return [run for run in found if isinstance(run, dict)] if isinstance(found, list) else []


def _runs(header: Header, rows: set[PrimaryKey]) -> list[tuple[Mapping[str, Any], set[PrimaryKey]]]:
    told = header.reference or {}
    others = []
    for run in _others(told):
        named = set(run.get("rows", ()))
        kept = {name: value for name, value in run.items() if name != "rows"}
        others.append((kept, {key for key in rows if _SEPARATOR.join(key) in named}))
    rest = rows.difference(*(keys for _, keys in others))
    return [({name: value for name, value in told.items() if name != "others"}, rest), *others]
