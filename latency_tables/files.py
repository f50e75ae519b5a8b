"""Files that survive a crash and a neighbour: a lock on the folder, and writes that happen whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import os
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from latency_tables.errors import TableError
from latency_tables.terminal import warn

NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)  # of file systems that know no locks
_LOCK = ".table.lock"
_YOUNG = 0.5  # seconds in which who made a temporary file may not have locked it yet


def checksum(data: bytes) -> str:
    """``sha256:`` and 16 hex digits: enough to notice any accident, short enough to read in a diff.

    Line ends count as ``\\n``: a checkout on Windows turns them into ``\\r\\n``, and the table is the same.
    """
    return "sha256:" + hashlib.sha256(unix_lines(data)).hexdigest()[:16]


def unix_lines(data: bytes) -> bytes:
    """The text with ``\\n`` at the end of each line, whatever git or an editor made of it."""
    return data.replace(b"\r\n", b"\n")


def lock(descriptor: int, wait: bool = False) -> bool:
    """Lock an open file for this process alone; False where its file system has no locks of either kind.

    Network file systems may lack ``flock`` (Lustre mounted without it) and still know the locks of POSIX.

    Raises:
        BlockingIOError: if another process holds it and ``wait`` is not set.
    """
    for call in (fcntl.flock, fcntl.lockf):
        try:
            call(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            return True
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise BlockingIOError(error.errno, os.strerror(error.errno)) from None
            if error.errno not in (*NO_LOCKS, errno.EBADF):  # EBADF: POSIX locks no folder
                raise
    return False


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


def write_atomic(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path`` whole: readers and a crash see the old file or the new one, never a part.

    Raises:
        TableError: if the disk is full or the folder cannot be written; the old file is then untouched.
    """
    _sweep(path)
    # A name that nobody can put a link at beforehand, and O_EXCL with O_NOFOLLOW in case somebody did.
    temporary = path.with_name(f".{path.name[:60]}.{secrets.token_hex(8)}.tmp")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666), "wb") as file:
            with contextlib.suppress(OSError):
                lock(file.fileno())  # so that nobody sweeps it away
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise TableError(
            f"{path}: cannot be written ({error.strerror or error}); free space or choose another folder, "
            "what was there is untouched"
        ) from error


def sync_folder(folder: Path) -> None:
    """Make a rename durable: without this a power cut may undo it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(path: Path) -> None:
    """Remove the temporary files that killed writers of ``path`` left; call with the folder's lock held."""
    for left in _left(path):
        with contextlib.suppress(OSError):
            left.unlink()


def _left(path: Path) -> Iterator[Path]:
    return path.parent.glob(f".{glob.escape(path.name[:60])}.*.tmp")


def _sweep(path: Path) -> None:
    """Remove what killed writers left where no lock is held: nothing of the living, nor what may just be begun."""
    for left in _left(path):
        with contextlib.suppress(OSError):
            descriptor = os.open(left, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                if time.time() - os.fstat(descriptor).st_mtime > _YOUNG and lock(descriptor):
                    left.unlink()
            finally:
                os.close(descriptor)


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


def read_bytes(path: Path, limit_mb: float) -> bytes:
    """The file's bytes.

    Raises:
        TableError: if there is no such file, it cannot be read, or it is larger than ``limit_mb``.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(int(limit_mb * 1e6) + 1)
    except OSError as error:
        raise TableError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error
    if len(data) > limit_mb * 1e6:
        raise TableError(f"{path}: larger than {limit_mb:g} MB, so it is none of ours; check the path")
    return data
