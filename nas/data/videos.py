"""Random clips of real videos, with a validation split that shares no frame with training, and images beside them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from nas.data.captions import IMAGES, Caption
from nas.data.clip import TRAIN_LENGTH, Buckets, ClipLike, Dataset, Images, Item, Skip, check_index, generator
from nas.data.decoding import decode_all
from nas.data.frames import Frames
from nas.data.media import DecodeError
from nas.data.sources import Files, by_content, source_captions
from nas.data.splits import Run, held_videos, runs_of, split_runs
from nas.errors import NasError

if TYPE_CHECKING:
    from nas.config import DataConfig

__all__ = ["Run", "Shape", "Stills", "VideoClips", "as_video", "clip_buckets", "cut", "open_videos", "source_captions"]

log = logging.getLogger(__name__)


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
        images: Sequence[Run] = (),
    ) -> None:
        self.runs, self.skipped = tuple(runs), tuple(skipped)
        self.clip, self.split, self.seed = clip, split, seed
        self.images = tuple(images)
        self.captions = tuple(dict.fromkeys(run.caption.text for run in (*self.runs, *self.images)))
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
        top = cut(run.caption.y, height, self.clip.height, self.room, rng)
        left = cut(run.caption.x, width, self.clip.width, self.room, rng)
        pixels = run.frames.read(first, self.clip.frames)
        pixels = pixels[:, top : top + self.clip.height, left : left + self.clip.width]
        return {"video": as_video(pixels), "caption": run.caption.text}

    def stills(self, seed: int) -> Dataset:
        """Frames of the clips and, where there are images, an image every other time."""
        frames = Images(self, seed)
        return Stills(frames, self.images, self.clip, seed) if self.images else frames


class Stills:
    """Frames of clips and whole images in turn, (1, C, H, W)."""

    def __init__(self, frames: Images, images: Sequence[Run], clip: ClipLike, seed: int) -> None:
        self.frames, self.images, self.clip, self.seed = frames, tuple(images), clip, seed
        self.captions = tuple(dict.fromkeys([*frames.captions, *(image.caption.text for image in images)]))
        self.skipped = frames.skipped

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Item:
        if index % 2 == 0:
            return self.frames[index]
        image = self.images[int(generator(self.seed, "image", index).integers(len(self.images)))]
        _, height, width, _ = image.frames.shape
        rng = generator(self.seed, "bucket", index)
        top = cut(image.caption.y, height, self.clip.height, 0.0, rng)
        left = cut(image.caption.x, width, self.clip.width, 0.0, rng)
        pixels = image.frames.read(0, 1)[:, top : top + self.clip.height, left : left + self.clip.width]
        return {"video": as_video(pixels), "caption": image.caption.text}


def as_video(pixels: np.ndarray) -> torch.Tensor:
    """(T, H, W, 3) bytes -> (T, 3, H, W) float32 in [-1, 1]."""
    video = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), dtype=np.float32))
    return video.div_(127.5).sub_(1.0)


def cut(centre: float, side: int, clip: int, room: float, rng: np.random.Generator) -> int:
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
) -> VideoClips | Buckets:
    """Decode what is not in the cache yet, hold out the validation frames and open one split.

    ``holdout: time`` keeps the end of every captioned segment that is at least two clips long: ``validation_share`` of
    it, one clip or more. A training clip that touches a frame kept for any caption's validation is left out, and where
    frames are repeated (a rate above the video's own) the copies on both sides of the cut stay unused.
    ``holdout: video`` keeps whole videos, chosen by content, so that copies stay on one side; and so are pictures held
    out, where clips have one frame.

    With ``config.buckets`` each video goes to the clip that suits it; validation keeps to ``clip``, where any video is
    left for it, so that its clips can be scored together.

    Args:
        skipped: what was already found unusable; it is reported along.

    Raises:
        NasError: if no video is left for the split, with the reasons.
    """
    clips = clip_buckets(clip, config.buckets)
    usable, images, gone = _decoded(captions, clips, config)
    skipped = [*skipped, *gone]
    whole = [f.digest for f, *_ in usable if config.holdout == "video" or f.shape[0] == 1]
    held = held_videos(whole, config) if whole or config.holdout == "video" else frozenset()
    runs: dict[ClipLike, list[Run]] = {shape: [] for shape in clips}
    for frames, segments, shape in usable:
        mine = split_runs(frames, segments, shape.frames, config, held, split)
        if not mine and not runs_of(frames, segments, np.zeros(frames.shape[0], dtype=bool), 0, shape.frames, "train"):
            skipped.append(Skip(frames.source, "no captioned segment is as long as a clip"))
        runs[shape] += mine
    for skip in skipped:
        log.warning("skipped %s", skip)
    filled = [shape for shape in clips if runs[shape]]
    if not filled:
        raise NasError(_nothing_left(skipped, len(usable), config, clip, split))
    parts = [
        VideoClips(
            runs[shape],
            skipped,
            shape,
            split,
            seed,
            config,
            [Run(f, c, 0, 1) for f, said, own in images if own == shape for c in said],
        )
        for shape in (filled if split == "train" else filled[:1])
    ]
    return parts[0] if len(parts) == 1 else Buckets(parts, [part.starts for part in parts], seed)


Kept = tuple[Frames, tuple[Caption, ...], ClipLike]  # of one video: its frames, what is said of it, its clip


def _decoded(
    captions: Sequence[Caption], clips: Sequence[ClipLike], config: DataConfig
) -> tuple[list[Kept], list[Kept], list[Skip]]:
    """Videos that are as long as a clip, images, and what is no use; where clips have one frame, images are clips."""
    usable: list[Kept] = []
    images: list[Kept] = []
    files = Files(config.cache)
    videos, skipped = by_content(captions, files)
    for found in decode_all(videos, clips, config, files):
        frames, shape, path = found.frames, found.clip, found.video.path
        if isinstance(frames, DecodeError):
            skipped.append(Skip(path, str(frames)))
        elif path.suffix.lower() in IMAGES and shape.frames > 1:
            images.append((frames, found.video.captions, shape))
        elif frames.shape[0] < frames.span(shape.frames):
            seconds = f"{frames.shape[0] / frames.rate:.2f} s, a clip is {shape.frames / shape.fps:.2f} s"
            skipped.append(Skip(path, f"shorter than a clip ({seconds})"))
        else:
            usable.append((frames, found.video.captions, shape))
    return usable, images, skipped


@dataclass(frozen=True)
class Shape:
    """A clip of a bucket."""

    frames: int
    height: int
    width: int
    fps: float


def clip_buckets(clip: ClipLike, buckets: Sequence[str]) -> list[ClipLike]:
    """The clip and the further ones that a configuration names, at its frame rate.

    Raises:
        NasError: if one is not ``FRAMESxHEIGHTxWIDTH``.

    >>> clip_buckets(Shape(8, 16, 16, 8.0), ["4x16x32"])[1]
    Shape(frames=4, height=16, width=32, fps=8.0)
    """
    found: list[ClipLike] = [Shape(clip.frames, clip.height, clip.width, clip.fps)]
    for text in buckets:
        parts = text.lower().split("x")
        if len(parts) != 3 or not all(part.isdigit() and int(part) > 0 for part in parts):
            raise NasError(f"data.buckets: {text!r} is no clip; write FRAMESxHEIGHTxWIDTH, such as 8x16x32")
        shape = Shape(int(parts[0]), int(parts[1]), int(parts[2]), clip.fps)
        if shape not in found:
            found.append(shape)
    return found


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
