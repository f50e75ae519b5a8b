"""A video autoencoder whose decoder was searched: its encoder is its own, or a given autoencoder's that stays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import AutoencoderMixin, DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import Tensor, nn

from nas.pretrained.autoencoder import VideoAutoencoder
from nas.pretrained.kinds import model_class
from search_spaces.arrangement import Arrangement
from search_spaces.network import VideoNetwork
from search_spaces.space import Space

CERTAIN = -30.0  # logarithm of a variance that is none
AT_ONCE = 4  # frames that are decoded together where they need not be held


class SearchedAutoencoder(ModelMixin, AutoencoderMixin, ConfigMixin):
    """A searched decoder, frame by frame where it can be, behind an encoder.

    Takes and returns videos as diffusers has them: ``encode`` of ``(B, 3, T, H, W)`` in [-1, 1], ``decode`` of
    ``(B, C, t, h, w)``.

    Args:
        space: ``Space.to_json()`` of a space of decoders. arrangement: ``Arrangement.to_json()``.
        given: class and configuration of the autoencoder whose encoder stays; None where the space has its own.
        encoder_digest: of that autoencoder's configuration and weights: whose latents these are.
        latents_mean, latents_std: of each channel; a latent leaves as ``(latent - mean) / std``.

    Raises:
        SpaceError: if the arrangement does not fit the space.
    """

    _supports_gradient_checkpointing = False

    @register_to_config
    def __init__(
        self,
        space: dict[str, Any],
        arrangement: dict[str, Any],
        given: dict[str, Any] | None = None,
        encoder_digest: str = "",
        latents_mean: Sequence[float] | None = None,
        latents_std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.network = VideoNetwork(Space.from_json(space), Arrangement.from_json(arrangement))
        self.kept = _encoder(given) if given is not None else None

    @property
    def space(self) -> Space:
        return Space.from_json(self.config["space"])

    @property
    def arrangement(self) -> Arrangement:
        return Arrangement.from_json(self.config["arrangement"])

    @property
    def factors(self) -> tuple[int, int, int]:
        """By how much it divides time and space, and channels of a latent."""
        space = self.space
        return space.autoencoder.time, space.autoencoder.space, space.latent_channels

    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[Any]:
        """The posterior of ``(B, 3, T, H, W)``; of a given autoencoder it is its mean, for certain."""
        if self.kept is None:
            frames = x.shape[2]
            moments = self.network.run({"video": x.transpose(1, 2).flatten(0, 1), "frames": frames})
            moments = moments.unflatten(0, (len(x), -1)).transpose(1, 2)
        else:
            staying = VideoAutoencoder(self.kept, "the encoder that stays")
            means = torch.stack([staying.encode_raw(clip) for clip in x.transpose(1, 2)]).transpose(1, 2).to(x)
            moments = torch.cat([means, torch.full_like(means, CERTAIN)], dim=1)
        posterior = DiagonalGaussianDistribution(moments)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(self, z: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """``(B, C, t, h, w)`` latents, as ``encode`` gives them, to ``(B, 3, T, H, W)``.

        All frames are held as long as the stages look at each other's; from there on a few go at a time.
        """
        scaled = self.scaled(z).transpose(1, 2)
        frames = [self.frames_of(self.held_of(clip)) for clip in scaled]
        sample = torch.stack(frames).transpose(1, 2)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def scaled(self, z: Tensor) -> Tensor:
        """Latents (B, C, ...) as the decoder reads them: of a given encoder of about unit size, else as they are."""
        if self.kept is None:
            return z
        shape = (1, -1, *[1] * (z.dim() - 2))
        for name, change in (("latents_mean", torch.sub), ("latents_std", torch.div)):
            if self.config[name] is not None:
                z = change(z, torch.tensor(self.config[name], dtype=z.dtype, device=z.device).reshape(shape))
        return z

    def held_of(self, latents: Tensor) -> Tensor:
        """Scaled latents (t, C, h, w) of one clip to the frames that are held, (T, C', h', w')."""
        return self.network.run({"x": latents, "frames": len(latents), "part": "whole"})

    def frames_of(self, held: Tensor) -> Tensor:
        """Held frames (N, C', h', w'), any of them, to frames (N, 3, H, W)."""
        if self.all_held:
            return held
        several = held.split(AT_ONCE) if len(held) > AT_ONCE else [held]
        parts = [self.network.run({"x": few, "frames": len(few), "part": "frame"}) for few in several]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    @property
    def all_held(self) -> bool:
        """Whether every stage holds all frames, so that nothing is left to be done frame by frame."""
        return not any(part.by_frame for part in self.space.backbone.layout.parts)

    def forward(self, sample: Tensor) -> DecoderOutput:
        """A clip, encoded and decoded again."""
        encoded = cast(AutoencoderKLOutput, self.encode(sample))
        return cast(DecoderOutput, self.decode(encoded.latent_dist.mode()))


def _encoder(given: Mapping[str, Any]) -> Any:
    """A given autoencoder, not filled, without its decoder."""
    model = model_class(given["class"]).from_config(given["config"])
    model.decoder = nn.Identity()
    return model


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A model's configuration without what diffusers notes of its own."""
    return {name: value for name, value in config.items() if not name.startswith("_")}
