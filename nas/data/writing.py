"""Files that appear whole, and none written through a link that somebody left in a folder."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import BinaryIO


def partial_of(path: Path) -> Path:
    """A new name beside a file, hidden and not to be guessed, for what is renamed once it is whole."""
    return path.with_name(f".{path.name[:100]}.{secrets.token_hex(6)}.partial")


def open_own(path: Path) -> BinaryIO:
    """Open a file of ours to append to, made where there is none.

    Raises:
        OSError: if it is a link, among others.
    """
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666), "ab")


def write_ignore(folder: Path) -> None:
    """Keep a cache out of git."""
    ignore = folder / ".gitignore"
    if not os.path.lexists(ignore):
        with open_own(ignore) as file:
            file.write(b"*\n")
