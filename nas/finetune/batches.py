"""Clips of a step: videos of one shape and images beside them, each a pure function of the step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nas.config import DataConfig
from nas.data import open_data
from nas.data.clip import ClipLike, images_of
from nas.data.lengths import Check
from nas.data.videos import clip_buckets
from nas.distributed import World
from nas.errors import NasError
from nas.finetune.config import StageConfig
from nas.flow import noise_levels
from nas.loader import Loader
from nas.sample import latent_shape
from nas.trainer import check_data, check_source
from search_spaces.space import Space


@dataclass(frozen=True)
class Batch:
    """video: (B, C, T, H, W) in [-1, 1], or latents; T = 1 for images; one caption a clip."""

    video: Tensor
    captions: list[str]


class Draws:
    """Random numbers of one step: drawn for the whole batch, of which each process takes its share.

    So several processes make the losses of one.
    """

    def __init__(self, generator: torch.Generator, world: World) -> None:
        self.generator, self.world = generator, world

    def _mine(self, count: int, whole: Callable[[int], Tensor]) -> Tensor:
        drawn = whole(count * self.world.size)
        return drawn[self.world.rank * count : (self.world.rank + 1) * count].to(self.world.device)

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers, of the shape of this process's clips."""
        shape = like.shape[1:]
        return self._mine(len(like), lambda count: torch.randn((count, *shape), generator=self.generator))

    def levels(self, count: int, mean: float, std: float) -> Tensor:
        """(count,) logit-normal noise levels."""
        return self._mine(count, lambda count: noise_levels(count, mean, std, self.generator))

    def choices(self, count: int, options: int) -> Tensor:
        """(count,) whole numbers below ``options``."""
        return self._mine(count, lambda count: torch.randint(options, (count,), generator=self.generator))

    def dropped(self, captions: Sequence[str], share: float) -> list[str]:
        """The captions with about ``share`` of them emptied."""
        keep = self._mine(len(captions), lambda count: torch.rand(count, generator=self.generator)) >= share
        return [text if kept else "" for text, kept in zip(captions, keep.tolist(), strict=True)]


class Batches:
    """Training clips in buckets of one shape each (``data.buckets``), and single frames as images.

    Args:
        space: of the model; every bucket must divide by its autoencoder and its lowest stage.
        data: where the clips come from; a cache of latents for a space that works in them. config: how many a step.
        world: the processes that share a step's clips. check: refuses captions before anything is decoded.

    Raises:
        NasError: if a bucket or the data does not fit the space, or the clips do not divide by the processes.
    """

    def __init__(
        self,
        space: Space,
        data: DataConfig,
        config: StageConfig,
        seed: int,
        world: World,
        check: Check | None = None,
    ) -> None:
        check_source(space, data.source)
        self.world = world
        for name, count in (("clips", config.clips), ("images", config.images)):
            if count % world.size:
                raise NasError(f"{name} must divide by the {world.size} processes that share it, but is {count}")
        self.clips: Sequence[ClipLike] = clip_buckets(space.clip("training"), data.buckets)
        for clip in self.clips:
            try:
                latent_shape(space, clip.frames, clip.height, clip.width)
            except NasError as error:
                raise NasError(f"data.buckets: {clip.frames}x{clip.height}x{clip.width}: {error}") from None
        self.data = open_data(data, space.clip("training"), "train", seed, check)
        check_data(space, self.data)
        self._videos = Loader(self.data, config.clips, world.share)
        self._images = Loader(images_of(self.data, seed + 1), config.images, world.share)

    @property
    def captions(self) -> Sequence[str]:
        """Every caption that may come."""
        return self.data.captions

    def videos(self, step: int) -> Batch:
        return self._take(self._videos, step)

    def pictures(self, step: int) -> Batch:
        return self._take(self._images, step)

    def _take(self, loader: Loader, step: int) -> Batch:
        batch = loader(step)
        return Batch(batch.video.transpose(1, 2).to(self.world.device), batch.captions)
