"""Files written whole or not at all, through temporary names that nobody can guess and links that nobody follows."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

SUFFIX = ".partial"
_NEW = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC


def partial_name(path: Path) -> Path:
    """A name beside ``path`` for what is not whole yet: hidden, new each time, and as short as the file system asks.

    A folder that a stranger sent may hold links under any name that can be guessed.
    """
    return path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}{SUFFIX}")


def is_partial(path: Path) -> bool:
    """Whether a name is one of ``partial_name``: left by a process that was killed, and nobody's."""
    return path.name.startswith(".") and path.name.endswith(SUFFIX)


@contextmanager
def whole(path: Path) -> Iterator[IO[bytes]]:
    """A new binary file that stands at ``path`` once the block has ended well; otherwise what was there stays.

    A link at ``path`` is replaced, not followed.

    Raises:
        OSError: if the disk is full or the folder cannot be written.
    """
    partial = partial_name(path)
    try:
        with os.fdopen(os.open(partial, _NEW, 0o666), "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
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
