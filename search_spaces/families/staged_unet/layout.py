"""The places and parts of a staged UNet, read from its configuration without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from search_spaces.errors import MAX_SIZE, SpaceError, whole
from search_spaces.families.contract import Layout, Part, Place, Preset

MAX_STAGES = 12  # each halves the picture
MAX_BLOCKS = 64  # of a group, and groups of a stage
EMBEDDING = 4  # the time is embedded in so many times the channels of the first stage
TIME = "time"  # of a group's place for layers along time


@dataclass(frozen=True)
class Shape:
    """A configuration, checked.

    Attributes:
        widths: channels by stage, highest resolution first. groups, blocks: on the way down, by stage: groups, each of
            which leaves a skip, and places of a group. up_groups, up_blocks: the same of the way up, by stage, highest
            resolution first. mid: places at the turn.
    """

    in_channels: int
    text: int
    widths: tuple[int, ...]
    groups: tuple[int, ...]
    blocks: tuple[int, ...]
    up_groups: tuple[int, ...]
    up_blocks: tuple[int, ...]
    mid: int

    @property
    def stages(self) -> int:
        return len(self.widths)

    @property
    def embedding(self) -> int:
        return EMBEDDING * self.widths[0]

    def skips(self, stage: int) -> list[tuple[str, int]]:
        """What the way up reads of a stage, last first: the moment that made it, and its channels."""
        made = [(entry(stage), self.widths[stage])]
        made += [(f"down.{stage}.{group}.{TIME}", self.widths[stage]) for group in range(self.groups[stage])]
        return made[::-1][: self.up_groups[stage]]


def entry(stage: int) -> str:
    """The part of the frame that a stage begins with."""
    return f"down.{stage - 1}.downsample" if stage else "conv_in"


def read_shape(config: Mapping[str, Any]) -> Shape:
    """A configuration's numbers.

    Raises:
        SpaceError: naming the first key that is wrong, with the remedy.
    """
    widths = config["block_out_channels"]
    if not isinstance(widths, list | tuple) or not 1 <= len(widths) <= MAX_STAGES:
        raise SpaceError(f"block_out_channels must list 1 to {MAX_STAGES} widths, but is {widths!r:.60}")
    for name, values in (("block_out_channels", widths), ("in_channels", [config["in_channels"]])):
        for value in values:
            whole(value, name, most=MAX_SIZE)
    whole(config["cross_attention_dim"], "cross_attention_dim", least=0, most=MAX_SIZE)
    whole(config["mid_blocks"], "mid_blocks", least=0, most=MAX_BLOCKS)
    stages = len(widths)
    groups = _by_stage(config, "groups", stages)
    blocks = _by_stage(config, "blocks", stages)
    up_blocks = blocks if config["up_blocks"] is None else _by_stage(config, "up_blocks", stages)
    mirrored = tuple(count + 1 for count in groups)
    up_groups = mirrored if config["up_groups"] is None else _by_stage(config, "up_groups", stages)
    for stage, (count, most) in enumerate(zip(up_groups, mirrored, strict=True)):
        if count > most:
            raise SpaceError(
                f"up_groups must be at most {most} in stage {stage}, which has {most} tensors for the way up (its "
                f"entry and {most - 1} groups), but is {count}; choose {most}"
            )
    return Shape(
        config["in_channels"],
        config["cross_attention_dim"],
        tuple(widths),
        groups,
        blocks,
        up_groups,
        up_blocks,
        config["mid_blocks"],
    )


def _by_stage(config: Mapping[str, Any], name: str, stages: int) -> tuple[int, ...]:
    found = config[name]
    counts: Sequence[Any] = found if isinstance(found, list | tuple) else [found] * stages
    if len(counts) != stages:
        raise SpaceError(f"{name} must be one number, or one for each of {stages} stages, but is {found!r:.60}")
    for count in counts:
        whole(count, name, most=MAX_BLOCKS)
    return tuple(counts)


def staged_layout(config: Mapping[str, Any]) -> Layout:
    """Places and parts of a staged UNet, in execution order.

    ``down.i.j.k`` is the k-th place of the j-th group of stage i, from the highest resolution down; ``up.i.j.k`` counts
    stages from the lowest resolution up, as diffusers does; ``mid.k`` stand between. Each holds one block of a picture.
    After every group stands ``down.i.j.time``, ``up.i.j.time`` or ``mid.time``, for layers along time.

    Raises:
        SpaceError: naming the first key that is wrong, with the remedy.
    """
    shape = read_shape(config)
    places: list[Place] = []
    parts = [Part("conv_in", shape.in_channels, 1)]
    for stage, width in enumerate(shape.widths):
        for group in range(shape.groups[stage]):
            places += _group(f"down.{stage}.{group}", width, 2**stage, shape.blocks[stage])
        if stage < shape.stages - 1:
            parts.append(Part(f"down.{stage}.downsample", width, 2**stage))
    if shape.mid:
        places += _group("mid", shape.widths[-1], 2 ** (shape.stages - 1), shape.mid)
    running = shape.widths[-1]
    for up, stage in enumerate(reversed(range(shape.stages))):
        width = shape.widths[stage]
        for group, (_, skip) in enumerate(shape.skips(stage)):
            parts.append(Part(f"up.{up}.{group}.join", running + skip, 2**stage))
            places += _group(f"up.{up}.{group}", width, 2**stage, shape.up_blocks[stage])
            running = width
        if stage:
            parts.append(Part(f"up.{up}.upsample", width, 2**stage))
    parts.append(Part("conv_out", running, 1))
    inputs = {"x": shape.in_channels, **({"context": shape.text} if shape.text else {})}
    return Layout(inputs, tuple(places), tuple(parts), shape.embedding)


def _group(name: str, width: int, scale: int, blocks: int) -> list[Place]:
    return [Place(f"{name}.{which}", width, scale) for which in (*range(blocks), TIME)]


PRESETS: dict[str, Preset] = {
    "snapgen": Preset(
        {
            "in_channels": 16,
            "cross_attention_dim": 2048,
            "block_out_channels": [256, 512, 896],
            "groups": 2,
            "blocks": [2, 3, 5],
            "mid_blocks": 6,
            "up_groups": None,
            "up_blocks": None,
        },
        tokens=77,
        summary="SnapGen's stages: groups of a convolution and 1, 2 or 4 transformers, as wide as its paper's",
    ),
    "ascan": Preset(
        {
            "in_channels": 4,
            "cross_attention_dim": 768,
            "block_out_channels": [128, 256, 512, 768],
            "groups": 1,
            "blocks": 4,
            "mid_blocks": 0,
            "up_groups": 1,
            "up_blocks": None,
        },
        tokens=77,
        summary="four stages of places, each for one letter: C or T, the way up mirroring the way down",
    ),
    "tiny_image": Preset(
        {
            "in_channels": 3,
            "cross_attention_dim": 32,
            "block_out_channels": [16, 32, 48],
            "groups": 1,
            "blocks": 2,
            "mid_blocks": 0,
            "up_groups": 1,
            "up_blocks": None,
        },
        tokens=16,
        summary="the same kind of stages in pixel space, small enough for two cores",
    ),
}
