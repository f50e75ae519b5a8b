"""Which frames are for training and which for validation, and where clips may start."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from nas.data.captions import Caption
from nas.data.frames import Frames
from nas.errors import NasError

if TYPE_CHECKING:
    from nas.config import DataConfig


@dataclass(frozen=True)
class Run:
    """Clips with one caption: they may start at any of ``count`` frames from ``first`` on."""

    frames: Frames
    caption: Caption
    first: int
    count: int


def split_runs(
    frames: Frames,
    segments: Sequence[Caption],
    length: int,
    config: DataConfig,
    held: frozenset[str],
    split: Literal["train", "validation"],
) -> list[Run]:
    """Where clips of ``length`` frames may start in one video, for one split."""
    if config.holdout == "video" or frames.shape[0] == 1:  # a picture has no end to keep
        kept, gap = np.full(frames.shape[0], frames.digest in held), 0
    else:
        kept, gap = _held_frames(frames, segments, length, config.validation_share)
    return runs_of(frames, segments, kept, gap, length, split)


def held_videos(found: Sequence[str], config: DataConfig) -> frozenset[str]:
    """Digests of the videos kept for validation: at least one, at most all but one."""
    digests = sorted(set(found))
    if len(digests) < 2:
        raise NasError(
            f"data.holdout is 'video' but there are {len(digests)} different videos that decode; "
            "give two or more, or set data.holdout to time"
            if config.holdout == "video"
            else "pictures are held out whole, but only one of them decodes; give two or more"
        )
    return frozenset(digests[: min(len(digests) - 1, max(1, round(config.validation_share * len(digests))))])


def _held_frames(frames: Frames, segments: Sequence[Caption], length: int, share: float) -> tuple[np.ndarray, int]:
    """Mask over kept frames of what is for validation, and how many frames beside it may be copies."""
    count, span = frames.shape[0], frames.span(length)
    gap = max(0, math.ceil(frames.rate / frames.native_fps - 1e-6) - 1)
    held = np.zeros(count, dtype=bool)
    for first, last in {frames.range(s.start, s.end) for s in segments}:
        if last - first >= 2 * span + gap:
            keep = max(span, math.ceil(share * (last - first)))
            held[max(last - keep, first + span + gap) : last] = True
    return held, gap


def runs_of(
    frames: Frames,
    segments: Sequence[Caption],
    held: np.ndarray,
    gap: int,
    length: int,
    split: Literal["train", "validation"],
) -> list[Run]:
    """Where a clip may start: inside one segment, and wholly on its split's side of the cut."""
    usable = held
    if split == "train":
        near = held.copy()
        for shift in range(1, gap + 1):
            near[:-shift] |= held[shift:]
            near[shift:] |= held[:-shift]
        usable = ~near
    span = frames.span(length)
    usable_before = np.concatenate([[0], np.cumsum(usable)])
    runs = []
    for segment in segments:
        first, last = frames.range(segment.start, segment.end)
        starts = np.arange(first, last - span + 1)
        starts = starts[usable_before[starts + span] - usable_before[starts] == span]
        for group in np.split(starts, np.flatnonzero(np.diff(starts) > 1) + 1):
            if group.size:
                runs.append(Run(frames, segment, int(group[0]), group.size))
    return runs
