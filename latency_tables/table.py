"""All rows of one device and runtime: a sorted CSV for git, its YAML header, and saves that lose nothing."""

from __future__ import annotations

import csv
import dataclasses
import datetime
import io
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latency_tables.errors import TableError
from latency_tables.files import checksum, locked, read_bytes
from latency_tables.header import SCHEMA, Header
from latency_tables.pair import (
    YAML_LIMIT_MB,
    Rows,
    Stamp,
    check_header_is_ours,
    keep_line_ends,
    parse_unsealed,
    read_csv,
    read_pair,
    read_rows,
    stamp_of,
    write_pair,
)
from latency_tables.record import COLUMNS, METHODS, SOURCES, Record

if TYPE_CHECKING:
    import pandas

PACKAGED = Path(__file__).parent / "tables"
_BELIEF = ("measured", "imported", "estimated")  # from the most to the least

PrimaryKey = tuple[str, str, str]
# From an older schema to the next: ``MIGRATIONS[1]`` turns the header and rows of schema 1 into those of schema 2.
MIGRATIONS: dict[int, Callable[[dict[str, Any], Rows], tuple[dict[str, Any], Rows]]] = {}


def table_path(folder: str | Path, device: str, runtime: str) -> Path:
    """``folder/<device>/<runtime>.csv``: where a device's table lies."""
    return Path(folder) / device / f"{runtime}.csv"


class Table:
    """The rows of one device and runtime, each primary key (key, lowering, method) once.

    A table remembers the state it was loaded or last saved in: ``save`` adds what changed since then to what is on
    disk, under a lock, so that two writers of one table lose no row.

    Args:
        header: what all rows share.
        records: any order; a primary key may stand once.

    Raises:
        TableError: on a primary key that stands twice, or a row of another precision than the header's.
    """

    def __init__(self, header: Header, records: Iterable[Record] = ()) -> None:
        self.header = header
        self._rows: dict[PrimaryKey, Record] = {}
        self._by_key: dict[str, dict[PrimaryKey, Record]] = {}  # the same rows by workload: a look-up sorts a few
        for record in records:
            if record.primary_key in self._rows:
                raise TableError(
                    f"{' / '.join(record.primary_key)}: stands twice; keep one row of each key, lowering and method"
                )
            self._put(record)
        self._base: _Base | None = None

    def _put(self, record: Record) -> None:
        if self.header.precision and record.precision != self.header.precision:
            raise TableError(
                f"{record.key}: a {record.precision} row does not belong in a table of {self.header.precision}; "
                "measure it with a device of its own"
            )
        self._rows[record.primary_key] = record
        self._by_key.setdefault(record.key, {})[record.primary_key] = record

    def _hold(self, rows: Mapping[PrimaryKey, Record]) -> None:
        """Exactly these rows from now on."""
        self._rows, self._by_key = {}, {}
        for record in rows.values():
            self._put(record)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __contains__(self, key: object) -> bool:
        return key in self._by_key

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Table) and self.header == other.header and self._rows == other._rows

    __hash__ = None  # type: ignore[assignment]  # it changes as rows arrive

    def __repr__(self) -> str:
        return f"Table({self.header.device}/{self.header.runtime}, {len(self)} rows, {self.source or 'empty'})"

    @property
    def records(self) -> tuple[Record, ...]:
        """All rows, sorted by primary key."""
        return tuple(self._rows[key] for key in sorted(self._rows))

    @property
    def keys(self) -> tuple[str, ...]:
        """The distinct workload keys, sorted."""
        return tuple(sorted(self._by_key))

    @property
    def sources(self) -> dict[str, int]:
        """How many rows are measured, estimated and imported; sources without rows are left out."""
        counts = Counter(record.source for record in self._rows.values())
        return {source: counts[source] for source in SOURCES if counts[source]}

    @property
    def source(self) -> str:
        """``measured``, ``estimated``, ``imported``, or ``mixed: 10 measured, 3 estimated``; empty without rows."""
        return describe_sources(self.sources)

    def rows(self, key: str) -> tuple[Record, ...]:
        """Every row of the workload, failed ones included, sorted by lowering and method."""
        found = self._by_key.get(key, {})
        return tuple(found[row] for row in sorted(found))

    def get(self, key: str, method: str | None = None, lowering: str | None = None) -> Record | None:
        """The fastest ok row of the workload, or ``None`` if there is none.

        A measurement wins over an imported row, and that over an estimate. Without ``method`` the one nearest to a
        whole network wins: in_context over slope over alone. ``rows`` has the failed ones and their reasons.
        """
        found = [
            record
            for record in self.rows(key)
            if record.ok and method in (None, record.method) and lowering in (None, record.lowering)
        ]
        return min(found, key=_preference, default=None)

    def append(self, records: Record | Iterable[Record]) -> Table:
        """Add rows in place, a new row replacing the one of the same primary key; returns this table."""
        for record in (records,) if isinstance(records, Record) else tuple(records):
            self._put(record)
        return self

    def remove(self, primary_keys: Iterable[PrimaryKey]) -> Table:
        """Take rows out in place; ``save`` then takes them off the disk too. Returns this table."""
        for primary_key in tuple(primary_keys):
            if self._rows.pop(primary_key, None) is not None:
                rows = self._by_key[primary_key[0]]
                del rows[primary_key]
                if not rows:
                    del self._by_key[primary_key[0]]
        return self

    def missing(self, keys: Iterable[str], retry: Collection[str] = ()) -> tuple[str, ...]:
        """The keys without a row, in the given order. A failure is a result: it counts as a row.

        Args:
            keys: workload keys with precision.
            retry: statuses to count as missing where a workload has no ok row, such as ``("unstable",)``.
        """
        settled = {record.key for record in self._rows.values() if record.status not in retry}
        return tuple(key for key in dict.fromkeys(keys) if key not in settled)

    def merge(self, other: Table, prefer: str = "better") -> Table:
        """A new table with the rows of both; neither is changed.

        Where both have a primary key, ``prefer`` decides: ``ours``, ``theirs``, ``error``, or ``better``: an ok row
        over a failed one; then measured over imported over estimated; then more runs; then the smaller spread; then the
        lower latency. ``better`` gives the same rows whichever table is asked.

        Raises:
            TableError: if the headers differ in what was measured, or on a conflict with ``prefer="error"``.
        """
        if prefer not in ("better", "ours", "theirs", "error"):
            raise TableError(f"merge: prefer is {prefer!r}; use better, ours, theirs or error")
        check_identity(self.header, other.header, "merge")
        merged = Table(self.header)
        merged._hold(self._rows)
        for key, theirs in other._rows.items():
            ours = merged._rows.get(key)
            if ours is None or ours == theirs or prefer == "theirs":
                merged._put(theirs)
            elif prefer == "error":
                raise TableError(
                    f"{' / '.join(key)}: {_brief(ours)} here and {_brief(theirs)} there; "
                    "choose with --prefer better, ours or theirs"
                )
            elif prefer == "better":
                merged._put(min(ours, theirs, key=_worth))
        changed = merged._rows != self._rows
        merged.header = (
            self.header
            if not changed
            else _without_stale_evidence(self.header, other.header, other._rows == merged._rows)
        )
        return merged

    def frame(self) -> pandas.DataFrame:
        """The rows as a pandas frame, unknown as missing values, extra columns last."""
        import pandas

        extra = self._extra_columns()
        rows = [
            [getattr(record, name) for name in COLUMNS] + [dict(record.extra).get(name) for name in extra]
            for record in self
        ]
        return pandas.DataFrame(rows, columns=[*COLUMNS, *extra])

    def _extra_columns(self) -> tuple[str, ...]:
        return tuple(sorted({name for record in self._rows.values() for name, _ in record.extra}))

    def to_csv(self) -> bytes:
        """The CSV bytes: sorted by primary key, fixed rounding, ``\\n`` line ends."""
        extra = self._extra_columns()
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow((*COLUMNS, *extra))
        writer.writerows(record.to_row(extra) for record in self.records)
        return buffer.getvalue().encode()

    @classmethod
    def load(cls, csv_path: str | Path) -> Table:
        """Read the table at ``csv_path`` and its header beside it (``.yaml``), whole or not at all.

        Raises:
            TableError: if a file is missing, damaged, cut short, edited without being sealed, or of a newer schema.
        """
        path = Path(csv_path)
        mapping, data, digest, stamp = read_pair(path)
        try:
            table = cls(*_decode(mapping, data))
        except TableError as error:
            raise TableError(f"{path}: {error}") from None
        table._base = _Base(path.absolute(), table.header, dict(table._rows), digest, stamp)
        return table

    def save(self, csv_path: str | Path, replace: bool = False) -> Path:
        """Write CSV and header. What other writers added meanwhile stays; where both changed a row, this one wins.

        At any moment, and after ``kill -9``, the pair on disk loads: the header first lists the checksums of the old
        and the new CSV, then the CSV is swapped, then the header lists the new one alone. Nothing is written if nothing
        changed. ``updated`` becomes today's date (UTC).

        Args:
            csv_path: where; folders are made.
            replace: put exactly these rows there, whatever is there now.

        Raises:
            TableError: if the file there is damaged or of another device, runtime or version, or cannot be written;
                if the file beside it is no table's header.
        """
        path = Path(csv_path).absolute()
        if path.suffix != ".csv":
            raise TableError(f"{csv_path}: a table's name ends in .csv; its header stands beside it in a .yaml")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TableError(
                f"{path.parent}: cannot be made ({error.strerror or error}); choose another folder"
            ) from error
        with locked(path.parent):
            base = self._base if self._base is not None and self._base.path == path else None
            stamp = stamp_of(path)
            if stamp is None:
                check_header_is_ours(path.with_suffix(".yaml"))
            if stamp is not None and not replace and (base is None or base.stamp != stamp):
                disk = Table.load(path)
                check_identity(disk.header, self.header, str(path))
                self._adopt(disk, base)
                base = disk._base
            old = None if stamp is None else (base.digest if base and base.stamp == stamp else checksum(read_csv(path)))
            data = self.to_csv()
            if (
                base is not None
                and base.stamp == stamp
                and base.header == self.header
                and base.digest == checksum(data)
            ):
                self._base = base
                return path
            today = datetime.datetime.now(datetime.UTC).date().isoformat()
            self.header = dataclasses.replace(self.header, updated=today, created=self.header.created or today)
            write_pair(path, self.header, data, old)
            keep_line_ends(path.parent, self.header.device)
            self._base = _Base(path, self.header, dict(self._rows), checksum(data), stamp_of(path))
        return path

    def _adopt(self, disk: Table, base: _Base | None) -> None:
        """Take over what is on disk, apart from what changed here since ``base``."""
        before = base.rows if base else {}
        rows = dict(disk._rows)
        for key in before.keys() - self._rows.keys():
            rows.pop(key, None)
        for key, record in self._rows.items():
            if before.get(key) != record:
                rows[key] = record
        self.header = self.header.over(disk.header, base.header if base else None)
        self._hold(rows)


@dataclasses.dataclass(frozen=True)
class _Base:
    """A table as it was on disk when it was last read or written here."""

    path: Path
    header: Header
    rows: dict[PrimaryKey, Record]
    digest: str
    stamp: Stamp | None


def describe_sources(sources: dict[str, int]) -> str:
    """``measured``, or ``mixed: 10 measured, 3 estimated``: what stands beside every number made from the rows."""
    if len(sources) <= 1:
        return next(iter(sources), "")
    return "mixed: " + ", ".join(f"{count} {source}" for source, count in sources.items())


def check_identity(ours: Header, theirs: Header, what: str) -> None:
    """Refuse to mix rows of two devices, runtimes or versions.

    Raises:
        TableError: naming what differs.
    """
    differing = ours.conflicts(theirs)
    if differing:
        raise TableError(f"{what}: rows of {'; '.join(differing)} do not mix; keep them in folders of their own")


def seal(csv_path: str | Path) -> Table:
    """Accept a hand-edited pair: read both files without their checksums, then write them back in canonical form.

    Raises:
        TableError: if a row or the header is not valid.
    """
    path = Path(csv_path)
    mapping = parse_unsealed(read_bytes(path.with_suffix(".yaml"), YAML_LIMIT_MB), path)
    try:
        table = Table(*_decode(mapping, read_csv(path)))
    except TableError as error:
        raise TableError(f"{path}: {error}") from None
    table.save(path, replace=True)
    return table


def _decode(mapping: dict[str, Any], data: bytes) -> tuple[Header, list[Record]]:
    rows = read_rows(data)
    schema = mapping["schema"]
    while schema < SCHEMA:
        mapping, rows = MIGRATIONS[schema](mapping, rows)
        schema += 1
    return Header.from_mapping({**mapping, "schema": SCHEMA}), [Record.from_row(row) for row in rows]


def _preference(record: Record) -> tuple[int, int, float, float, str]:
    memory = record.activation_peak_mb
    return (
        _BELIEF.index(record.source),
        -METHODS.index(record.method),
        record.latency_ms_median or 0.0,
        float("inf") if memory is None else memory,
        record.lowering,
    )


def _worth(record: Record) -> tuple[Any, ...]:
    """Smaller is the better row; ends with the cells, so that no two rows tie."""
    spread = record.latency_iqr_ratio
    return (
        not record.ok,
        _BELIEF.index(record.source),
        -(record.runs or 0),
        float("inf") if spread is None else spread,
        record.latency_ms_median or 0.0,
        record.to_row(),
    )


def _brief(record: Record) -> str:
    return f"{record.latency_ms_median} ms ({record.source})" if record.ok else record.status


def _without_stale_evidence(ours: Header, theirs: Header, took_theirs: bool) -> Header:
    """Evidence from whole networks belongs to the rows it was made with: keep it only where those are the rows."""
    if took_theirs:
        return dataclasses.replace(
            theirs, **{name: getattr(ours, name) or getattr(theirs, name) for name in ("notes", "created")}
        )
    return dataclasses.replace(ours, additivity=None, correction=None)
