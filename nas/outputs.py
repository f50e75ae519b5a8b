"""What a command leaves for people: known to be ours before it is replaced, written whole beside, then swapped in."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from latency_tables.files import tell_unlocked
from nas.errors import NasError, why_full
from nas.files import folder_beside, only_leftovers, sync
from search_spaces.writing import blamed, lock

MADE_BY = "temporal-nas"  # the line that our videos and pictures carry
OLD = ".old"  # of a folder that is being replaced where two cannot be exchanged
_AT_FDCWD, _EXCHANGE, _SWAP = -100, 2, 2  # of renameat2 (Linux) and renamex_np (macOS)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which stands at ``out`` once the block has ended well; otherwise what was there stays.

    The two are exchanged at one stroke: a process killed at any moment leaves the old folder or the new one, whole.
    What the block did not make of the old folder goes on in the new one.

    Raises:
        NasError: if another process writes there, or the disk is full.
    """
    with sole_writer_of(out):
        restore(out)
        try:
            with folder_beside(out) as partial:
                yield partial
                keep_rest(out, partial)
                for file in partial.rglob("*"):
                    if file.is_file():
                        sync(file)
                put_folder(partial, out)
                sync(out.parent)
        except Exception as error:
            full = why_full(error)
            if full is None:
                raise
            raise NasError(f"{out}: {full[0]}; {full[1]} and run the same command again") from error


@contextmanager
def sole_writer_of(out: Path) -> Iterator[None]:
    """Keep other processes from replacing ``out`` while this lasts. The lock lies beside it, as ``out`` is exchanged.

    Raises:
        NasError: if another process writes there.
    """
    path = out.with_name(f".{out.name[:40]}.lock.partial")  # swept as a leftover, where nobody holds it
    out.parent.mkdir(parents=True, exist_ok=True)
    with blamed(path, out.parent):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    ours = False
    try:
        try:
            if not lock(descriptor):
                tell_unlocked(out.parent)
            ours = os.path.samestat(os.fstat(descriptor), os.stat(path))
        except (BlockingIOError, FileNotFoundError):
            ours = False
        if not ours:
            raise NasError(f"{out}: another process is writing there; wait for it or end it, or give another --out")
        yield
    finally:
        try:
            if ours:
                with suppress(OSError):
                    path.unlink()
        finally:
            os.close(descriptor)


def check_replaceable(out: Path, is_ours: Callable[[Path], bool], what: str) -> None:
    """Refuse a folder that is neither new, nor holds only leftovers of ours, nor is ours and of this kind.

    Raises:
        NasError: naming what it is not.
    """
    if not os.path.lexists(out):
        return
    if not out.is_dir():
        raise NasError(f"{out} is no folder; give another --out")
    if not is_ours(out) and not only_leftovers(out):
        raise NasError(f"{out} is not empty and holds no {what} of this toolkit; give another --out")


def keep_rest(out: Path, partial: Path) -> None:
    """Give what stays of the old folder a place in the new one: as second names of the same files, where that works."""
    for part in sorted(out.iterdir()) if out.is_dir() else ():
        target = partial / part.name
        if os.path.lexists(target):
            continue
        if part.is_dir() and not part.is_symlink():
            shutil.copytree(part, target, symlinks=True, copy_function=_link)
        else:
            _link(str(part), str(target))


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def put_folder(new: Path, out: Path) -> None:
    """Have the folder ``new`` stand at ``out``; what stood there is then at ``new``, or gone."""
    if not os.path.lexists(out):
        os.replace(new, out)
    elif not exchange(new, out):
        aside = new.with_name(f"{new.name.removesuffix('.partial')}{OLD}")
        os.replace(out, aside)  # killed here, ``restore`` finds it
        os.replace(new, out)
        shutil.rmtree(aside, ignore_errors=True)


def restore(out: Path) -> None:
    """Put back what a process left aside that was killed between two renames; drop what was replaced."""
    prefix = f".{out.name[:40]}."
    left = sorted(
        path
        for path in (out.parent.iterdir() if out.parent.is_dir() else ())
        if path.name.startswith(prefix) and path.name.endswith(OLD) and path.is_dir() and not path.is_symlink()
    )
    for aside in left:
        if os.path.lexists(out):
            shutil.rmtree(aside, ignore_errors=True)
        else:
            os.replace(aside, out)


def exchange(one: Path, other: Path) -> bool:
    """Swap two folders at one stroke; False where the system or the file system cannot.

    Raises:
        OSError: if it could and failed.
    """
    names = os.fsencode(one), os.fsencode(other)
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            failed = library.renamex_np(*names, ctypes.c_uint(_SWAP))
        else:
            failed = library.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], ctypes.c_uint(_EXCHANGE))
    except (AttributeError, OSError):
        return False
    if not failed:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EXDEV):
        return False
    raise OSError(code, os.strerror(code), str(other))
