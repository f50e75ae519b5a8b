"""Clips of a step: one bucket of videos and one of images, each a pure function of the step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nas.config import DataConfig
from nas.data import Dataset, Images, open_data
from nas.errors import NasError
from nas.finetune.config import BUCKET, StageConfig
from nas.sample import latent_shape
from search_spaces.space import Clip, Space


@dataclass(frozen=True)
class Batch:
    """video: (B, C, T, H, W) in [-1, 1], T = 1 for images; one caption a clip."""

    video: Tensor
    captions: list[str]


class Batches:
    """Training clips in buckets of one shape each, and frames of other clips as images.

    Args:
        space: of the model; every bucket must divide by its autoencoder and its lowest stage.
        data: where the clips come from. config: buckets and how many clips a step.

    Raises:
        NasError: if the space works in latents, or a bucket does not fit.
    """

    def __init__(self, space: Space, data: DataConfig, config: StageConfig, seed: int, device: torch.device) -> None:
        if space.autoencoder.space != 1 or space.autoencoder.time != 1:
            raise NasError(
                f"space {space.name} works in the latents of an autoencoder, and fine-tuning reads pixels only; "
                "fine-tune a model whose autoencoder divides by 1"
            )
        self.config, self.seed, self.device = config, seed, device
        self.clips = [bucket_clip(text, space) for text in config.buckets] or [space.clip("training")]
        self.buckets: list[Dataset] = [open_data(data, clip, "train", seed) for clip in self.clips]
        self.images: list[Dataset] = [Images(bucket, seed + 1) for bucket in self.buckets]

    @property
    def captions(self) -> list[str]:
        """Every caption that may come."""
        return list(dict.fromkeys(caption for bucket in self.buckets for caption in bucket.captions))

    def videos(self, step: int) -> Batch:
        return self._take(self.buckets, step, self.config.clips)

    def pictures(self, step: int) -> Batch:
        return self._take(self.images, step, self.config.images)

    def _take(self, buckets: Sequence[Dataset], step: int, count: int) -> Batch:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + step) % 2**63)
        data = buckets[int(torch.randint(len(buckets), (1,), generator=generator))]
        items = [data[(step * count + i) % len(data)] for i in range(count)]
        video = torch.stack([item["video"] for item in items]).transpose(1, 2)
        return Batch(video.to(self.device), [item["caption"] for item in items])


def bucket_clip(text: str, space: Space) -> Clip:
    """The clip of a bucket, at the frame rate of the space's training clip.

    Raises:
        NasError: if the network cannot take that shape, naming what it must divide by.
    """
    match = BUCKET.fullmatch(text)
    assert match is not None, text  # the configuration was checked
    frames, height, width = (int(number) for number in match.groups())
    try:
        latent_shape(space, frames, height, width)
    except NasError as error:
        raise NasError(f"bucket {text}: {error}") from None
    return Clip(frames, height, width, space.clip("training").fps)
