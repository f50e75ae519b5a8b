"""What each autoencoder of diffusers, and ours, needs to be asked: its factors, and how a clip goes in and out.

| class | time | first frame alone | a clip goes |
|---|---|---|---|
| AutoencoderKL, AutoencoderTiny, AutoencoderDC | 1 | no | frame by frame |
| AutoencoderKLTemporalDecoder (SVD) | 1 | no | in frame by frame, out in windows along time |
| AutoencoderKLAllegro | 4 | no | in windows along time |
| SearchedAutoencoder, ours | as its space | as its space | whole along time |
| AutoencoderKLLTXVideo, -Wan, -CogVideoX, -HunyuanVideo, -Mochi | 8, 4, 4, 4, 6 | yes | whole along time |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

FRAMES = 8  # that an image autoencoder takes at a time
WINDOW, OVERLAP = 24, 8  # frames: what Allegro's autoencoder was trained on, and how far two windows overlap
SIDE_OVERLAP = 0.25  # of a window's side
LARGE, MEDIUM = 1024, 512  # pixels of a window's side: of images, of videos


@dataclass(frozen=True)
class Kind:
    """How a class is used; models are diffusers' own.

    Attributes:
        factors: model to (time, space, channels of a latent).
        encode: model, (3, T, H, W) to (C, t, h, w), the posterior's mean; unscaled. decode: the way back.
        causal: whether the first frame becomes a latent of its own, or what says so of a model.
        windows: whether time goes in ``WINDOW`` frames.
        tile: largest side in one piece, in pixels; 0 takes the model's ``sample_size``.
        path: ``module:Class`` of one that is ours; empty for diffusers' own.
    """

    factors: Callable[[Any], tuple[int, int, int]]
    encode: Callable[[Any, Tensor], Tensor]
    decode: Callable[[Any, Tensor], Tensor]
    causal: bool | Callable[[Any], bool] = False
    windows: bool = False
    tile: int = LARGE
    path: str = ""


def model_class(kind: str) -> Any:
    """The class of a kind: diffusers', or ours.

    Raises:
        KeyError: if the kind is not known here.
    """
    if not KINDS[kind].path:
        import diffusers

        return getattr(diffusers, kind)
    module, _, name = KINDS[kind].path.partition(":")
    return getattr(import_module(module), name)


def _by_frames(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """(C, T, H, W) through a network of images, some frames at a time."""
    return torch.cat([run(part) for part in x.transpose(0, 1).split(FRAMES)]).transpose(0, 1)


def _encode_images(model: Any, x: Tensor) -> Tensor:
    return _by_frames(lambda part: model.encode(part).latent_dist.mean, x)


def _decode_images(model: Any, z: Tensor) -> Tensor:
    return _by_frames(lambda part: model.decode(part).sample, z)


def _encode_video(model: Any, x: Tensor) -> Tensor:
    return model.encode(x[None]).latent_dist.mean[0]


def _decode_video(model: Any, z: Tensor) -> Tensor:
    return model.decode(z[None]).sample[0]


def _decode_ltx(model: Any, z: Tensor) -> Tensor:
    """Where the decoder is told a noise level (LTX 0.9.1 and later), it is told none, as its pipeline does."""
    level = torch.zeros(1, device=z.device, dtype=z.dtype) if model.config.timestep_conditioning else None
    return model.decode(z[None], level).sample[0]


def _decode_svd(model: Any, z: Tensor) -> Tensor:
    return model.decode(z.transpose(0, 1), num_frames=z.shape[1]).sample.transpose(0, 1)


def _encode_allegro(model: Any, x: Tensor) -> Tensor:
    # diffusers tiles this model in whole steps of its stride and leaves zeros where the last tile does not reach.
    moments = model.quant_conv(model.encoder(x[None])[0].transpose(0, 1))
    return moments[:, : int(model.config.latent_channels)].transpose(0, 1)


def _decode_allegro(model: Any, z: Tensor) -> Tensor:
    return model.decoder(model.post_quant_conv(z.transpose(0, 1)).transpose(0, 1)[None])[0]


def _halvings(stages: Any) -> int:
    return int(2 ** (len(stages) - 1))


def _image_factors(model: Any) -> tuple[int, int, int]:
    return 1, _halvings(model.config.block_out_channels), int(model.config.latent_channels)


def _encoder_factors(model: Any) -> tuple[int, int, int]:
    return 1, _halvings(model.config.encoder_block_out_channels), int(model.config.latent_channels)


def _group_factors(model: Any) -> tuple[int, int, int]:
    config = model.config
    return int(config.temporal_compression_ratio), _halvings(config.block_out_channels), int(config.latent_channels)


def _stated_factors(model: Any) -> tuple[int, int, int]:
    return (
        int(model.temporal_compression_ratio),
        int(model.spatial_compression_ratio),
        int(model.config.latent_channels),
    )


def _wan_factors(model: Any) -> tuple[int, int, int]:
    config = model.config
    return 2 ** sum(config.temperal_downsample), _halvings(config.dim_mult) * (config.patch_size or 1), config.z_dim


def _causal(factors: Callable[[Any], tuple[int, int, int]], decode: Any = _decode_video) -> Kind:
    return Kind(factors, _encode_video, decode, causal=True, tile=MEDIUM)


KINDS: dict[str, Kind] = {
    "AutoencoderKL": Kind(_image_factors, _encode_images, _decode_images),
    "AutoencoderKLAllegro": Kind(_group_factors, _encode_allegro, _decode_allegro, windows=True, tile=0),
    "AutoencoderKLLTXVideo": _causal(_stated_factors, _decode_ltx),
    "AutoencoderKLWan": _causal(_wan_factors),
    "AutoencoderKLCogVideoX": _causal(_group_factors),
    "AutoencoderKLHunyuanVideo": _causal(_stated_factors),
    "AutoencoderKLMochi": _causal(_stated_factors),
    "AutoencoderKLTemporalDecoder": Kind(_image_factors, _encode_images, _decode_svd, windows=True),
    "AutoencoderDC": Kind(
        _encoder_factors, lambda model, x: _by_frames(lambda part: model.encode(part).latent, x), _decode_images
    ),
    "SearchedAutoencoder": Kind(
        lambda model: model.factors,
        _encode_video,
        _decode_video,
        causal=lambda model: model.space.autoencoder.causal,
        tile=4 * LARGE,
        path="nas.pretrained.searched:SearchedAutoencoder",
    ),
    "AutoencoderTiny": Kind(
        _encoder_factors, lambda model, x: _by_frames(lambda part: model.encode(part).latents, x), _decode_images
    ),
}
