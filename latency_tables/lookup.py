"""Which table is meant: a path, a device, or ``device/runtime``, in a folder of tables or among the shipped ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from latency_tables.errors import TableError
from latency_tables.table import PACKAGED, Table

DEFAULT = Path("tables")


def table_paths(folder: str | Path) -> Iterator[Path]:
    """Every ``<device>/<runtime>.csv`` in a folder of tables, sorted."""
    yield from sorted(path for path in Path(folder).glob("*/*.csv") if path.is_file())


def known_tables(folder: str | Path = DEFAULT) -> dict[str, Path]:
    """``device/runtime`` -> path: those of ``folder``, then the shipped ones that it does not hold."""
    found: dict[str, Path] = {}
    for root in (Path(folder), PACKAGED):
        for path in table_paths(root):
            found.setdefault(f"{path.parent.name}/{path.stem}", path)
    return found


def find_table(name: str | Path, folder: str | Path = DEFAULT) -> Path:
    """The path of a table by path, by device if it has one runtime, or by ``device/runtime``.

    Raises:
        TableError: naming the tables there are.
    """
    path = Path(name)
    if path.suffix == ".csv" or path.is_file():
        return path
    known = known_tables(folder)
    matches = [key for key in known if key == str(name) or key.partition("/")[0] == str(name)]
    if len(matches) == 1:
        return known[matches[0]]
    if matches:
        raise TableError(f"{name} has several tables; name one of {', '.join(matches)}")
    raise TableError(
        f"no table {str(name)!r} in {folder} or among the shipped ones; known: {', '.join(known) or 'none'}, "
        "or give the path of a CSV"
    )


def load_table(name: str | Path, folder: str | Path = DEFAULT) -> Table:
    """``Table.load`` of ``find_table``."""
    return Table.load(find_table(name, folder))
