"""The version of a table before the present one: from git, or any other table that is named."""

from __future__ import annotations

import os
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
            data = _content(path.parent, revision, name)
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
    told = git(path.parent, "rev-list", "-n", "20", "--abbrev-commit", "HEAD", "--", path.name)
    revisions = [] if told is None else told.decode().split()
    now = unix_lines(path.read_bytes())
    for revision in revisions:
        then = _content(path.parent, revision, path.name)
        if then is None or unix_lines(then) == now:
            continue
        try:
            return revision, committed(path, revision)
        except TableError:
            return None
    return None


# Settings of a repository name programs that git runs for it, and whoever sent the folder may have written them. The
# commands used here print objects and know no pager, filter or signature; the rest is named, and nothing is fetched.
_QUIET = ("-c", "core.fsmonitor=false", "-c", f"core.hooksPath={os.devnull}", "-c", "protocol.allow=never")
_ALONE = {"GIT_ALLOW_PROTOCOL": "", "GIT_NO_LAZY_FETCH": "1", "GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0"}


def _content(folder: Path, revision: str, name: str) -> bytes | None:
    return None if revision.startswith("-") else git(folder, "cat-file", "blob", f"{revision}:./{name}")


def git(folder: Path, *words: str) -> bytes | None:
    """What git printed, or ``None`` if it is not there or says no; the repository's settings run nothing."""
    command = ["git", *_QUIET, "-C", str(folder), *words]
    alone = {**os.environ, **_ALONE}
    try:
        done = subprocess.run(command, capture_output=True, check=True, timeout=60, stdin=subprocess.DEVNULL, env=alone)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
