"""Files and folders written whole or not at all, under temporary names that nobody can guess or have linked."""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

SUFFIX = ".partial"
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)  # of file systems that know no locks
YOUNG = 0.5  # seconds in which who made a temporary file may not have locked it yet
_NEW = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC


def partial_name(path: Path) -> Path:
    """A name beside ``path`` for what is not whole yet: hidden, new each time, and as short as the file system asks.

    A folder that a stranger sent may hold links under any name that can be guessed.
    """
    return path.with_name(f"{_stem(path)}{secrets.token_hex(8)}{SUFFIX}")


def is_partial(path: Path) -> bool:
    """Whether a name is one of ``partial_name``: left by a process that was killed, and nobody's."""
    return path.name.startswith(".") and path.name.endswith(SUFFIX)


def _stem(path: Path) -> str:
    return f".{path.name[:40]}."


@contextmanager
def blamed(hidden: Path, told: Path) -> Iterator[None]:
    """Have an error of the system's name ``told`` where it is about ``hidden``, which nobody has heard of."""
    try:
        yield
    except OSError as error:
        if str(hidden) in (str(error.filename), str(error.filename2)):
            error.filename, error.filename2 = str(told), None
        raise


@contextmanager
def whole(path: Path) -> Iterator[IO[bytes]]:
    """A new binary file that stands at ``path`` once the block has ended well; otherwise what was there stays.

    A link at ``path`` is replaced, not followed.

    Raises:
        OSError: if the disk is full or the folder cannot be written.
    """
    sweep(path)
    partial = partial_name(path)
    try:
        with blamed(partial, path.parent):
            descriptor = os.open(partial, _NEW, 0o666)
        with os.fdopen(descriptor, "w+b") as file:
            _lock(file.fileno())
            yield file
            file.flush()
            os.fsync(file.fileno())
        with blamed(partial, path):
            os.replace(partial, path)
        sync(path.parent)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


def write_whole(path: Path, data: str | bytes) -> None:
    """A small file, written whole or not at all; text as UTF-8.

    Raises:
        OSError: if the disk is full or the folder cannot be written; what was there is untouched.
    """
    with whole(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


@contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """A new folder beside ``path``, to be filled and moved into its place; what is left of it then goes away."""
    sweep(path)
    partial = partial_name(path)
    with blamed(partial, path.parent):
        partial.mkdir(parents=True)
    descriptor = os.open(partial, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _lock(descriptor)
        yield partial
    finally:
        os.close(descriptor)
        shutil.rmtree(partial, ignore_errors=True)


def sweep(path: Path) -> None:
    """Remove what killed writers of ``path`` left beside it; what a living one holds stays."""
    for left in path.parent.glob(f"{glob.escape(_stem(path))}*{SUFFIX}"):
        with suppress(OSError):
            if left.is_symlink():  # a stranger's: the link goes, what it leads to stays
                left.unlink()
                continue
            descriptor = os.open(left, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                if time.time() - os.fstat(descriptor).st_mtime < YOUNG or not _lock(descriptor):
                    continue
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            finally:
                os.close(descriptor)


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


def sync(path: Path) -> None:
    """Have a file, or a folder's list of files, on the disk itself before going on: a power cut may undo a rename."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # of file systems that cannot sync a folder
            raise
    finally:
        os.close(handle)


def _lock(descriptor: int) -> bool:
    """Whether the lock was to be had; a file system without locks keeps what is left over."""
    try:
        return lock(descriptor)
    except OSError:
        return False
