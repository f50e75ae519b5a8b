"""What every dataset here gives, and images as clips of one frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypedDict

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

TRAIN_LENGTH = 1 << 20  # nominal: every index is another random clip
STREAMS = {"train": 0, "validation": 1, "image": 2}  # random streams that never meet


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
    """video: (T, C, H, W) float32 in [-1, 1], C = 3 (red, green, blue)."""

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


class Images:
    """The same dataset, one frame a clip: the image half of joint training.

    Item ``index`` is a random frame of the clip at ``index``, a pure function of (seed, index), as (1, C, H, W).
    """

    def __init__(self, clips: Dataset, seed: int = 0) -> None:
        self.clips, self.seed = clips, seed

    @property
    def captions(self) -> Sequence[str]:
        return self.clips.captions

    @property
    def skipped(self) -> Sequence[Skip]:
        return self.clips.skipped

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Item:
        item = self.clips[index]
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
