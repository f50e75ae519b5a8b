"""Videos to latents and back, with an autoencoder of diffusers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nas.errors import NasError
from nas.text import LOADING_ERRORS, check_source, first_line, has_part
from search_spaces.space import Space

FRAMES = 8  # that an image autoencoder takes at a time
WINDOW, OVERLAP = 24, 8  # frames: what Allegro's autoencoder was trained on, and how far two windows overlap
SIDE_OVERLAP = 0.25  # of a window's side


class VideoAutoencoder:
    """One of diffusers' autoencoders, as it is used for videos.

    Args:
        model: ``AutoencoderKLAllegro``, which divides time too, or ``AutoencoderKL``, which takes frames one by one.
        source: where it came from, so that it can be loaded again.

    Attributes:
        time, space, channels: by how much it divides time and space, and channels of a latent.
    """

    def __init__(self, model: Any, source: str) -> None:
        self.model, self.source = model.eval().requires_grad_(False), source
        self.kind = type(model).__name__
        self.space = 2 ** (len(model.config.block_out_channels) - 1)
        self.time = int(model.config.temporal_compression_ratio) if self.kind == "AutoencoderKLAllegro" else 1
        self.channels = int(model.config.latent_channels)
        self._scale = float(model.config.scaling_factor)
        self._shift = float(getattr(model.config, "shift_factor", None) or 0.0)

    @cached_property
    def digest(self) -> str:
        """16 hex characters of its configuration and weights, wherever they lie."""
        return model_digest(self.model)

    @classmethod
    def load(cls, source: str) -> VideoAutoencoder:
        """By hub id or folder; of a pipeline its ``vae`` is taken.

        Raises:
            NasError: if it cannot be loaded, or is of a kind that is not known here.
        """
        import diffusers

        from nas.sample import no_bars

        try:
            check_source(source)
            part = {"subfolder": "vae"} if has_part(source, "vae") else {}
            with no_bars():
                kind = diffusers.AutoencoderKL.load_config(source, **part).get("_class_name")
                if kind not in KINDS:
                    raise NasError(
                        f"{source}: holds a {kind or 'model of no stated kind'}, not an autoencoder known here "
                        f"({', '.join(KINDS)})"
                    )
                model = getattr(diffusers, kind).from_pretrained(source, **part)
        except LOADING_ERRORS as error:
            if isinstance(error, NasError):
                raise
            raise NasError(
                f"{source}: no autoencoder could be loaded ({first_line(error)}); give a hub id or a folder with its "
                "config.json and weights"
            ) from error
        return cls(model, source)

    def to(self, device: torch.device | str) -> VideoAutoencoder:
        self.model.to(device)
        return self

    def check_fits(self, space: Space) -> None:
        """Refuse a space that was laid out for another autoencoder.

        Raises:
            NasError: naming the factors.
        """
        mine = (self.time, self.space, self.channels)
        wanted = (space.autoencoder.time, space.autoencoder.space, space.latent_channels)
        if mine != wanted:
            raise NasError(
                f"{self.source}: divides time by {mine[0]} and space by {mine[1]} with {mine[2]} channels, but "
                f"space {space.name} wants {wanted[0]}, {wanted[1]} and {wanted[2]}; give another autoencoder or space"
            )

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """(T, 3, H, W) in [-1, 1] -> (T/time, C, H/space, W/space): the posterior's mean, scaled to about unit size.

        A single frame is an image: where time is divided, it stands for as many equal frames as become one.
        """
        if video.shape[0] == 1:
            video = video.expand(self.time, -1, -1, -1)
        device = next(self.model.parameters()).device
        if self.kind == "AutoencoderKL":
            parts = [self.model.encode(part.to(device)).latent_dist.mean for part in video.split(FRAMES)]
            return ((torch.cat(parts) - self._shift) * self._scale).cpu()
        # diffusers tiles this model in whole steps of its stride and leaves zeros where the last tile does not reach.
        window, overlap = self._windows()
        moments = tiled(self._encoder, video.transpose(0, 1).to(device), window, overlap, (self.time, self.space))
        moments = self.model.quant_conv(moments.transpose(0, 1))
        return (moments[:, : self.channels] * self._scale).cpu()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """(t, C, h, w) -> (t * time, 3, H, W) in about [-1, 1]."""
        device = next(self.model.parameters()).device
        latents = latents.to(device, next(self.model.parameters()).dtype) / self._scale + self._shift
        if self.kind == "AutoencoderKL":
            return torch.cat([self.model.decode(part).sample for part in latents.split(FRAMES)])
        latents = self.model.post_quant_conv(latents).transpose(0, 1)
        window, overlap = self._windows()
        small = tuple(size // by for size, by in zip(window, (self.time, self.space, self.space), strict=True))
        apart = tuple(size // by for size, by in zip(overlap, (self.time, self.space, self.space), strict=True))
        return tiled(self._decoder, latents, small, apart, (-self.time, -self.space)).transpose(0, 1)

    def _windows(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        side = int(self.model.config.sample_size)
        apart = int(side * SIDE_OVERLAP) // self.space * self.space
        return (WINDOW, side, side), (OVERLAP, apart, apart)

    def _encoder(self, tile: Tensor) -> Tensor:
        return self.model.encoder(tile[None])[0]

    def _decoder(self, tile: Tensor) -> Tensor:
        return self.model.decoder(tile[None])[0]


KINDS = ("AutoencoderKL", "AutoencoderKLAllegro")


def tiled(
    run: Callable[[Tensor], Tensor],
    x: Tensor,
    window: tuple[int, ...],
    overlap: tuple[int, ...],
    factors: tuple[int, int],
) -> Tensor:
    """Run a network over (C, T, H, W) in overlapping windows that cover all of it, blended by linear ramps.

    Args:
        window, overlap: (T, H, W) of a window, and shared by two neighbours; what is smaller goes in one piece.
        factors: by how much time and space shrink; negative where they grow.
    """
    by = (factors[0], factors[1], factors[1])

    def out(size: int, axis: int) -> int:
        return size // by[axis] if by[axis] > 0 else size * -by[axis]

    sizes = x.shape[1:]
    starts = [tile_starts(sizes[axis], window[axis], overlap[axis]) for axis in range(3)]
    total: Tensor | None = None
    weights = torch.zeros(tuple(out(sizes[axis], axis) for axis in range(3)), device=x.device)
    for t in starts[0]:
        for top in starts[1]:
            for left in starts[2]:
                corner = (t, top, left)
                ends = tuple(min(sizes[axis], corner[axis] + window[axis]) for axis in range(3))
                tile = run(x[:, t : ends[0], top : ends[1], left : ends[2]])
                place = tuple(slice(out(corner[a], a), out(ends[a], a)) for a in range(3))
                weight = torch.ones((), device=x.device)
                for axis in range(3):
                    ramp = _ramp(
                        out(ends[axis] - corner[axis], axis),
                        out(overlap[axis], axis),
                        corner[axis] > 0,
                        ends[axis] < sizes[axis],
                    )
                    weight = weight[..., None] * ramp.to(x.device)
                if total is None:
                    total = tile.new_zeros((tile.shape[0], *weights.shape))
                total[(slice(None), *place)] += tile * weight
                weights[place] += weight
    assert total is not None
    return total / weights


def tile_starts(size: int, window: int, overlap: int) -> list[int]:
    """Where windows begin so that they cover everything; the last one ends where the data ends.

    >>> tile_starts(512, 320, 80)
    [0, 192]
    """
    if size <= window:
        return [0]
    step = window - overlap
    return [*range(0, size - window, step), size - window]


def _ramp(size: int, overlap: int, before: bool, after: bool) -> Tensor:
    ramp = torch.ones(size)
    if overlap:
        rise = (torch.arange(min(overlap, size)) + 1) / (overlap + 1)
        if before:
            ramp[: len(rise)] *= rise
        if after:
            ramp[size - len(rise) :] *= rise.flip(0)
    return ramp


def model_digest(model: Any) -> str:
    """16 hex characters of a model's configuration and weights; the same for a copy elsewhere."""
    config = {
        k: v for k, v in dict(model.config if not hasattr(model.config, "to_dict") else {}).items() if k[0] != "_"
    }
    digest = hashlib.sha256(json.dumps([type(model).__name__, config], sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def folder_or_hub(source: str) -> str:
    """A folder as an absolute path, so that it is found from elsewhere; a hub id as it is."""
    return str(Path(source).resolve()) if Path(source).exists() else source
