"""Clips of a step: videos of one shape and images beside them, each a pure function of the step."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nas.config import DataConfig
from nas.data import open_data
from nas.data.cached import check_data, check_source
from nas.data.clip import ClipLike, images_of
from nas.data.lengths import Check
from nas.data.tracks import with_tracks
from nas.data.videos import clip_buckets
from nas.errors import NasError
from nas.training.config import StageConfig
from nas.training.distributed import World
from nas.training.draws import Draws
from nas.training.loader import Loader
from search_spaces.errors import SpaceError
from search_spaces.space import Space, latent_shape

VALIDATED, TURNS = 8, 2  # clips of a batch of a validation, and batches


@dataclass(frozen=True)
class Batch:
    """video: (B, C, T, H, W) in [-1, 1], or latents; T = 1 for images; one caption a clip; further tensors by name."""

    video: Tensor
    captions: list[str]
    extras: Mapping[str, Tensor] = field(default_factory=dict)


class Batches:
    """Training clips in buckets of one shape each (``data.buckets``), and single frames as images.

    Args:
        space: of the model; every bucket must divide by its autoencoder and its lowest stage.
        data: where the clips come from; a cache of latents for a space that works in them. config: how many a step.
        world: the processes that share a step's clips. check: refuses captions before anything is decoded.
        needs: what an item must hold beside a video and its caption; see ``nas.data.tracks``.

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
        needs: Collection[str] = (),
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
            except SpaceError as error:
                raise NasError(f"data.buckets: {clip.frames}x{clip.height}x{clip.width}: {error}") from None
        self.data = open_data(data, space.clip("training"), "train", seed, check)
        check_data(space, self.data)
        if needs:
            self.data = with_tracks(self.data, needs)
        self._videos = Loader(self.data, config.clips, world.share, config.workers)
        self._images = Loader(images_of(self.data, seed + 1), config.images, world.share, config.workers)
        self.loaders = (self._videos, self._images)
        self._held: Loader | None = None
        if config.validate_every:  # every process takes all of them, so that all agree on the best
            held = open_data(data, space.clip("training"), "validation", seed, check)
            held = with_tracks(held, needs) if needs else held
            self._held = Loader(held, min(VALIDATED, len(held)), range)

    @property
    def captions(self) -> Sequence[str]:
        """Every caption that may come."""
        return self.data.captions

    def videos(self, step: int) -> Batch:
        return self._take(self._videos, step)

    def pictures(self, step: int) -> Batch:
        return self._take(self._images, step)

    def held(self, turn: int) -> Batch | None:
        """Videos that are not trained on, if any are kept for validation."""
        return self._take(self._held, turn) if self._held is not None else None

    def _take(self, loader: Loader, step: int) -> Batch:
        batch = loader(step)
        device = self.world.device
        extras = {name: tensor.to(device) for name, tensor in batch.extras.items()}
        return Batch(batch.video.transpose(1, 2).to(device), batch.captions, extras)


def validated(batches: Batches, loss: Callable[[Batch, Draws], Tensor]) -> float | None:
    """The mean loss on unseen videos with the same random numbers each time; None where none are kept."""
    alone, found = World(0, 1, batches.world.device), []
    for turn in range(TURNS):
        batch = batches.held(turn)
        if batch is not None:
            found.append(float(loss(batch, Draws(torch.Generator().manual_seed(turn), alone))))
    return statistics.fmean(found) if found else None
