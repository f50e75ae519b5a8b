"""The two ends of a model as modules that Core ML can take: token numbers to text states, latents to frames."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nas.errors import NasError
from nas.pretrained.autoencoder import VideoAutoencoder
from search_spaces.ends import DECODERS, portable_decoder

IMAGES = ("AutoencoderKL", "AutoencoderDC", "AutoencoderTiny")  # whose decoders take one frame, four axes throughout
Part = tuple[nn.Module, tuple[Tensor, ...], tuple[str, ...]]  # module, inputs, their names


class TextStates(nn.Module):
    """(1, L) token numbers to (1, L, D) states."""

    def __init__(self, model: nn.Module, tokens: int) -> None:
        super().__init__()
        self.model = model
        # Its own are a slice of a buffer, which Core ML's converter cannot read.
        self.register_buffer("places", torch.arange(tokens)[None], persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(input_ids=tokens, position_ids=self.places).last_hidden_state


class Frames(nn.Module):
    """(t, C, h, w) latents of one tile to (T, 3, H, W) frames in about [-1, 1]."""

    scale: Tensor
    shift: Tensor

    def __init__(self, autoencoder: VideoAutoencoder) -> None:
        super().__init__()
        self.images = autoencoder.kind in IMAGES
        self.register_buffer("scale", 1 / autoencoder.gain)
        self.register_buffer("shift", autoencoder.offset)
        self.after_quantisation = getattr(autoencoder.model, "post_quant_conv", None)
        decoder = autoencoder.model.decoder
        self.decoder = decoder if self.images else portable_decoder(decoder)

    def forward(self, latents: Tensor) -> Tensor:
        x = latents * self.scale + self.shift
        if self.after_quantisation is not None:
            x = self.after_quantisation(x)
        if self.images:
            return self.decoder(x)
        return self.decoder(x.permute(1, 0, 2, 3).unsqueeze(0))[0].permute(1, 0, 2, 3)


def text_encoder(pipeline: Any) -> Part:
    """The pipeline's text encoder, for as many tokens as it takes."""
    tokens = int(pipeline.text_encoder.config.max_position_embeddings)
    numbers = torch.zeros(1, tokens, dtype=torch.int32)
    return TextStates(pipeline.text_encoder, tokens).eval(), (numbers,), ("tokens",)


def decoder(pipeline: Any, latents: tuple[int, int, int]) -> Part | None:
    """The pipeline's decoder for one tile of a clip of these latents; ``None`` for a space that works in pixels.

    Allegro's goes in tiles that fit a phone, to be laid over each other by whoever calls it, as
    ``nas.pretrained.autoencoder.tiled`` does; the decoder of images takes one frame.
    """
    if pipeline.vae is None:
        return None
    autoencoder = VideoAutoencoder(pipeline.vae, "vae")
    if autoencoder.kind not in (*IMAGES, "AutoencoderKLAllegro"):
        raise NasError(
            f"the decoder is a {autoencoder.kind}, which has no way to Core ML here; export with "
            "--parts network,text_encoder"
        )
    frames, height, width = (1, *latents[1:]) if autoencoder.kind in IMAGES else latents
    if autoencoder.kind not in IMAGES:
        frames, height, width = DECODERS["allegro"].tile_of(frames, height, width)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(frames, autoencoder.channels, height, width, generator=generator)
    return Frames(autoencoder).eval(), (x,), ("latents",)
