"""A decoder's configuration, read without torch: its stages, and by how much time and space grow between them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from search_spaces.errors import SpaceError, whole
from search_spaces.families.contract import Layout, Part, Place, Preset

FRAMES = 3  # channels of a frame: red, green, blue
MAX_STAGES = 16


def decoder_layout(config: Mapping[str, Any]) -> Layout:
    """Stages from the latents to the frames.

    ``channels`` has one number a stage; ``time`` and ``space`` one factor, 1 or 2, for what lies between two stages.
    ``whole`` stages hold all frames, so no later one may make more of them. ``patch`` pixels on a side leave as
    channels of one. ``causal``: the first latent is a frame of its own. ``encoder``: whether the frame has one.

    Raises:
        SpaceError: naming the first key that is wrong, with the remedy.
    """
    channels = _numbers(config["channels"], "channels", 8192)
    if not 1 <= len(channels) <= MAX_STAGES:
        raise SpaceError(f"channels must name 1 to {MAX_STAGES} stages, but names {len(channels)}")
    between = len(channels) - 1
    time, space = (_numbers(config[name], name, 2) for name in ("time", "space"))
    for name, factors in (("time", time), ("space", space)):
        if len(factors) != between:
            raise SpaceError(
                f"{name} must have {between} factors, one between any two of {len(channels)} stages, but has "
                f"{len(factors)}"
            )
    held = whole(config["whole"], "whole", most=len(channels))
    if any(factor > 1 for factor in time[held:]):
        raise SpaceError(
            f"time grows after stage {held - 1 + next(i for i, f in enumerate(time[held:], 1) if f > 1)}, but only the "
            f"first {held} stages hold all frames; raise whole"
        )
    patch, latent = whole(config["patch"], "patch", most=16), whole(config["latent_channels"], "latent_channels")
    for name in ("causal", "encoder"):
        if not isinstance(config[name], bool):
            raise SpaceError(f"{name} must be true or false, but is {config[name]!r:.60}")
    _check_steps(channels, space)
    places = []
    for i, count in enumerate(channels):
        by_time, by_space = math.prod(time[:i]), math.prod(space[:i])
        places.append(Place(f"stage.{i}", count, Fraction(1, by_space), Fraction(1, by_time), i >= held))
    all_time, all_space = math.prod(time), math.prod(space)
    parts = [Part("whole", latent, Fraction(1), Fraction(1))]
    if held < len(channels):
        at_held = Fraction(1, math.prod(space[: held - 1]))
        parts.append(Part("frame", channels[held - 1], at_held, Fraction(1, all_time), True))
    return Layout(
        {"x": latent},
        tuple(places),
        tuple(parts),
        made=Place("frames", FRAMES, Fraction(1, all_space * patch), Fraction(1, all_time)),
        causal=bool(config["causal"]),
        in_parts=True,
    )


def _check_steps(channels: Sequence[int], space: Sequence[int]) -> None:
    for i, factor in enumerate(space):
        before, after = channels[i], channels[i + 1]
        if factor == 1 and before != after:
            raise SpaceError(
                f"channels change from {before} to {after} between stages {i} and {i + 1}, where space does not grow; "
                "keep them equal there"
            )
        if factor == 2 and ((4 * after) % before or before % 4):
            raise SpaceError(
                f"channels {before} of stage {i} must be a multiple of 4 and divide 4 times the {after} of stage "
                f"{i + 1}, so that the shortcut between them is a rearrangement; choose {4 * after} or a divisor of it"
            )


def _numbers(value: Any, where: str, most: int) -> tuple[int, ...]:
    if not isinstance(value, list | tuple):
        raise SpaceError(f"{where} must be a list of whole numbers, but is {value!r:.60}")
    return tuple(whole(item, f"{where}[{i}]", most=most) for i, item in enumerate(value))


PRESETS: dict[str, Preset] = {
    "tiny_autoencoder": Preset(
        {
            "latent_channels": 8,
            "channels": [64, 32, 16, 16],
            "time": [2, 2, 1],
            "space": [2, 2, 2],
            "whole": 2,
            "patch": 1,
            "causal": True,
            "encoder": True,
        },
        0,
        "4x8x8, 8 channels: the two-core problem",
        measured={"encoder": False},
    ),
    "h3ae_8x32x32": Preset(
        {
            "latent_channels": 128,
            "channels": [512, 512, 256, 128, 128],
            "time": [2, 2, 2, 1],
            "space": [2, 2, 2, 2],
            "whole": 3,
            "patch": 2,
            "causal": True,
            "encoder": True,
        },
        0,
        "H3AE's shape (arXiv 2504.10567): 8x32x32, three-dimensional at low resolution alone",
        measured={"encoder": False},
    ),
    "h3ae_4x16x16": Preset(
        {
            "latent_channels": 32,
            "channels": [512, 256, 128, 128],
            "time": [2, 2, 1],
            "space": [2, 2, 2],
            "whole": 2,
            "patch": 2,
            "causal": True,
            "encoder": True,
        },
        0,
        "H3AE's other shape: 4x16x16",
        measured={"encoder": False},
    ),
    "separable": Preset(
        {
            "latent_channels": 4,
            "channels": [128, 128, 128, 64, 32, 32],
            "time": [2, 2, 1, 1, 1],
            "space": [1, 1, 2, 2, 2],
            "whole": 3,
            "patch": 1,
            "causal": False,
            "encoder": False,
        },
        0,
        "a decoder alone, 4x8x8 of 4 channels: time at the latents' resolution, then space frame by frame",
        measured={"encoder": False},
    ),
}
