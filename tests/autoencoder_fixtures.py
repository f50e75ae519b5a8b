"""The smallest of each of diffusers' autoencoders, with random weights: class -> (settings, time, space, channels)."""

from __future__ import annotations

from typing import Any

import torch

DOWN, UP = ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2
SMALL: dict[str, tuple[dict[str, Any], int, int, int]] = {
    "AutoencoderKL": (
        {"block_out_channels": (8, 8), "down_block_types": DOWN, "up_block_types": UP, "norm_num_groups": 4},
        *(1, 2, 4),
    ),
    "AutoencoderKLAllegro": (
        {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 32},
        *(4, 8, 4),
    ),
    "AutoencoderKLLTXVideo": (
        {
            "latent_channels": 8,
            "block_out_channels": (8, 8, 8, 8),
            "decoder_block_out_channels": (8, 8, 8, 8),
            "layers_per_block": (1, 1, 1, 1, 1),
            "decoder_layers_per_block": (1, 1, 1, 1, 1),
            "spatio_temporal_scaling": (True, True, False, False),
            "decoder_spatio_temporal_scaling": (True, True, False, False),
            "patch_size": 2,
        },
        *(4, 8, 8),
    ),
    "AutoencoderKLWan": (
        {
            "base_dim": 4,
            "z_dim": 4,
            "dim_mult": [1, 1, 1, 1],
            "num_res_blocks": 1,
            "latents_mean": [0.1, -0.2, 0.3, 0.0],
            "latents_std": [1.5, 2.0, 0.5, 1.0],
        },
        *(4, 8, 4),
    ),
    "AutoencoderKLCogVideoX": (
        {
            "block_out_channels": (8, 8, 8, 8),
            "down_block_types": ("CogVideoXDownBlock3D",) * 4,
            "up_block_types": ("CogVideoXUpBlock3D",) * 4,
            "layers_per_block": 1,
            "norm_num_groups": 2,
            "latent_channels": 4,
        },
        *(4, 8, 4),
    ),
    "AutoencoderKLHunyuanVideo": (
        {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 4},
        *(4, 8, 4),
    ),
    "AutoencoderKLMochi": (
        {
            "encoder_block_out_channels": (32, 32, 32, 32),
            "decoder_block_out_channels": (32, 32, 32, 32),
            "latent_channels": 4,
            "layers_per_block": (1, 1, 1, 1, 1),
            "latents_mean": [0.1, -0.2, 0.3, 0.0],
            "latents_std": [1.5, 2.0, 0.5, 1.0],
        },
        *(6, 8, 4),
    ),
    "AutoencoderKLTemporalDecoder": ({"block_out_channels": (32, 32), "down_block_types": DOWN}, *(1, 2, 4)),
    "AutoencoderDC": (
        {
            "latent_channels": 4,
            "encoder_block_out_channels": (8, 8),
            "decoder_block_out_channels": (8, 8),
            "encoder_layers_per_block": (1, 1),
            "decoder_layers_per_block": (1, 1),
            "encoder_qkv_multiscales": ((), ()),
            "decoder_qkv_multiscales": ((), ()),
            "scaling_factor": 0.5,
        },
        *(1, 2, 4),
    ),
    "AutoencoderTiny": (
        {
            "encoder_block_out_channels": (8, 8),
            "decoder_block_out_channels": (8, 8),
            "num_encoder_blocks": (1, 1),
            "num_decoder_blocks": (1, 1),
        },
        *(1, 2, 4),
    ),
}


def small_autoencoder(kind: str, seed: int = 0, **changes: Any) -> Any:
    """A model of the class with random weights."""
    import diffusers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return getattr(diffusers, kind)(**{**SMALL[kind][0], **changes}).eval()
