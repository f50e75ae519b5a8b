"""Files that survive a crash and a neighbour: a lock on the folder, and writes that happen whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from latency_tables.errors import TableError
from latency_tables.terminal import warn
from search_spaces import reading
from search_spaces.reading import UnreadableError
from search_spaces.writing import lock, write_whole

_LOCK = ".table.lock"


def checksum(data: bytes) -> str:
    """``sha256:`` and 16 hex digits: enough to notice any accident, short enough to read in a diff.

    Line ends count as ``\\n``: a checkout on Windows turns them into ``\\r\\n``, and the table is the same.
    """
    return "sha256:" + hashlib.sha256(unix_lines(data)).hexdigest()[:16]


def unix_lines(data: bytes) -> bytes:
    """The text with ``\\n`` at the end of each line, whatever git or an editor made of it."""
    return data.replace(b"\r\n", b"\n")


_told: set[str] = set()


def tell_unlocked(folder: Path) -> None:
    """Say, once a folder, that nothing keeps other processes from writing there."""
    if str(folder) not in _told:
        _told.add(str(folder))
        warn(f"{folder}: this file system has no locks; let one process at a time write there")


@contextlib.contextmanager
def locked(folder: Path, timeout_s: float = 60.0) -> Iterator[None]:
    """Hold the folder's lock, so that one process at a time rewrites the tables in it.

    The lock is on the folder itself: it leaves no file behind and ends with the process, even with ``kill -9``. Where
    the file system has no such locks, a file stands for it, which a killed process leaves behind.

    Raises:
        TableError: if another process holds it for longer than ``timeout_s``, or the folder cannot be opened.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise TableError(f"{folder}: cannot be opened ({error.strerror or error}); check the path") from None
    deadline = time.monotonic() + timeout_s
    marker: Path | None = None
    try:
        while True:
            try:
                if not lock(descriptor):
                    marker = _marked(folder / _LOCK, deadline)
                break
            except BlockingIOError:
                _wait(deadline, f"{folder}: another process has held this folder for {timeout_s:.0f} s; end it")
        yield
    finally:
        os.close(descriptor)
        if marker is not None:
            marker.unlink(missing_ok=True)


def _marked(path: Path, deadline: float) -> Path:
    """Make the file that stands for a lock; it must not be there yet."""
    while True:
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
            return path
        except FileExistsError:
            _wait(deadline, f"{path}: another process holds this folder, or left its lock; end it or remove the file")
        except OSError as error:
            raise TableError(f"{path}: cannot be made ({error.strerror or error}); choose another folder") from None


def _wait(deadline: float, message: str) -> None:
    if time.monotonic() > deadline:
        raise TableError(f"{message}, then run again")
    time.sleep(0.002)


def begins_with(path: Path, marks: tuple[bytes, ...], within: int = 4096) -> bool:
    """Whether a plain file, no link, holds one of the marks in its first bytes.

    Raises:
        OSError: if it cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return False
        head = file.read(within)
    return any(mark in head for mark in marks)


def write_atomic(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path`` whole: readers and a crash see the old file or the new one, never a part.

    Raises:
        TableError: if the disk is full or the folder cannot be written; the old file is then untouched.
    """
    try:
        write_whole(path, data)
    except OSError as error:
        raise TableError(
            f"{path}: cannot be written ({error.strerror or error}); free space or choose another folder, "
            "what was there is untouched"
        ) from error


def read_bytes(path: Path, limit_mb: float) -> bytes:
    """The file's bytes.

    Raises:
        TableError: if there is no such file, it cannot be read, or it is larger than ``limit_mb``.
    """
    try:
        return reading.read_bytes(path, int(limit_mb * 1e6))
    except UnreadableError as error:
        raise TableError(f"{path}: {error}; check the path") from None
