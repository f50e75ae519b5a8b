"""The frames of many videos: what is in the cache at once, the rest decoded side by side, its room said before."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nas.data.clip import ClipLike
from nas.data.frames import Frames, FrameSpec, cached_frames, known_frames
from nas.data.media import DecodeError
from nas.data.reader import expected_bytes
from nas.data.sources import Files, Video, processors
from nas.errors import NasError

if TYPE_CHECKING:
    from nas.config import DataConfig
    from nas.console import Report

QUIET = 2.0  # seconds of decoding before anything is shown
ASKED = 32  # videos whose headers are asked for what all will take


@dataclass(frozen=True)
class Decoded:
    """A video, the clip that suits it, and its frames or why there are none."""

    video: Video
    clip: ClipLike
    frames: Frames | DecodeError


def decode_all(videos: Sequence[Video], clips: Sequence[ClipLike], config: DataConfig, files: Files) -> list[Decoded]:
    """The frames of all videos, in their order.

    Raises:
        NasError: if the cache cannot be written.
    """
    found: list[Decoded | None] = []
    missing: list[tuple[int, ClipLike, FrameSpec]] = []
    for i, video in enumerate(videos):
        try:
            clip = choose_bucket(video, clips, files)
        except DecodeError as error:
            found.append(Decoded(video, clips[0], error))
            continue
        spec = FrameSpec(clip.height, clip.width, clip.fps, config.crop_margin)
        frames = known_frames(video.media, spec, config.cache, video.digest)
        found.append(Decoded(video, clip, frames) if frames is not None else None)
        if frames is None:
            missing.append((i, clip, spec))
    files.close()
    if missing:
        _say_room([(videos[i], spec) for i, _, spec in missing], config.cache)
        _decode(videos, missing, config.cache, found)
    return [one for one in found if one is not None]


def choose_bucket(video: Video, clips: Sequence[ClipLike], files: Files) -> ClipLike:
    """The clip nearest to a video's aspect ratio, and of those the longest that it fills.

    Raises:
        DecodeError: if it cannot be opened.
    """
    if len(clips) == 1:
        return clips[0]
    height, width, seconds = files.shape(video)

    def distance(clip: ClipLike) -> float:
        return round(abs(math.log(width / height * clip.height / clip.width)), 6)

    fits = [clip for clip in clips if clip.frames / clip.fps <= seconds + 1 / clip.fps] or list(clips)
    return min(fits, key=lambda clip: (distance(clip), -clip.frames, -clip.height))


def _decode(
    videos: Sequence[Video],
    missing: Sequence[tuple[int, ClipLike, FrameSpec]],
    cache: Path,
    found: list[Decoded | None],
) -> None:
    """Decode side by side, one thread a video, with a progress report when that takes a while."""
    from nas.console import progress

    workers = min(processors(), len(missing))
    threads = "ONE" if workers > 1 else "AUTO"

    def decode(i: int, spec: FrameSpec) -> Frames | DecodeError:
        try:
            return cached_frames(videos[i].media, spec, cache, videos[i].digest, threads)
        except DecodeError as error:
            return error

    started = time.monotonic()
    with ExitStack() as stack:
        pool = ThreadPoolExecutor(workers, "decode")
        stack.callback(pool.shutdown, wait=True, cancel_futures=True)  # the first error, or Ctrl-C, ends the rest
        waiting: dict[Future[Frames | DecodeError], tuple[int, ClipLike]] = {}
        queue = iter(missing)
        report: Report | None = None
        done = 0
        while True:
            while len(waiting) < 2 * workers and (job := next(queue, None)) is not None:
                waiting[pool.submit(decode, job[0], job[2])] = (job[0], job[1])
            if not waiting:
                return
            ready, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in ready:
                i, clip = waiting.pop(future)
                found[i] = Decoded(videos[i], clip, future.result())
                done += 1
                if report is None and time.monotonic() - started > QUIET:
                    report = stack.enter_context(progress("decode"))
                if report is not None:
                    report(done, len(missing), videos[i].path.name)


def _say_room(missing: Sequence[tuple[Video, FrameSpec]], cache: Path) -> None:
    """Say what the frames will take, by the headers of some of the videos, before any is decoded.

    Raises:
        NasError: if there is by far no room for them.
    """
    from nas.console import say

    asked = missing[:: max(1, len(missing) // ASKED)]
    sizes = [size for video, spec in asked if (size := expected_bytes(video.media, spec)) is not None]
    if not sizes:
        return
    total = sum(sizes) / len(sizes) * len(missing)
    place = next(folder for folder in [cache.absolute(), *cache.absolute().parents] if folder.is_dir())
    free = shutil.disk_usage(place).free
    guess = "" if len(asked) == len(missing) else f", by {len(sizes)} of them"
    if os.environ.get("RANK", "0") == "0":
        say(
            f"{len(missing)} videos to decode: their frames will take about {_size(total)} in {cache} "
            f"({_size(free)} free{guess})"
        )
    if total > 2 * free:
        raise NasError(
            f"{cache}: decoded frames will take about {_size(total)}, and {_size(free)} are free; set data.cache to a "
            "folder with room, or make latents of the data (nas cache), which take a hundredth"
        )


def _size(count: float) -> str:
    power = min(3, max(0, int(math.log10(max(count, 1.0))) // 3 - 1))
    return f"{count / 1e3 ** (power + 1):.3g} {('kB', 'MB', 'GB', 'TB')[power]}"
