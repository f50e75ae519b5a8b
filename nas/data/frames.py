"""Frames of a video at the rate and size that training needs, decoded once and kept on disk."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nas.data.media import DecodeError, Media, content_digest
from nas.data.reader import FrameReader, FrameSpec, OutOfOrder, probe
from nas.errors import NasError
from nas.files import held, partial_name, write_whole

__all__ = [
    "DecodeError",
    "FrameReader",
    "FrameSpec",
    "Frames",
    "cached_frames",
    "content_digest",
    "frame_range",
    "known_frames",
    "probe",
]

log = logging.getLogger(__name__)

SCHEMA = 4  # of the reader and the cache; part of every key, so that frames of an older reader are not taken


@dataclass(frozen=True)
class Frames:
    """Kept frames of one video.

    Attributes:
        source: the video. file: the ``.npy`` of (F, h, w, 3) uint8, red, green, blue.
        rate: kept frames a second. stride: from one frame of a clip to the next.
        digest: of the video's content alone, equal for copies. native_fps: the video's own rate.
        truncated: why decoding ended before the file did, or empty. repairs: what the reader made right.
        closed: gaps in its times that were left out: from which of the file's seconds on, and how long.
    """

    source: Path
    file: Path
    shape: tuple[int, int, int, int]
    rate: float
    stride: int
    digest: str
    native_fps: float
    truncated: str
    repairs: tuple[str, ...] = ()
    closed: tuple[tuple[float, float], ...] = ()

    def span(self, frames: int) -> int:
        """Kept frames from the first to the last of a clip, both included."""
        return (frames - 1) * self.stride + 1

    def read(self, start: int, frames: int) -> np.ndarray:
        """A clip of so many frames as a view of the file, (frames, h, w, 3) uint8."""
        return _open(self.file)[start : start + self.span(frames) : self.stride]

    def range(self, start: float, end: float) -> tuple[int, int]:
        """First kept frame and one past the last of the file's seconds start <= t < end."""
        kept = [start, end]
        if self.closed:  # whose lengths are rounded as the times beside them are
            kept = [round(_without(self.closed, seconds), 3) for seconds in kept]
            kept = [max(0.0, seconds - 1e-3) if seconds < math.inf else seconds for seconds in kept]
        return frame_range(kept[0], kept[1], self.rate, self.shape[0])


@functools.lru_cache(maxsize=128)  # each holds a file descriptor
def _open(file: Path) -> np.ndarray:
    return np.load(file, mmap_mode="r", allow_pickle=False)


def cached_frames(path: Path | Media, spec: FrameSpec, cache: Path, digest: str = "", threads: str = "AUTO") -> Frames:
    """The frames of a video, from the cache or decoded into it.

    The key covers the video's content, the spec and the reader's version. Files appear whole or not at all: frames
    first, then the JSON that vouches for them.

    Args:
        digest: the video's, where it is known. threads: the decoder's, ``AUTO`` or ``ONE``.

    Raises:
        DecodeError: if the file is missing, empty or holds no frame that decodes.
        NasError: if the cache cannot be written.
    """
    media = Media.of(path)
    digest = digest or content_digest(media)
    known = known_frames(media, spec, cache, digest)
    if known is not None:
        return known
    file, notes = _places(cache, digest, spec)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        ignore = cache / ".gitignore"
        if not ignore.exists():
            write_whole(ignore, "*\n")
        with _alone(notes.with_suffix(".lock")):  # processes that train together open the same videos
            found = _known(file, notes) or _decode_into(media, spec, file, notes, threads)
    except OSError as error:
        raise NasError(
            f"{cache}: cannot keep decoded frames ({error.strerror or error}); "
            "free space there or set data.cache to a folder with room"
        ) from error
    return _frames(media, spec, file, digest, found)


def known_frames(path: Path | Media, spec: FrameSpec, cache: Path, digest: str) -> Frames | None:
    """The frames of a video if they are in the cache; its digest says which they are."""
    file, notes = _places(cache, digest, spec)
    known = _known(file, notes)
    return _frames(Media.of(path), spec, file, digest, known) if known is not None else None


def _places(cache: Path, digest: str, spec: FrameSpec) -> tuple[Path, Path]:
    key = hashlib.sha256(repr((SCHEMA, digest, spec)).encode()).hexdigest()[:24]
    return cache / f"{key}.npy", cache / f"{key}.json"


def _frames(media: Media, spec: FrameSpec, file: Path, digest: str, known: dict[str, Any]) -> Frames:
    native_fps = float(known["native_fps"])
    stride = spec.stride(native_fps)
    shape = (known["shape"][0], known["shape"][1], known["shape"][2], 3)
    closed = tuple((float(at), float(seconds)) for at, seconds in known["closed"])
    repairs = tuple(known["repairs"])
    return Frames(
        media.path, file, shape, spec.fps * stride, stride, digest, native_fps, known["truncated"], repairs, closed
    )


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """While no other process holds the lock; one that is killed lets go of it."""
    with held(lock, wait=True):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)  # who waits on it holds the file itself, and looks for the frames again


def _known(file: Path, notes: Path) -> dict[str, Any] | None:
    """The notes beside cached frames, if both are whole."""
    try:
        known: dict[str, Any] = json.loads(notes.read_text())
        return known if file.stat().st_size == known["bytes"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _decode_into(media: Media, spec: FrameSpec, file: Path, notes: Path, threads: str) -> dict[str, Any]:
    """Stream frames into ``file``: memory stays at one frame, however long the video."""
    started = time.perf_counter()
    partial = partial_name(file)
    reader = FrameReader(media, spec, threads=threads)
    try:
        with partial.open("xb") as handle:
            try:
                count, shape, truncated = _fill(handle, reader)
            except OutOfOrder:
                handle.seek(0)
                handle.truncate()
                reader = FrameReader(media, spec, by_order=True, threads=threads)
                count, shape, truncated = _fill(handle, reader)
            handle.flush()
            os.fsync(handle.fileno())
        size = partial.stat().st_size
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)
    known: dict[str, Any] = {
        "source": media.path.name,
        "shape": [count, *shape],
        "rate": reader.rate,
        "native_fps": reader.native_fps,
        "truncated": truncated,
        "repairs": reader.repairs,
        "closed": reader.closed,
        "bytes": size,
    }
    write_whole(notes, json.dumps(known, indent=1))
    seconds = time.perf_counter() - started
    log.info("%s: decoded %d frames of %dx%d in %.1f s", media.path.name, count, shape[0], shape[1], seconds)
    if truncated:
        log.warning("%s: only its first %.1f s decode (%s)", media.path.name, count / reader.rate, truncated)
    if reader.repairs:
        log.warning("%s: %s", media.path.name, "; ".join(reader.repairs))
    return known


def _fill(handle: Any, reader: FrameReader) -> tuple[int, tuple[int, ...], str]:
    """Write an array of all frames: how many, their shape, and why decoding ended early, or nothing."""
    count, shape, truncated = 0, (0, 0, 3), ""
    try:
        for frame in reader:
            if count == 0:
                shape = frame.shape
                _write_header(handle, (0, *shape))
            handle.write(frame.data if frame.flags.c_contiguous else frame.tobytes())
            count += 1
    except OutOfOrder:
        raise
    except DecodeError as error:
        truncated = str(error)
    if count == 0:
        raise DecodeError(truncated or "no frame in it")
    handle.seek(0)
    _write_header(handle, (count, *shape))  # numpy pads headers so that the length may grow in place
    return count, shape, truncated


def _write_header(handle: Any, shape: Sequence[int]) -> None:
    np.lib.format.write_array_header_1_0(handle, {"descr": "|u1", "fortran_order": False, "shape": tuple(shape)})


def _without(closed: Sequence[tuple[float, float]], seconds: float) -> float:
    """Seconds of the file, less what was left out before them."""
    return seconds - sum(min(max(0.0, seconds - at), length) for at, length in closed)


def frame_range(start: float, end: float, rate: float, count: int) -> tuple[int, int]:
    """First frame and one past the last of the seconds start <= t < end; empty past the video's end."""
    first = math.ceil(start * rate - 1e-6)
    last = count if math.isinf(end) else min(count, math.ceil(end * rate - 1e-6))
    return min(first, count), max(last, min(first, count))
