"""What is read, a file or a sample within a tar, and what it is known by: its content."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av

SAMPLE_BYTES = 1 << 20  # hashed at either end of a file
BETWEEN, BETWEEN_BYTES = 16, 1 << 16  # and blocks of what lies between, so that equal ends do not make two files one


class DecodeError(Exception):
    """Why a file gives no (more) frames; becomes a counted skip, never a traceback."""


@dataclass(frozen=True)
class Media:
    """A video or an image.

    Attributes:
        path: what people call it; of a sample in a tar, the tar and the sample's name below it.
        file: what is opened. start, size: the bytes of it that are the sample; all of it where ``size`` is None.
    """

    path: Path
    file: Path
    start: int = 0
    size: int | None = None

    @classmethod
    def of(cls, path: Path | Media) -> Media:
        return path if isinstance(path, Media) else cls(path, path)

    @property
    def url(self) -> str:
        """What libavformat opens. With the protocol said, a colon in a name is a colon."""
        if self.size is None:
            return f"file:{self.file}"
        return f"subfile,,start,{self.start},end,{self.start + self.size},,:file:{self.file}"


@contextmanager
def opened(media: Media) -> Iterator[Any]:
    """The container of a video, allowed to read this file alone: a playlist in disguise opens no other.

    Raises:
        DecodeError: if it does not open, here or while it is read.
    """
    try:
        with av.open(media.url, metadata_errors="replace", options={"protocol_whitelist": "file,subfile"}) as container:
            yield container
    except (av.FFmpegError, EOFError) as error:
        raise DecodeError(f"does not decode ({getattr(error, 'strerror', None) or error})") from error


def content_digest(path: Path | Media) -> str:
    """Of a video's size, its content at both ends and blocks between: equal for copies, whatever they are called.

    Raises:
        DecodeError: if it is missing, empty or no file.
    """
    media = Media.of(path)
    try:
        with media.file.open("rb") as handle:
            found = os.fstat(handle.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise DecodeError("not a file")
            size = found.st_size if media.size is None else media.size
            if size == 0:
                raise DecodeError("the file is empty")
            content = hashlib.sha256(str(size).encode())
            head = min(size, SAMPLE_BYTES)
            tail = max(SAMPLE_BYTES, size - SAMPLE_BYTES)
            stretches = [(0, head), (tail, max(0, size - tail))]
            room = tail - head
            if room > BETWEEN * BETWEEN_BYTES:
                stretches += [(head + i * room // BETWEEN, BETWEEN_BYTES) for i in range(BETWEEN)]
            for first, count in stretches:
                handle.seek(media.start + first)
                content.update(handle.read(count))
    except OSError as error:
        raise DecodeError("not a file" if media.file.is_dir() else (error.strerror or str(error)).lower()) from error
    except ValueError as error:  # a NUL in the name
        raise DecodeError(str(error)) from error
    return content.hexdigest()
