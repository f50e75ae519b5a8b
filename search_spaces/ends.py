"""The two ends of a video model: the text encoder before the network, and the decoder after it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from search_spaces.errors import SpaceError, unknown

if TYPE_CHECKING:
    from torch import Tensor, nn

    from search_spaces.workload import Workload

#: Words of the vocabulary that the ``small`` encoder is measured with; a run's own has those of its captions.
SMALL_VOCABULARY = 256


@dataclass(frozen=True)
class TextEncoderSpec:
    """A text encoder by its sizes. ``dim`` 0 takes the space's width, with four times it inside and heads of 16.

    ``parts`` names encoders whose states stand side by side, ``dim`` being the sum of their widths.
    """

    layers: int
    dim: int
    heads: int
    inner: int
    vocabulary: int
    tokens: int
    summary: str
    parts: tuple[str, ...] = ()


@dataclass(frozen=True)
class DecoderSpec:
    """A video decoder without loading it.

    Attributes:
        channels: of its latents. time, space: what it multiplies time and space by.
        tile: most latent (frames, height, width) decoded in one call; ``overlap`` is shared by neighbouring tiles.
        alive: channels at full resolution that one of its operations holds at the least, in and out together.
    """

    channels: int
    time: int
    space: int
    tile: tuple[int, int, int]
    overlap: tuple[int, int, int]
    alive: int
    build: Callable[[], nn.Module]
    summary: str

    def tile_of(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """The latents that one call decodes for a clip of these latents."""
        return min(frames, self.tile[0]), min(height, self.tile[1]), min(width, self.tile[2])

    def calls(self, frames: int, height: int, width: int) -> int:
        """How many calls decode the whole clip, tiles overlapping by ``overlap`` along every side that is cut."""
        sizes = zip((frames, height, width), self.tile, self.overlap, strict=True)
        return math.prod(
            1 if size <= tile else math.ceil((size - tile) / (tile - shared)) + 1 for size, tile, shared in sizes
        )


def _allegro() -> nn.Module:
    from diffusers.models.autoencoders.autoencoder_kl_allegro import AllegroDecoder3D

    return portable_decoder(AllegroDecoder3D())


def portable_decoder(decoder: nn.Module) -> nn.Module:
    """Allegro's decoder, changed in place so that neither torch nor Core ML makes a tensor of over five axes of it.

    Upsampling along time would; and so would normalisation, which Core ML spells out with one axis more than its input
    has. What it computes stays the same.
    """
    from diffusers.models.autoencoders.autoencoder_kl_allegro import AllegroTemporalConvLayer
    from torch import nn

    for layer in decoder.modules():
        if isinstance(layer, AllegroTemporalConvLayer) and layer.up_sample:
            vars(layer)["forward"] = partial(_twice_the_frames, layer)
        elif isinstance(layer, nn.GroupNorm):
            vars(layer)["forward"] = partial(_flat_norm, layer)
    return decoder


def _flat_norm(norm: Any, x: Tensor) -> Tensor:
    """``GroupNorm.forward`` with time and space as one axis."""
    import torch

    flat = torch.nn.functional.group_norm(x.flatten(2), norm.num_groups, norm.weight, norm.bias, norm.eps)
    return flat.reshape(x.shape)


def _twice_the_frames(layer: Any, x: Tensor, batch_size: int) -> Tensor:
    """``AllegroTemporalConvLayer.forward`` for upsampling, of one clip: (T, C, H, W) to (2T, C, H, W)."""
    import torch

    clip = x.permute(1, 0, 2, 3)[None]
    channels, frames, height, width = clip.shape[1:]
    shape = (1, channels, 2 * frames, height, width)
    pixels = clip.reshape(channels, frames, 1, height * width)
    identity = torch.cat((pixels, pixels), dim=2).reshape(shape)
    y = layer.conv1(clip).reshape(2, channels, frames, height * width).permute(1, 2, 0, 3).reshape(shape)
    for convolution in (layer.conv2, layer.conv3, layer.conv4):
        y = convolution(layer._pad_temporal_dim(y))
    return (identity + y)[0].permute(1, 0, 2, 3)


TEXT_ENCODERS: dict[str, TextEncoderSpec] = {
    "small": TextEncoderSpec(2, 0, 0, 0, SMALL_VOCABULARY, 0, "two layers of the space's width, trained along"),
    "clip_vit_l14": TextEncoderSpec(12, 768, 12, 3072, 49408, 77, "the text model of CLIP ViT-L/14, as SD v1.5 uses"),
    "clip_vit_bigg14": TextEncoderSpec(32, 1280, 20, 5120, 49408, 77, "the text model of OpenCLIP ViT-bigG/14"),
    "clip_l_and_g": TextEncoderSpec(
        0, 2048, 0, 0, 49408, 77, "both CLIP text models, as SDXL uses", ("clip_vit_l14", "clip_vit_bigg14")
    ),
}
DECODERS: dict[str, DecoderSpec] = {
    # diffusers cuts a clip into 24 frames of 320x320; a phone has no room for those, so tiles are smaller here.
    "allegro": DecoderSpec(
        4, 4, 8, (6, 24, 24), (2, 4, 4), 256 + 128, _allegro, "diffusers' AutoencoderKLAllegro, decoder half"
    ),
}


def text_encoder_spec(name: str) -> TextEncoderSpec:
    """The text encoder of that name.

    Raises:
        SpaceError: if there is none.
    """
    if name not in TEXT_ENCODERS:
        raise SpaceError(unknown("text encoder", name, TEXT_ENCODERS))
    return TEXT_ENCODERS[name]


def decoder_spec(name: str) -> DecoderSpec:
    """The decoder of that name.

    Raises:
        SpaceError: if there is none.
    """
    if name not in DECODERS:
        raise SpaceError(unknown("decoder", name, DECODERS))
    return DECODERS[name]


def text_model(name: str, tokens: int, dim: int, vocabulary: int = 0, **marks: int) -> nn.Module:
    """The transformers model behind a text encoder, freshly initialised: what is measured and what is trained are one.

    Args:
        name: in ``TEXT_ENCODERS``. tokens, dim: of the space's text; an encoder of its own sizes keeps those.
        vocabulary: words, where they are not the spec's. marks: ``bos_token_id`` and the like of a tokenizer.

    Raises:
        SpaceError: if there is no such encoder.
    """
    from transformers import CLIPTextConfig, CLIPTextModel

    spec = text_encoder_spec(name)
    words = vocabulary or spec.vocabulary
    config = CLIPTextConfig(
        vocab_size=words,
        hidden_size=spec.dim or dim,
        intermediate_size=spec.inner or 4 * dim,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads or max(1, dim // 16),
        max_position_embeddings=spec.tokens or tokens,
        projection_dim=spec.dim or dim,
        **{"bos_token_id": words - 2, "eos_token_id": words - 1, **marks},
    )
    return CLIPTextModel(config)


def check_decoder(autoencoder: Any, channels: int) -> None:
    """Whether the decoder that a space names is one for its autoencoder, whose latents have so many channels.

    Raises:
        SpaceError: naming what differs.
    """
    decoder = decoder_spec(autoencoder.decoder)
    stated = (autoencoder.time, autoencoder.space, channels)
    if autoencoder.causal:
        raise SpaceError(
            f"autoencoder.decoder {autoencoder.decoder} makes {decoder.time} frames of every latent, but the space "
            "says causal: the first frame alone; leave one of the two out"
        )
    if stated != (decoder.time, decoder.space, decoder.channels):
        raise SpaceError(
            f"autoencoder.decoder {autoencoder.decoder} multiplies time by {decoder.time} and space by "
            f"{decoder.space} and reads {decoder.channels} channels, but the space states {stated}"
        )


def build_text_encoder(name: str, tokens: int, dim: int) -> tuple[nn.Module, int]:
    """A module from token numbers (B, L) to states (B, L, D), with random weights; and its vocabulary's size."""
    import torch
    from torch import nn

    spec = text_encoder_spec(name)
    if spec.parts:
        return _side_by_side([build_text_encoder(part, tokens, 0)[0] for part in spec.parts]), spec.vocabulary

    class States(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = text_model(name, tokens, dim)
            # Its own are a slice of a buffer, which Core ML's converter cannot read.
            self.register_buffer("places", torch.arange(tokens)[None], persistent=False)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.model(input_ids=tokens, position_ids=self.places).last_hidden_state

    return States(), spec.vocabulary


def _side_by_side(encoders: Sequence[nn.Module]) -> nn.Module:
    """Several text encoders of the same tokens as one, their states side by side."""
    import torch
    from torch import nn

    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoders = nn.ModuleList(encoders)

        def forward(self, tokens: Tensor) -> Tensor:
            return torch.cat([encoder(tokens) for encoder in self.encoders], dim=-1)

    return Joined()


def build_decoder(name: str) -> nn.Module:
    """A module from latents (T, C, H, W) of one clip to its frames (T x time, 3, H x space, W x space)."""
    from torch import nn

    spec = decoder_spec(name)

    class Frames(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decoder = spec.build()

        def forward(self, x: Tensor) -> Tensor:
            return self.decoder(x.permute(1, 0, 2, 3).unsqueeze(0))[0].permute(1, 0, 2, 3)

    return Frames()


def decoder_peak_elements(workload: Workload) -> int:
    """Elements that one call of a decoder holds at once at the least: what one operation at full resolution needs."""
    spec = decoder_spec(workload.name)
    pixels = workload.frames * spec.time * workload.height * spec.space * workload.width * spec.space
    return workload.batch * spec.alive * pixels
