"""The version of a table before the present one: from git, or any other table that is named."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from latency_tables.errors import TableError
from latency_tables.files import unix_lines
from latency_tables.table import Table


def committed(path: Path, revision: str) -> Table:
    """The table at ``path`` as ``revision`` of its repository has it.

    Raises:
        TableError: if git, the repository, the revision or the table in it is not there, or the table is damaged.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        for name in (path.name, path.with_suffix(".yaml").name):
            data = _git(path.parent, "show", f"{revision}:./{name}")
            if data is None:
                raise TableError(f"git has no {name} of {path.parent} at {revision!r}; name a revision that has it")
            (copy.parent / name).write_bytes(data)
        try:
            return Table.load(copy)
        except TableError as error:
            reason = str(error).removeprefix(f"{copy}: ")
            raise TableError(f"{path} at {revision}: {reason}") from None


def previous(path: Path) -> tuple[str, Table] | None:
    """The last committed version that has other rows than the file: its revision and its table.

    ``None`` where there is none: no git, no repository, never committed, never changed, or not readable.
    """
    told = _git(path.parent, "log", "-n", "20", "--format=%h", "--", path.name)
    revisions = [] if told is None else told.decode().split()
    now = unix_lines(path.read_bytes())
    for revision in revisions:
        then = _git(path.parent, "show", f"{revision}:./{path.name}")
        if then is None or unix_lines(then) == now:
            continue
        try:
            return revision, committed(path, revision)
        except TableError:
            return None
    return None


def _git(folder: Path, *words: str) -> bytes | None:
    """What git printed, or ``None`` if it is not there or says no."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
