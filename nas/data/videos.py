"""Random clips of real videos, with a validation split that shares no frame with training."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from nas.data.captions import Caption
from nas.data.clip import TRAIN_LENGTH, ClipLike, Item, Skip, check_index, generator
from nas.data.frames import DecodeError, Frames, FrameSpec, cached_frames, frame_range
from nas.errors import NasError

if TYPE_CHECKING:
    from nas.config import DataConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """Clips with one caption: they may start at any of ``count`` frames from ``first`` on."""

    frames: Frames
    caption: Caption
    first: int
    count: int


class VideoClips:
    """Clips of real videos, read from decoded frames.

    A ``train`` clip is drawn evenly over all starting frames and cut out at random, by (seed, index). ``validation``
    clips are spread evenly over the held-out starting frames, cut out at fixed random places, and in a fixed shuffled
    order, so that the first few stand for all.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        skipped: Sequence[Skip],
        clip: ClipLike,
        split: Literal["train", "validation"],
        seed: int,
        config: DataConfig,
    ) -> None:
        self.runs, self.skipped = tuple(runs), tuple(skipped)
        self.clip, self.split, self.seed = clip, split, seed
        self.captions = tuple(dict.fromkeys(run.caption.text for run in self.runs))
        self._ends = np.cumsum([run.count for run in self.runs])
        self.room = config.crop_margin - 1
        moves = self.room > 0 and any(run.frames.shape[1:3] != (clip.height, clip.width) for run in self.runs)
        kept = config.validation_clips if moves else min(config.validation_clips, self.starts)
        self._order = np.random.default_rng(0).permutation(kept)
        self._length = TRAIN_LENGTH if split == "train" else kept

    @property
    def starts(self) -> int:
        """Distinct clips, cropping aside."""
        return int(self._ends[-1])

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Item:
        check_index(index, len(self))
        if self.split == "train":
            rng = generator(self.seed, self.split, index)
            start = int(rng.integers(self.starts))
        else:
            rng = generator(0, self.split, index)
            start = int(2 * self._order[index] + 1) * self.starts // (2 * len(self))
        which = int(np.searchsorted(self._ends, start, side="right"))
        run = self.runs[which]
        first = run.first + start - (int(self._ends[which]) - run.count)
        _, height, width, _ = run.frames.shape
        top = _cut(run.caption.y, height, self.clip.height, self.room, rng)
        left = _cut(run.caption.x, width, self.clip.width, self.room, rng)
        pixels = run.frames.read(first, self.clip.frames)
        pixels = pixels[:, top : top + self.clip.height, left : left + self.clip.width]
        video = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), dtype=np.float32))
        return {"video": video.div_(127.5).sub_(1.0), "caption": run.caption.text}


def _cut(centre: float, side: int, clip: int, room: float, rng: np.random.Generator) -> int:
    """First row or column of a clip around a centre, moved at random by up to half of ``room`` clips either way."""
    start = centre * side - clip / 2 + room * clip * rng.uniform(-0.5, 0.5)
    return round(min(max(start, 0.0), float(side - clip)))


def open_videos(
    captions: Sequence[Caption],
    config: DataConfig,
    clip: ClipLike,
    split: Literal["train", "validation"],
    seed: int,
    skipped: Sequence[Skip] = (),
) -> VideoClips:
    """Decode what is not in the cache yet, hold out the validation frames and open one split.

    ``holdout: time`` keeps the end of every captioned segment that is at least two clips long: ``validation_share`` of
    it, one clip or more. A training clip that touches a frame kept for any caption's validation is left out, and where
    frames are repeated (a rate above the video's own) the copies on both sides of the cut stay unused.
    ``holdout: video`` keeps whole videos, chosen by content, so that copies stay on one side.

    Args:
        skipped: what was already found unusable; it is reported along.

    Raises:
        NasError: if no video is left for the split, with the reasons.
    """
    spec = FrameSpec(clip.height, clip.width, clip.fps, config.crop_margin)
    videos: list[tuple[Frames, list[Caption]]] = []
    skipped = list(skipped)
    by_path: dict[Path, list[Caption]] = {}
    for caption in captions:
        by_path.setdefault(caption.path, []).append(caption)
    for path, segments in by_path.items():
        try:
            frames = cached_frames(path, spec, config.cache)
        except DecodeError as error:
            skipped.append(Skip(path, str(error)))
            continue
        if frames.shape[0] < frames.span(clip.frames):
            seconds = f"{frames.shape[0] / frames.rate:.2f} s, a clip is {clip.frames / clip.fps:.2f} s"
            skipped.append(Skip(path, f"shorter than a clip ({seconds})"))
            continue
        videos.append((frames, segments))
    runs: list[Run] = []
    held_videos = _held_videos(videos, config.validation_share) if config.holdout == "video" else frozenset()
    for frames, segments in videos:
        if config.holdout == "video":
            held = np.full(frames.shape[0], frames.digest in held_videos)
            gap = 0
        else:
            held, gap = _held_frames(frames, segments, clip.frames, config.validation_share)
        mine = _runs(frames, segments, held, gap, clip.frames, split)
        if not mine and not _runs(frames, segments, np.zeros_like(held), 0, clip.frames, "train"):
            skipped.append(Skip(frames.source, "no captioned segment is as long as a clip"))
        runs += mine
    for skip in skipped:
        log.warning("skipped %s", skip)
    if not runs:
        raise NasError(_nothing_left(skipped, len(videos), config, clip, split))
    return VideoClips(runs, skipped, clip, split, seed, config)


def _held_videos(videos: Sequence[tuple[Frames, list[Caption]]], share: float) -> frozenset[str]:
    """Digests of the videos kept for validation: at least one, at most all but one."""
    digests = sorted({frames.digest for frames, _ in videos})
    if len(digests) < 2:
        raise NasError(
            f"data.holdout is 'video' but there are {len(digests)} different videos that decode; "
            "give two or more, or set data.holdout to time"
        )
    return frozenset(digests[: min(len(digests) - 1, max(1, round(share * len(digests))))])


def _held_frames(frames: Frames, segments: Sequence[Caption], length: int, share: float) -> tuple[np.ndarray, int]:
    """Mask over kept frames of what is for validation, and how many frames beside it may be copies."""
    count, span = frames.shape[0], frames.span(length)
    gap = max(0, math.ceil(frames.rate / frames.native_fps - 1e-6) - 1)
    held = np.zeros(count, dtype=bool)
    for first, last in {frame_range(s.start, s.end, frames.rate, count) for s in segments}:
        if last - first >= 2 * span + gap:
            keep = max(span, math.ceil(share * (last - first)))
            held[max(last - keep, first + span + gap) : last] = True
    return held, gap


def _runs(
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
        first, last = frame_range(segment.start, segment.end, frames.rate, frames.shape[0])
        starts = np.arange(first, last - span + 1)
        starts = starts[usable_before[starts + span] - usable_before[starts] == span]
        for group in np.split(starts, np.flatnonzero(np.diff(starts) > 1) + 1):
            if group.size:
                runs.append(Run(frames, segment, int(group[0]), group.size))
    return runs


def _nothing_left(
    skipped: Sequence[Skip], usable: int, config: DataConfig, clip: ClipLike, split: Literal["train", "validation"]
) -> str:
    if usable and split == "validation":
        return (
            f"no captioned segment is as long as two clips ({2 * clip.frames / clip.fps:.2f} s), so nothing can be "
            "held out in time; set data.holdout to video or give longer videos"
        )
    reasons = "; ".join(str(skip) for skip in skipped[:3]) + (f"; and {len(skipped) - 3} more" if skipped[3:] else "")
    return f"no usable video of {len(skipped)} ({reasons}); check data.path and data.captions"
