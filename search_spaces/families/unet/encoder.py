"""The way down of a UNet: what a discriminator reads of it."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn


def features(unet: Any) -> dict[str, int]:
    """The last place of every down block, highest resolution first, with its channels."""
    return {
        f"down.{stage}.{len(block.resnets) - 1}": int(block.resnets[-1].out_channels)
        for stage, block in enumerate(unet.down_blocks)
    }


def encoder(unet: Any) -> Any:
    """A copy of a UNet without its way up; what is left of it runs as before."""
    kept = {name: unet._modules[name] for name in ("up_blocks", "conv_norm_out", "conv_out")}
    for name in kept:  # not copied, only to be thrown away
        unet._modules[name] = None
    try:
        made: Any = copy.deepcopy(unet)
    finally:
        unet._modules.update(kept)
    made.up_blocks, made.mid_block = nn.ModuleList(), None
    made.conv_norm_out, made.conv_out = None, nn.Identity()
    return made
