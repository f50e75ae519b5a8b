"""Files and folders that strangers may have prepared, neighbours may hold and disks may cut short."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from latency_tables.files import tell_unlocked
from nas.errors import NasError, why_full
from search_spaces import reading
from search_spaces.reading import UnreadableError, parse_json, parse_yaml
from search_spaces.writing import blamed, folder_beside, is_partial, lock, partial_name, sweep, sync, whole, write_whole

__all__ = ["append", "disk_is_full", "folder_beside", "held", "is_partial", "only_leftovers", "partial_name"]
__all__ += ["read_json", "read_text", "read_yaml", "sole_writer", "sweep", "sync", "whole", "why_full", "write_whole"]

LOCK = ".lock"
MAX_MB = 256.0  # of a text file: what a year of training logs is not


def disk_is_full(error: BaseException) -> bool:
    """Whether an error says that nothing more can be written: disk, quota or a file's largest size."""
    return why_full(error) is not None


@contextmanager
def held(path: Path, wait: bool = False) -> Iterator[None]:
    """Hold the lock file ``path`` while this lasts; it is made if need be, stays, is never written, and means nothing.

    The lock is the kernel's and ends with the process, whatever ends it. Where the file system has none, that is said.

    Raises:
        NasError: if a link stands there, which could lead anywhere.
        BlockingIOError: if another process holds it and ``wait`` is not set.
    """
    try:
        with blamed(path, path.parent):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise NasError(f"{path}: a link stands where our lock file goes; remove it") from None
        raise
    try:
        if not lock(descriptor, wait):
            tell_unlocked(path.parent)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Keep other processes from writing ``folder`` while this lasts: two would delete each other's unfinished files.

    Raises:
        NasError: if another process writes there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _refused(folder), held(folder / LOCK):
        yield


@contextmanager
def _refused(folder: Path) -> Iterator[None]:
    try:
        yield
    except BlockingIOError:
        raise NasError(
            f"{folder}: another process is writing there; wait for it or end it, or give another --out"
        ) from None


def only_leftovers(folder: Path, but: tuple[str, ...] = ()) -> bool:
    """Whether nothing stands in a folder but ``but`` and what a process of ours leaves when it is killed."""
    return all(part.name in (*but, LOCK) or is_partial(part) for part in folder.iterdir())


def append(path: Path) -> IO[str]:
    """A log to add lines to; a link in its place is refused, as it could lead anywhere."""
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.fdopen(os.open(path, flags, 0o666), "a", encoding="utf-8")
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise NasError(f"{path}: a link stands where our log goes; remove it") from None
        raise


def read_text(path: Path, limit_mb: float = MAX_MB) -> str:
    """A text file.

    Raises:
        NasError: if it cannot be read, is larger than ``limit_mb``, or is no UTF-8.
    """
    try:
        return reading.read_text(path, int(limit_mb * 1e6))
    except UnreadableError as error:
        raise NasError(f"{path}: {error}; check the path") from None


def read_yaml(path: Path) -> Any:
    """The value of a YAML file, within the bounds of ``parse_yaml``.

    Raises:
        NasError: if it cannot be read, or is no such YAML.
    """
    try:
        return parse_yaml(read_text(path, reading.MAX_TEXT / 1e6))
    except UnreadableError as error:
        raise NasError(f"{path}: {error}") from None


def read_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        NasError: if it cannot be read, or is no JSON.
    """
    try:
        return parse_json(read_text(path))
    except UnreadableError as error:
        raise NasError(f"{path}: {error}") from None
