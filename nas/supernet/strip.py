"""Strips of sampled frames, for whoever watches a training."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from nas.data.clip import Dataset
from nas.errors import NasError
from nas.media import to_uint8
from nas.training.watch import GAP

if TYPE_CHECKING:
    from nas.supernet.supernet import Supernet
    from search_spaces.arrangement import Arrangement


@torch.no_grad()
def draw_strip(
    supernet: Supernet,
    text: Any,
    data: Dataset,
    path: Arrangement,
    device: torch.device,
    warn: Callable[[str], None],
) -> tuple[NDArray[np.uint8], list[str]] | None:
    """A few clips as the task shows them, one a row, along a path and from the same random numbers each time.

    Latents are decoded by the autoencoder that made them; where it cannot be loaded the strip is left out.

    Returns:
        (height, width, 3) bytes and the captions from top to bottom, or None.
    """
    from nas.data.cached import CachedLatents

    shown = supernet.task.samples(lambda inputs: supernet.predict(inputs, path), text, data, supernet.space, device)
    sample, captions = shown.videos, shown.captions
    if isinstance(data, CachedLatents):
        try:
            autoencoder = data.autoencoder(device)
        except NasError as error:
            warn(f"no strip of samples: {error}")
            return None
        sample = torch.stack([autoencoder.decode(one) for one in sample])
    pixels = to_uint8(((sample.float() + 1) / 2).permute(0, 1, 3, 4, 2).cpu().numpy())
    factor = max(1, 64 // pixels.shape[2])
    pixels = pixels.repeat(factor, axis=2).repeat(factor, axis=3)
    edged = np.pad(pixels, ((0, 0), (0, 0), (0, GAP), (0, GAP), (0, 0)), constant_values=255)
    picture = np.concatenate([np.concatenate(list(video), axis=1) for video in edged], axis=0)
    return np.ascontiguousarray(picture[:-GAP, :-GAP]), captions
