"""The places of a diffusion transformer, read from its configuration without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from search_spaces.errors import SpaceError, unknown, whole
from search_spaces.families.contract import Layout, Place, Preset

MAX_BLOCKS = 200

#: Kinds of transformer, by what a configuration calls them -> the block that its places are made for.
BLOCKS = {"ltx": "LTXBlock", "wan": "WanBlock"}

SIZES = ("in_channels", "patch_size", "num_attention_heads", "attention_head_dim", "num_layers", "caption_channels")


def dit_layout(config: Mapping[str, Any]) -> Layout:
    """Every block is a place, ``block.0`` to the last; what is left is the frame.

    ``patch_size`` pixels or latents a side become one token; time is not divided.

    Raises:
        SpaceError: naming the first key that is wrong.
    """
    if config["transformer"] not in BLOCKS:
        raise SpaceError(f"transformer: {unknown('kind', config['transformer'], BLOCKS)}")
    for name in SIZES:
        whole(config[name], name, most=MAX_BLOCKS if name == "num_layers" else 65_536)
    if config["attention_head_dim"] % 2:
        raise SpaceError(f"attention_head_dim must be even, but is {config['attention_head_dim']}; pairs are turned")
    patch = config["patch_size"]
    if config["transformer"] == "ltx" and config["in_channels"] % patch**2:
        raise SpaceError(
            f"in_channels must divide by {patch**2} (patch_size {patch} a side lies in them), but is "
            f"{config['in_channels']}; choose {max(1, config['in_channels'] // patch**2) * patch**2}"
        )
    channels = config["num_attention_heads"] * config["attention_head_dim"]
    latents = config["in_channels"] // (patch**2 if config["transformer"] == "ltx" else 1)
    return Layout(
        {"x": latents, "context": config["caption_channels"]},
        tuple(Place(f"block.{index}", channels, patch) for index in range(config["num_layers"])),
        embedding=6 * channels,
        projected=channels,
    )


PRESETS: dict[str, Preset] = {
    "ltx_video": Preset(
        {
            "transformer": "ltx",
            "in_channels": 128,
            "patch_size": 1,
            "num_attention_heads": 32,
            "attention_head_dim": 64,
            "num_layers": 28,
            "caption_channels": 4096,
        },
        tokens=128,
        summary="LTX-Video's transformer of 1.9B parameters, on latents of 8x32x32",
    ),
    "wan_video": Preset(
        {
            "transformer": "wan",
            "in_channels": 16,
            "patch_size": 2,
            "num_attention_heads": 12,
            "attention_head_dim": 128,
            "num_layers": 30,
            "caption_channels": 4096,
        },
        tokens=512,
        summary="Wan 2.1's transformer of 1.3B parameters, on latents of 4x8x8",
    ),
    "tiny_ltx": Preset(
        {
            "transformer": "ltx",
            "in_channels": 48,
            "patch_size": 4,
            "num_attention_heads": 4,
            "attention_head_dim": 16,
            "num_layers": 6,
            "caption_channels": 32,
        },
        tokens=16,
        summary="the same kind of transformer in pixel space, small enough for two cores",
    ),
}
