"""The images that a UNet is pruned on: stills of any data source, in pixels or latents, with their text states."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from nas.errors import NasError
from nas.prune.config import PruneSettings
from nas.prune.sensitivity import Noisy, noisy_batches
from nas.tasks.noise import Diffusion
from search_spaces.space import Space


class Images:
    """Images, or stills in latents, with their text states.

    Raises:
        NasError: if the data is of another kind than the space, or its text has no encoder.
    """

    def __init__(self, space: Space, settings: PruneSettings, source: str, text: str | None) -> None:
        from nas.data import open_data
        from nas.data.cached import CachedLatents, CachedText, check_data, check_source
        from nas.data.clip import images_of
        from nas.data.lengths import fits
        from nas.pretrained.hub import has_part
        from nas.pretrained.text import TextEncoder
        from nas.training.distributed import World
        from nas.training.loader import Loader

        check_source(space, settings.data.source)
        self.config, self.seed = settings.prune, settings.seed
        self.family = space.backbone.family
        self.world = World.open(self.config.device, "prune.device")
        self.text: Any = None
        if settings.data.source != "cache":
            if text is None and not has_part(source, "text_encoder"):
                raise NasError(
                    f"{source}: a UNet alone has no text encoder; name one with --text, or cache the data first"
                )
            self.text = TextEncoder.pretrained(text or source).to(self.world.device)
        check = fits(self.text.tokenizer, self.text.max_tokens) if self.text is not None else None
        data = open_data(settings.data, space.clip("training"), "train", settings.seed, check)
        check_data(space, data)
        if isinstance(data, CachedLatents):
            self.text = CachedText(data.cache).to(self.world.device)
        stills = images_of(data, settings.seed + 1)
        self._training = Loader(stills, self.config.images, self.world.share, self.config.workers)
        self.loaders = (self._training,)
        self._calibration = Loader(images_of(data, settings.seed + 2), self.config.batch, self.world.share)

    def training(self, step: int, change: Callable[[list[str]], list[str]]) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) and (B, L, D) of a step, its captions changed first."""
        batch = self._training(step)
        return self._taken(batch.video, change(batch.captions))

    def calibration(self) -> Iterator[Noisy]:
        """Noisy images, the same in every call."""
        count = -(-self.config.calibration // self.config.batch)
        diffusion, generator = Diffusion(self.config.prediction), torch.Generator().manual_seed(self.seed)

        def batch(turn: int) -> tuple[Tensor, Tensor]:
            found = self._calibration(turn)
            return self._taken(found.video, found.captions)

        return noisy_batches(batch, count, diffusion, generator)

    @torch.no_grad()
    def _taken(self, video: Tensor, captions: list[str]) -> tuple[Tensor, Tensor]:
        return video[:, 0].to(self.world.device), self.text(captions)
