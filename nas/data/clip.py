"""What every dataset here gives, and images as clips of one frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypedDict, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

TRAIN_LENGTH = 1 << 20  # nominal: every index is another random clip
STREAMS = {"train": 0, "validation": 1, "image": 2, "bucket": 3}  # random streams that never meet


class ClipLike(Protocol):
    """Frames, height and width in pixels, frames a second."""

    @property
    def frames(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def fps(self) -> float: ...


class Item(TypedDict):
    """video: (T, C, H, W) float32; in [-1, 1] and C = 3 (red, green, blue), or latents as a cache holds them."""

    video: Tensor
    caption: str


@dataclass(frozen=True)
class Skip:
    """A video that could not be used, and why."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path.name}: {self.reason}"


class Dataset(Protocol):
    """Map-style, and sequential too: an index past the end raises IndexError."""

    @property
    def captions(self) -> Sequence[str]: ...
    @property
    def skipped(self) -> Sequence[Skip]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Item: ...


class Buckets:
    """Datasets whose items differ in shape, drawn by weight: what is batched together comes from one of them.

    Args:
        parts: one dataset a shape. weights: how often each is drawn, relative to each other.
    """

    def __init__(self, parts: Sequence[Dataset], weights: Sequence[float], seed: int = 0) -> None:
        self.parts, self.seed = tuple(parts), seed
        self._share = np.asarray(weights, dtype=float) / float(sum(weights))
        self._ends = np.cumsum([len(part) for part in parts])

    def bucket(self, turn: int) -> Dataset:
        """The dataset of a turn's batch, a pure function of (seed, turn)."""
        return self.parts[int(generator(self.seed, "bucket", turn).choice(len(self.parts), p=self._share))]

    def stills(self, seed: int) -> Dataset:
        """Single frames, of one shape within a batch too."""
        return Buckets([images_of(part, seed) for part in self.parts], self._share.tolist(), self.seed)

    @property
    def captions(self) -> Sequence[str]:
        return tuple(dict.fromkeys(text for part in self.parts for text in part.captions))

    @property
    def skipped(self) -> Sequence[Skip]:
        return tuple(dict.fromkeys(skip for part in self.parts for skip in part.skipped))

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Item:
        which = int(np.searchsorted(self._ends, check_index(index, len(self)), side="right"))
        return self.parts[which][index - (int(self._ends[which - 1]) if which else 0)]


@runtime_checkable
class WithStills(Protocol):
    """A dataset that knows how its images are made."""

    def stills(self, seed: int) -> Dataset: ...


def images_of(data: Dataset, seed: int) -> Dataset:
    """The image half of joint training: single frames, by the dataset's own way if it has one."""
    return data.stills(seed) if isinstance(data, WithStills) else Images(data, seed)


class Images:
    """The same dataset, one frame a clip: the image half of joint training.

    Item ``index`` is a random frame of the clip half the dataset away, a pure function of (seed, index), as
    (1, C, H, W): a step's images are of other clips than its videos, which have the same indices.

    Args:
        away: how far away, where half the length is not it: where ``clips`` goes through fewer clips again and again.
    """

    def __init__(self, clips: Dataset, seed: int = 0, away: int | None = None) -> None:
        self.clips, self.seed = clips, seed
        self.away = len(clips) // 2 if away is None else away

    @property
    def captions(self) -> Sequence[str]:
        return self.clips.captions

    @property
    def skipped(self) -> Sequence[Skip]:
        return self.clips.skipped

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Item:
        item = self.clips[(check_index(index, len(self)) + self.away) % len(self)]
        frame = int(generator(self.seed, "image", index).integers(item["video"].shape[0]))
        return {"video": item["video"][frame : frame + 1], "caption": item["caption"]}


def generator(seed: int, stream: str, index: int) -> np.random.Generator:
    """The random numbers of one item."""
    return np.random.default_rng([seed, STREAMS[stream], index])


def check_index(index: int, length: int) -> int:
    """The index itself; IndexError outside 0..length-1, so that plain iteration ends."""
    if not 0 <= index < length:
        raise IndexError(f"index {index} is outside 0..{length - 1}")
    return index
