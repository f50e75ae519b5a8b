"""Frames of a video at the rate and size that training needs, decoded once and kept on disk."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from nas.errors import NasError
from nas.files import held, partial_name, write_whole

log = logging.getLogger(__name__)

SCHEMA = 3  # of the cache; part of every key
SAMPLE_BYTES = 1 << 20  # hashed at either end of a file
MOST_PHASES = 2  # kept frames for one clip frame: more would cost more to convert than they teach
LONGEST_GAP = 60.0  # seconds between two frames; more is a broken time stamp
AREA = Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


class DecodeError(Exception):
    """Why a file gives no (more) frames; becomes a counted skip, never a traceback."""


@dataclass(frozen=True)
class FrameSpec:
    """How frames are kept: ``margin`` times larger than height x width on the tighter side, for clips of ``fps``."""

    height: int
    width: int
    fps: float
    margin: float = 1.25

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the kept frames of a source: its aspect, covering the clip, enlarged only if it must be.

        >>> FrameSpec(16, 16, 8).size(272, 640)
        (20, 47)
        """
        cover = max(self.height / height, self.width / width)
        scale = max(cover, min(cover * self.margin, 1.0))
        return max(self.height, round(height * scale)), max(self.width, round(width * scale))

    def stride(self, native_fps: float) -> int:
        """Kept frames from one clip frame to the next: a 25/s video gives 8/s clips at two phases, not at one.

        >>> FrameSpec(16, 16, 8).stride(25)
        2
        """
        return max(1, min(MOST_PHASES, math.floor(native_fps / self.fps + 1e-6)))


@dataclass(frozen=True)
class Frames:
    """Kept frames of one video.

    Attributes:
        source: the video. file: the ``.npy`` of (F, h, w, 3) uint8, red, green, blue.
        rate: kept frames a second. stride: from one frame of a clip to the next.
        digest: of the video's content alone, equal for copies. native_fps: the video's own rate.
        truncated: why decoding ended before the file did, or empty.
    """

    source: Path
    file: Path
    shape: tuple[int, int, int, int]
    rate: float
    stride: int
    digest: str
    native_fps: float
    truncated: str

    def span(self, frames: int) -> int:
        """Kept frames from the first to the last of a clip, both included."""
        return (frames - 1) * self.stride + 1

    def read(self, start: int, frames: int) -> np.ndarray:
        """A clip of so many frames as a view of the file, (frames, h, w, 3) uint8."""
        return _open(self.file)[start : start + self.span(frames) : self.stride]


@functools.lru_cache(maxsize=128)  # each holds a file descriptor
def _open(file: Path) -> np.ndarray:
    return np.load(file, mmap_mode="r", allow_pickle=False)


def cached_frames(path: Path, spec: FrameSpec, cache: Path) -> Frames:
    """The frames of a video, from the cache or decoded into it.

    The key covers the file's size, modification time and content at both ends, and the spec. Files appear whole or
    not at all: frames first, then the JSON that vouches for them.

    Raises:
        DecodeError: if the file is missing, empty or holds no frame that decodes.
        NasError: if the cache cannot be written.
    """
    digest, key = _fingerprint(path, spec)
    file, notes = cache / f"{key}.npy", cache / f"{key}.json"
    known = _known(file, notes)
    if known is None:
        try:
            cache.mkdir(parents=True, exist_ok=True)
            ignore = cache / ".gitignore"
            if not ignore.exists():
                ignore.write_text("*\n")
            with _alone(notes.with_suffix(".lock")):  # processes that train together open the same videos
                known = _known(file, notes) or _decode_into(path, spec, file, notes)
        except OSError as error:
            raise NasError(
                f"{cache}: cannot keep decoded frames ({error.strerror or error}); "
                "free space there or set data.cache to a folder with room"
            ) from error
    native_fps = float(known["native_fps"])
    stride = spec.stride(native_fps)
    shape = (known["shape"][0], known["shape"][1], known["shape"][2], 3)
    return Frames(path, file, shape, spec.fps * stride, stride, digest, native_fps, known["truncated"])


def _fingerprint(path: Path, spec: FrameSpec) -> tuple[str, str]:
    """Content digest and cache key."""
    digest = content_digest(path)
    key = hashlib.sha256(repr((SCHEMA, digest, path.stat().st_mtime_ns, spec)).encode()).hexdigest()[:24]
    return digest, key


def content_digest(path: Path) -> str:
    """Of a file's size and its content at both ends: equal for copies.

    Raises:
        DecodeError: if it is missing, empty or no file.
    """
    try:
        stat = path.stat()
        if not path.is_file():
            raise DecodeError("not a file")
        if stat.st_size == 0:
            raise DecodeError("the file is empty")
        content = hashlib.sha256(str(stat.st_size).encode())
        with path.open("rb") as handle:
            content.update(handle.read(SAMPLE_BYTES))
            handle.seek(max(SAMPLE_BYTES, stat.st_size - SAMPLE_BYTES))
            content.update(handle.read(SAMPLE_BYTES))
    except OSError as error:
        raise DecodeError((error.strerror or str(error)).lower()) from error
    return content.hexdigest()


def probe(path: Path) -> tuple[int, int, float]:
    """Height, width and seconds of a video as it is shown, from its first frame and its header.

    Raises:
        DecodeError: if it does not open or has no frame.
    """
    content_digest(path)
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DecodeError("no video stream in it")
            stream = container.streams.video[0]
            frame = next(container.decode(stream), None)
            if frame is None:
                raise DecodeError("no frame in it")
            width = max(1, round(frame.width * (float(stream.sample_aspect_ratio or 1) or 1.0)))
            rate = float(stream.average_rate or stream.guessed_rate or 25)
            if container.duration:
                seconds = container.duration / av.time_base
            else:
                seconds = (stream.frames or 1) / rate
            turned = round(frame.rotation / 90) % 2
            return (width, frame.height, seconds) if turned else (frame.height, width, seconds)
    except (av.FFmpegError, EOFError) as error:
        raise DecodeError(f"does not decode ({getattr(error, 'strerror', None) or error})") from error


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


def _decode_into(path: Path, spec: FrameSpec, file: Path, notes: Path) -> dict[str, Any]:
    """Stream frames into ``file``: memory stays at one frame, however long the video."""
    started = time.perf_counter()
    partial = partial_name(file)
    count, shape, truncated = 0, (0, 0, 3), ""
    reader = FrameReader(path, spec)
    try:
        with partial.open("wb") as handle:
            try:
                for frame in reader:
                    if count == 0:
                        shape = frame.shape
                        _write_header(handle, (0, *shape))
                    handle.write(frame.data if frame.flags.c_contiguous else frame.tobytes())
                    count += 1
            except DecodeError as error:
                truncated = str(error)
            if count == 0:
                raise DecodeError(truncated or "no frame in it")
            handle.seek(0)
            _write_header(handle, (count, *shape))  # numpy pads headers so that the length may grow in place
            handle.flush()
            os.fsync(handle.fileno())
        size = partial.stat().st_size
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)
    known: dict[str, Any] = {
        "source": path.name,
        "shape": [count, *shape],
        "rate": reader.rate,
        "native_fps": reader.native_fps,
        "truncated": truncated,
        "bytes": size,
    }
    write_whole(notes, json.dumps(known, indent=1))
    seconds = time.perf_counter() - started
    log.info("%s: decoded %d frames of %dx%d in %.1f s", path.name, count, shape[0], shape[1], seconds)
    if truncated:
        log.warning("%s: only its first %.1f s decode (%s)", path.name, count / reader.rate, truncated)
    return known


def _write_header(handle: Any, shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(handle, {"descr": "|u1", "fortran_order": False, "shape": shape})


class FrameReader:
    """Iterates over a video's frames as (h, w, 3) uint8 at a spec's rate and size.

    Frame k is the one on the screen at k / rate seconds: dropped or repeated, never blended. Only frames that are shown
    are converted, averaged over areas and turned the way the file says.

    Attributes:
        native_fps: the video's own rate, and rate: the kept frames', once iteration has begun.
        decoded: frames decoded so far.

    Raises:
        DecodeError: while iterating, if the file does not open or stops decoding.
    """

    def __init__(self, path: Path, spec: FrameSpec) -> None:
        self.path, self.spec = path, spec
        self.native_fps = self.rate = 0.0
        self.decoded = 0

    def __iter__(self) -> Iterator[np.ndarray]:
        reformatter = VideoReformatter()
        shown: av.VideoFrame | None = None
        pixels = np.empty(0)
        try:
            with av.open(str(self.path)) as container:
                if not container.streams.video:
                    raise DecodeError("no video stream in it")
                stream = container.streams.video[0]
                stream.thread_type = "AUTO"
                self.native_fps = float(stream.average_rate or stream.guessed_rate or 25)
                self.rate = self.spec.fps * self.spec.stride(self.native_fps)
                aspect = float(stream.sample_aspect_ratio or 1) or 1.0
                for frame in self._at_rate(container.decode(stream)):
                    if frame is not shown:
                        shown, pixels = frame, self._convert(frame, aspect, reformatter)
                    yield pixels
        except (av.FFmpegError, OSError, EOFError) as error:
            if isinstance(error, OSError) and not isinstance(error, av.FFmpegError):
                raise
            raise DecodeError(f"does not decode ({getattr(error, 'strerror', None) or error})") from error

    def _at_rate(self, frames: Iterable[av.VideoFrame]) -> Iterator[av.VideoFrame]:
        """Hold each frame until the next one's time, at the kept rate; times count from the first frame."""
        epsilon = 1e-4
        held: av.VideoFrame | None = None
        origin = now = 0.0
        emitted = 0
        for frame in frames:
            at = frame.time if frame.time is not None else origin + self.decoded / self.native_fps
            self.decoded += 1
            if held is None:
                origin = at
            else:
                if at - origin - now > LONGEST_GAP:
                    raise DecodeError(f"time stamps jump from {now:.1f} to {at - origin:.1f} s")
                while emitted / self.rate < at - origin - epsilon:
                    yield held
                    emitted += 1
            held, now = frame, at - origin
        while held is not None and emitted / self.rate < now + 1 / self.native_fps - epsilon:
            yield held
            emitted += 1

    def _convert(self, frame: av.VideoFrame, aspect: float, reformatter: VideoReformatter) -> np.ndarray:
        turns = round(frame.rotation / 90) % 4
        width = max(1, round(frame.width * aspect))
        if turns % 2:
            target_width, target_height = self.spec.size(width, frame.height)
        else:
            target_height, target_width = self.spec.size(frame.height, width)
        small = reformatter.reformat(frame, target_width, target_height, "rgb24", interpolation=AREA, threads=1)
        pixels = small.to_ndarray()
        return np.rot90(pixels, turns) if turns else pixels


def frame_range(start: float, end: float, rate: float, count: int) -> tuple[int, int]:
    """First frame and one past the last of the seconds start <= t < end; empty past the video's end."""
    first = math.ceil(start * rate - 1e-6)
    last = count if math.isinf(end) else min(count, math.ceil(end * rate - 1e-6))
    return min(first, count), max(last, min(first, count))
