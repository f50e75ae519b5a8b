"""A network that reads and gives more channels than it was made for, and back again."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from nas.errors import NasError
from nas.model.network import VideoUNet


def widened(unet: VideoUNet, times: int) -> VideoUNet:
    """The same network with ``times`` as many channels in and out; the first ones compute what they did.

    What is new starts at zero, so the first channels of its answer are the given network's, whatever stands in the
    other channels; the other channels of its answer are zero.

    Raises:
        NasError: if the family's configuration has no ``in_channels`` and ``out_channels``.
    """
    told = unet.space.to_json()
    config = told["backbone"].get("config", {})
    known = {**unet.space.backbone.config, **config}
    if "in_channels" not in known or "out_channels" not in known:
        raise NasError(
            f"a network of family {unet.space.backbone.family.name} cannot be told how many channels it reads"
        )
    wide = {name: times * int(known[name]) for name in ("in_channels", "out_channels")}
    told["backbone"] = {**told["backbone"], "config": {**config, **wide}}
    told["latent_channels"] = times * unet.space.latent_channels
    made = VideoUNet(space=told, arrangement=unet.arrangement.to_json(), prediction=unet.diffusion.prediction)
    nn.Module.to(made, unet.device, unet.dtype)
    _copy(unet, made)
    return made


def narrow(wide: nn.Module, unet: VideoUNet) -> None:
    """Take the first channels of a widened network back into ``unet``: what it computes when the others are zero."""
    _copy(wide, unet)


@torch.no_grad()
def _copy(given: nn.Module, taker: nn.Module) -> None:
    """Weights of the same names; where shapes differ, the part that both have, zero elsewhere."""
    source: dict[str, Any] = dict(given.named_parameters())
    for name, parameter in taker.named_parameters():
        found = source[name]
        shared = tuple(slice(0, min(a, b)) for a, b in zip(found.shape, parameter.shape, strict=True))
        if found.shape != parameter.shape:
            parameter.zero_()
        parameter[shared].copy_(found[shared])
