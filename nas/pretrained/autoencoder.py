"""Videos to latents and back, with any of diffusers' autoencoders whose statistics are known."""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nas.errors import NasError
from nas.pretrained.hub import model_digest
from nas.pretrained.kinds import KINDS, OVERLAP, SIDE_OVERLAP, WINDOW, model_class
from nas.pretrained.loading import load_weights, loading, open_part
from nas.pretrained.tiles import tiled
from search_spaces.space import Autoencoder, Space

__all__ = ["KINDS", "VideoAutoencoder", "folder_or_hub", "load_model", "model_digest", "tiled"]


class VideoAutoencoder:
    """One of diffusers' autoencoders, as it is used for videos.

    Args:
        model: of a class in ``KINDS``: of videos, which may divide time and code the first frame alone, or of images,
            which takes frames one by one.
        source: where it came from, so that it can be loaded again.

    Attributes:
        time, space, channels: by how much it divides time and space, and channels of a latent.
        causal: whether the first frame becomes a latent of its own, and each ``time`` frames after it one more.
        offset, gain: (1, C, 1, 1): a latent leaves as ``(latent - offset) * gain``, of about unit size.
        tile: pixels; larger sides go in overlapping windows.

    Raises:
        NasError: if the class is unknown, or its statistics are not there.
    """

    def __init__(self, model: Any, source: str) -> None:
        self.model, self.source = model.eval().requires_grad_(False), source
        self.kind = type(model).__name__
        if self.kind not in KINDS:
            raise NasError(_unknown(source, self.kind))
        self._how = KINDS[self.kind]
        self.time, self.space, self.channels = self._how.factors(model)
        how = self._how.causal
        self.causal = how if isinstance(how, bool) else how(model)
        self.offset, self.gain = _statistics(model, self.channels, source)
        self.tile = self._how.tile or int(model.config.sample_size)

    @cached_property
    def digest(self) -> str:
        """16 hex characters of its configuration and weights, wherever they lie: whose latents they are.

        A searched decoder behind a given encoder has that autoencoder's.
        """
        if self.model.config.get("encoder_digest"):
            return str(self.model.config["encoder_digest"])
        return model_digest(self.model)

    @property
    def factors(self) -> Autoencoder:
        """What a space says of it."""
        return Autoencoder(self.time, self.space, causal=self.causal)

    @classmethod
    def load(cls, source: str) -> VideoAutoencoder:
        """By hub id or folder; of a pipeline its ``vae`` is taken.

        Raises:
            NasError: if it cannot be loaded, or is of a kind that is not known here.
        """
        with loading(source, "autoencoder", "give a hub id or a folder with its config.json and weights"):
            folder, config = open_part(source, "vae")
            return cls(load_model(folder, source, config), source)

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
        if self.causal != space.autoencoder.causal and self.time > 1:
            raise NasError(
                f"{self.source}: {'codes' if self.causal else 'does not code'} the first frame alone, but space "
                f"{space.name} says {'otherwise' if self.causal else 'so'}; state autoencoder.causal: "
                f"{str(self.causal).lower()} in the space, and clips of that length"
            )

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """(T, 3, H, W) in [-1, 1] -> (t, C, H/space, W/space): the posterior's mean, scaled to about unit size.

        T is t * time, or 1 + (t - 1) * time of a causal one. A single frame is an image: where time is divided without
        a frame that stands alone, it stands for as many equal frames as become one.

        Raises:
            NasError: if T, H or W does not divide, or the model divides otherwise than its configuration says.
        """
        latents = self.encode_raw(video)
        return ((latents - self.offset.to(latents)) * self.gain.to(latents)).cpu()

    @torch.no_grad()
    def encode_raw(self, video: Tensor) -> Tensor:
        """``encode``, as the model itself gives its latents: not scaled, and where the model is."""
        if video.shape[0] == 1 and not self.causal:
            video = video.expand(self.time, -1, -1, -1)
        frames, _, height, width = video.shape
        alone = int(self.causal)
        if (frames - alone) % self.time or height % self.space or width % self.space:
            raise NasError(
                f"{self.source}: frames must be {'1 + ' * alone}a multiple of {self.time} and sides of {self.space}, "
                f"but the clip is {frames}x{height}x{width}; cut it so"
            )
        weight = next(self.model.parameters())
        window, overlap = self._windows(frames)
        latents = tiled(
            self._encode_tile,
            video.transpose(0, 1).to(weight.device, weight.dtype),
            window,
            overlap,
            (self.time, self.space),
            self.causal,
        )
        return latents.transpose(0, 1)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """(t, C, h, w) -> (T, 3, H, W) in about [-1, 1]; T as ``encode`` takes it."""
        weight = next(self.model.parameters())
        latents = latents.to(weight.device, weight.dtype)
        latents = latents / self.gain.to(latents) + self.offset.to(latents)
        window, overlap = self._windows(self.factors.pixel_frames(latents.shape[0]))
        by = (self.time, self.space, self.space)
        small = (latents.shape[0] if self.causal else window[0] // by[0], window[1] // by[1], window[2] // by[2])
        apart = tuple(size // factor for size, factor in zip(overlap, by, strict=True))
        frames = tiled(self._decode_tile, latents.transpose(0, 1), small, apart, (-self.time, -self.space), self.causal)
        return frames.transpose(0, 1)

    def _windows(self, frames: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        side = max(self.tile // self.space, 2) * self.space
        apart = int(side * SIDE_OVERLAP) // self.space * self.space
        whole = self.causal or not self._how.windows
        return (frames if whole else WINDOW, side, side), (0 if whole else OVERLAP, apart, apart)

    def _encode_tile(self, tile: Tensor) -> Tensor:
        _, frames, height, width = tile.shape
        return self._sized(
            self._how.encode(self.model, tile),
            (self.channels, self.factors.latent_frames(frames), height // self.space, width // self.space),
        )

    def _decode_tile(self, tile: Tensor) -> Tensor:
        frames = self.factors.pixel_frames(tile.shape[1])
        made = self._how.decode(self.model, tile)
        # CogVideoX makes a whole group of the first latent where their number is even; its last frame is the one.
        made = made[:, -frames:] if self.causal else made
        return self._sized(made, (3, frames, tile.shape[2] * self.space, tile.shape[3] * self.space))

    def _sized(self, made: Tensor, wanted: tuple[int, ...]) -> Tensor:
        if tuple(made.shape) != wanted:
            raise NasError(
                f"{self.source}: the {self.kind} gives {'x'.join(map(str, made.shape))} where its config.json says "
                f"{'x'.join(map(str, wanted))} (channels, frames, height, width); get the model anew"
            )
        return made


def load_model(folder: Path, source: str, config: dict[str, Any]) -> Any:
    """The autoencoder of a folder, of a class in ``KINDS``, in float32.

    Raises:
        NasError: if its class is unknown, or its weights do not fill it.
    """
    kind = config.get("_class_name")
    if kind not in KINDS:
        raise NasError(_unknown(source, kind))
    return load_weights(model_class(kind), folder, source).eval()


def _unknown(source: str, kind: Any) -> str:
    return (
        f"{source}: holds a {kind or 'model of no stated kind'}, not an autoencoder known here: nothing says how its "
        f"latents are scaled; give one of {', '.join(KINDS)}"
    )


def _statistics(model: Any, channels: int, source: str) -> tuple[Tensor, Tensor]:
    """(1, C, 1, 1) offset and gain of its latents: of per-channel mean and deviation, of scaling and shift factors.

    diffusers' pipelines scale by ``(latent - mean) / std * scaling_factor`` and ``(latent - shift) * scaling_factor``.
    """
    config, buffers = model.config, dict(model.named_buffers())

    def channel(name: str, otherwise: float) -> Tensor:
        found = buffers.get(name, config.get(name))
        if found is None:
            return torch.full((channels,), otherwise)
        values = torch.as_tensor(found, dtype=torch.float32).reshape(-1).cpu()
        if values.numel() != channels:
            raise NasError(f"{source}: {name} has {values.numel()} values for {channels} channels; get the model anew")
        return values

    scale, shift = config.get("scaling_factor"), config.get("shift_factor")
    deviations = "latents_std" in buffers or config.get("latents_std") is not None
    if scale is None and not deviations:
        raise NasError(
            f"{source}: its config.json states neither scaling_factor nor latents_std, so how its latents are scaled "
            "is not known; add what the model was made with"
        )
    std = channel("latents_std", 1.0)
    gain = (1.0 if scale is None else float(scale)) / std
    offset = channel("latents_mean", 0.0) + (0.0 if shift is None else float(shift)) * std
    if not all(map(math.isfinite, [*gain.tolist(), *offset.tolist()])) or not bool((gain != 0).all()):
        raise NasError(f"{source}: its scaling factors or statistics are zero or not finite; get the model anew")
    return offset.reshape(1, -1, 1, 1), gain.reshape(1, -1, 1, 1)


def folder_or_hub(source: str) -> str:
    """A folder as an absolute path, so that it is found from elsewhere; a hub id as it is."""
    return str(Path(source).resolve()) if Path(source).exists() else source
