"""A table's two files: the CSV and the YAML header that lists its checksum, read and written as a pair."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import time
from pathlib import Path
from typing import Any

from latency_tables.errors import TableError
from latency_tables.files import checksum, read_bytes, unix_lines, write_atomic
from latency_tables.header import Header, dump_header, parse_header, parse_yaml
from latency_tables.record import COLUMNS

CSV_LIMIT_MB, YAML_LIMIT_MB = 64.0, 0.25

Rows = list[dict[str, str]]
Stamp = tuple[int, int, int]


def parse_unsealed(data: bytes, path: Path) -> dict[str, Any]:
    """A header mapping whatever its checksums say.

    Raises:
        TableError: if it is no header.
    """
    try:
        mapping = parse_yaml(data)
        mapping.pop("csv_checksums", None)
        mapping.pop("header_checksum", None)
        return parse_header(dump_header(mapping, ["none"]))[0]
    except TableError as error:
        raise TableError(f"{path.with_suffix('.yaml')}: {error}") from None


def read_rows(data: bytes) -> Rows:
    """The CSV's cells as text, by column.

    Raises:
        TableError: if the bytes are no CSV with our columns first, in order, and every row as wide as the heading.
    """
    try:
        reader = csv.reader(io.StringIO(data.decode("utf-8"), newline=""), strict=True)
        lines = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise TableError(f"no valid CSV ({error}); restore the file") from None
    if not lines or tuple(lines[0][: len(COLUMNS)]) != COLUMNS:
        raise TableError(f"the first line must name the columns {', '.join(COLUMNS[:3])}, ...; restore the file")
    heading = lines[0]
    if len(set(heading)) != len(heading):
        raise TableError("a column stands twice in the heading; keep one")
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(heading):
            raise TableError(f"line {number} has {len(line)} cells, the heading {len(heading)}; restore the line")
    return [dict(zip(heading, line, strict=True)) for line in lines[1:]]


def read_pair(path: Path) -> tuple[dict[str, Any], bytes, str, Stamp | None]:
    """Header mapping, CSV bytes, their checksum and stamp: a pair that belongs together.

    The CSV is read before the header, which lists the CSV that it replaces, so a reader that meets a writer sees a
    whole table; a reader that meets two writes in a row looks again.
    """
    header_path = path.with_suffix(".yaml")
    for attempt in range(20):
        stamp = stamp_of(path)
        if stamp is None:
            raise TableError(f"{path}: no table there; measure one with `nas profile` or check the path")
        data = read_csv(path)
        if not header_path.exists():
            raise TableError(f"{path}: its header {header_path.name} is missing; restore it from git or measure again")
        try:
            mapping, sums = parse_header(read_bytes(header_path, YAML_LIMIT_MB))
        except TableError as error:
            raise TableError(f"{header_path}: {error}") from None
        digest = checksum(data)
        if digest in sums:
            return mapping, data, digest, stamp
        time.sleep(0.001 * attempt)
        if stamp == stamp_of(path):
            break
    raise TableError(
        f"{path}: damaged, cut short or edited (it is not the CSV that {header_path.name} was written for); "
        "restore both files from git, or accept the edit with `python -m latency_tables seal CSV`"
    )


def write_pair(path: Path, header: Header, data: bytes, old: str | None) -> None:
    """Header, CSV, header: at any moment the pair on disk loads; ``old`` is the checksum of the CSV that is there."""
    mapping, new = header.to_mapping(), checksum(data)
    if old != new:
        write_atomic(path.with_suffix(".yaml"), dump_header(mapping, [new] if old is None else [new, old]))
        write_atomic(path, data)
    if old is not None:
        write_atomic(path.with_suffix(".yaml"), dump_header(mapping, [new]))


def check_header_is_ours(path: Path) -> None:
    """A header whose table is gone, or was never written whole, may be replaced; any other file stays.

    Raises:
        TableError: if the file there is no table's header.
    """
    if not os.path.lexists(path):
        return
    try:
        parse_header(read_bytes(path, YAML_LIMIT_MB))
    except TableError:
        raise TableError(
            f"{path}: is there already and is no table's header, which would take its place; give another name"
        ) from None


def keep_line_ends(folder: Path, device: str) -> None:
    """Beside tables that are kept, what tells git to leave their line ends alone; what is there already stays."""
    attributes = folder / ".gitattributes"
    if folder.name == device and not os.path.lexists(attributes):
        with contextlib.suppress(TableError):  # the table is written; this is a help
            write_atomic(attributes, b"*.csv text eol=lf\n*.yaml text eol=lf\n")


def stamp_of(path: Path) -> Stamp | None:
    """What tells one version of the file from the next without reading it; ``None`` if there is no file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def read_csv(path: Path) -> bytes:
    """The CSV's bytes, with our line ends."""
    return unix_lines(read_bytes(path, CSV_LIMIT_MB))
