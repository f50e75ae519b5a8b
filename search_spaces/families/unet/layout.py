"""The places and parts of a UNet, read from its configuration without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from search_spaces.errors import MAX_SIZE, SpaceError, plain_text, whole
from search_spaces.families.contract import Layout, Part, Place, Preset

MAX_STAGES = 12  # each halves the picture
MAX_DEPTH = 64  # layers of a stage
EMBEDDING = 4  # diffusers embeds the time in so many times the channels of the first stage


def unet_layout(config: Mapping[str, Any]) -> Layout:
    """Places of diffusers' ``UNet2DConditionModel``: after every resnet(+attention) pair, down then up.

    ``down.i.j`` and ``up.i.j`` count stages and pairs as diffusers' ``down_blocks`` and ``up_blocks`` do, so ``up.0``
    is the lowest resolution. An up stage has one pair more than a down stage: it also consumes the stage's input.
    ``layers_per_block`` is one number, or one a stage from the highest resolution down.

    Raises:
        SpaceError: if stages are not as many as channels, or heads or norm groups do not divide them; diffusers would
            say so later, elsewhere, or not at all.
    """
    channels, layers = config["block_out_channels"], config["layers_per_block"]
    down_types, up_types = config["down_block_types"], config["up_block_types"]
    heads, groups = config["attention_head_dim"], config["norm_num_groups"]
    sizes = {"attention_head_dim": heads, "norm_num_groups": groups}
    for name in ("in_channels", "cross_attention_dim"):
        sizes[name] = config[name]
    if not all(isinstance(item, list | tuple) for item in (channels, down_types, up_types)):
        raise SpaceError("block_out_channels, down_block_types and up_block_types must be lists, one item a stage")
    if not 1 <= len(channels) <= MAX_STAGES:
        raise SpaceError(f"block_out_channels must have 1 to {MAX_STAGES} stages, but has {len(channels)}")
    depths = list(layers) if isinstance(layers, list | tuple) else [layers] * len(channels)
    lists = {"block_out_channels": channels, "layers_per_block": depths}
    for name, size in [*sizes.items(), *((name, size) for name, found in lists.items() for size in found)]:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise SpaceError(f"{name} must be whole and above 0, but is {size!r:.60}")
        whole(size, name, most=MAX_DEPTH if name == "layers_per_block" else MAX_SIZE)
    for name, kinds in (("down_block_types", down_types), ("up_block_types", up_types)):
        for kind in kinds:
            plain_text(kind, name)
    stages = len(channels)
    if not stages == len(down_types) == len(up_types):
        raise SpaceError(
            f"block_out_channels, down_block_types and up_block_types must be equally many, but are {stages}, "
            f"{len(down_types)} and {len(up_types)}"
        )
    if len(depths) != stages:
        raise SpaceError(f"layers_per_block must be one number, or one for each of {stages} stages, but is {layers}")
    for stage, size in enumerate(channels):
        attends = "CrossAttn" in f"{down_types[stage]} {up_types[-1 - stage]}"
        for name, divisor, needed in (("attention_head_dim", heads, attends), ("norm_num_groups", groups, True)):
            if needed and size % divisor:
                raise SpaceError(
                    f"{name} must divide every stage's channels, but stage {stage} has {size} and {name} is {divisor}; "
                    f"choose a divisor of {math.gcd(*channels)}"
                )
    down = [Place(f"down.{i}.{j}", channels[i], 2**i) for i in range(stages) for j in range(depths[i])]
    up = [
        Place(f"up.{i}.{j}", channels[-1 - i], 2 ** (stages - 1 - i))
        for i in range(stages)
        for j in range(depths[-1 - i] + 1)
    ]
    return Layout(
        inputs={"x": config["in_channels"], "context": config["cross_attention_dim"]},
        places=(*down, *up),
        parts=unet_parts(config),
        embedding=EMBEDDING * channels[0],
    )


def unet_parts(config: Mapping[str, Any]) -> tuple[Part, ...]:
    """The spatial parts of diffusers' ``UNet2DConditionModel``: convolutions, pairs, samplers, the mid block.

    Only the time embedding is left out: it is computed once a clip, from one number.
    """
    channels, layers = list(config["block_out_channels"]), config["layers_per_block"]
    stages = len(channels)
    depths = list(layers) if isinstance(layers, list | tuple) else [layers] * stages
    parts = [Part("conv_in", config["in_channels"], 1)]
    skips, running = [channels[0]], channels[0]
    for i, size in enumerate(channels):
        for j in range(depths[i]):
            parts.append(Part(f"down.{i}.{j}", running, 2**i))
            running = size
            skips.append(running)
        if i < stages - 1:
            parts.append(Part(f"down.{i}.downsample", running, 2**i))
            skips.append(running)
    if config.get("mid_block_type") is not None:
        parts.append(Part("mid", running, 2 ** (stages - 1)))
    for i, size in enumerate(reversed(channels)):
        scale = 2 ** (stages - 1 - i)
        for j in range(depths[-1 - i] + 1):
            parts.append(Part(f"up.{i}.{j}", running + skips.pop(), scale))
            running = size
        if i < stages - 1:
            parts.append(Part(f"up.{i}.upsample", running, scale))
    return (*parts, Part("conv_out", running, 1))


PRESETS: dict[str, Preset] = {
    "sd15_pruned": Preset(
        {
            "sample_size": 64,
            "in_channels": 4,
            "out_channels": 4,
            "down_block_types": ["CrossAttnDownBlock2D"] * 3,
            "mid_block_type": None,
            "up_block_types": ["CrossAttnUpBlock2D"] * 3,
            "block_out_channels": [320, 640, 1280],
            "layers_per_block": 1,
            "cross_attention_dim": 768,
            "attention_head_dim": 8,  # diffusers means the number of heads
            "norm_num_groups": 32,
        },
        tokens=77,
        summary="Stable Diffusion 1.5's UNet cut to three stages, one layer a block, no mid block",
        extras=("widths",),
    ),
    "tiny": Preset(
        {
            "sample_size": 16,
            "in_channels": 3,
            "out_channels": 3,
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
            "mid_block_type": None,
            "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
            "block_out_channels": [16, 32],
            "layers_per_block": 1,
            "cross_attention_dim": 32,
            "attention_head_dim": 4,  # diffusers means the number of heads
            "norm_num_groups": 8,
        },
        tokens=16,
        summary="the same kind of UNet in pixel space, small enough for two cores",
        extras=("widths",),
    ),
}
