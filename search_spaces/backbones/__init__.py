"""The spatial backbones by name: their configuration and, without torch, their positions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from search_spaces.errors import MAX_SIZE, SpaceError, plain_text, unknown, whole

if TYPE_CHECKING:
    from torch import nn

    from search_spaces.space import Space

#: Entry points of this group name a ``BackboneSpec``.
GROUP = "temporal_nas.backbones"
MAX_STAGES = 12  # each halves the picture
MAX_DEPTH = 64  # layers of a stage


@dataclass(frozen=True)
class Place:
    """Where temporal layers may stand: a name, the channels there, and how far height and width are divided."""

    name: str
    channels: int
    downscale: int


@dataclass(frozen=True)
class Part:
    """A spatial part of a backbone: its name, the channels it reads (skip included), its downscale."""

    name: str
    channels: int
    downscale: int


@dataclass(frozen=True)
class Layout:
    """What a space must know of a backbone: its input, its text, and its places in execution order."""

    in_channels: int
    context_dim: int
    places: tuple[Place, ...]


@dataclass(frozen=True)
class BackboneSpec:
    """What is known of a backbone without loading it.

    Attributes:
        build: ``module:function``, called as ``function(config)`` and returning the module.
        run: ``module:function`` with the signature of ``unet.run_unet``: one evaluation that offers ``temporal`` the
            running tensor at every place.
        config: its arguments; a space may override them, key by key.
        tokens: length of the text that its measured workload reads.
        layout: the torch-free reading of a config.
        extras: further keys that a space's config may have.
        parts: the torch-free reading of a config's spatial parts, in execution order. build_part: ``module:function``,
            called as ``function(backbone, name)`` and returning one as a module of (x, embedding, context).
        summary: one phrase for people.
    """

    build: str
    run: str
    config: Mapping[str, Any]
    tokens: int
    layout: Callable[[Mapping[str, Any]], Layout]
    summary: str
    extras: tuple[str, ...] = ()
    parts: Callable[[Mapping[str, Any]], tuple[Part, ...]] | None = None
    build_part: str = ""


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
    return Layout(config["in_channels"], config["cross_attention_dim"], tuple(down + up))


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


BACKBONES: dict[str, BackboneSpec] = {
    "sd15_pruned": BackboneSpec(
        "search_spaces.backbones.unet:build_unet",
        "search_spaces.backbones.unet:run_unet",
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
        layout=unet_layout,
        summary="Stable Diffusion 1.5's UNet cut to three stages, one layer a block, no mid block",
        extras=("widths",),
        parts=unet_parts,
        build_part="search_spaces.backbones.unet:part_of",
    ),
    "tiny": BackboneSpec(
        "search_spaces.backbones.unet:build_unet",
        "search_spaces.backbones.unet:run_unet",
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
        layout=unet_layout,
        summary="the same kind of UNet in pixel space, small enough for two cores",
        extras=("widths",),
        parts=unet_parts,
        build_part="search_spaces.backbones.unet:part_of",
    ),
}


def known_backbones() -> list[str]:
    """Names of our backbones and of those that installed packages add."""
    return sorted({*BACKBONES, *(point.name for point in entry_points(group=GROUP))})


def backbone_spec(name: str) -> BackboneSpec:
    """What is known of a backbone: ours, or one that an installed package adds.

    Raises:
        SpaceError: if nobody knows it, or the package's entry point is no ``BackboneSpec``.
    """
    if name in BACKBONES:
        return BACKBONES[name]
    for point in entry_points(group=GROUP):
        if point.name == name:
            spec = point.load()
            if not isinstance(spec, BackboneSpec):
                raise SpaceError(f"backbone {name!r}: entry point {point.value} must name a BackboneSpec, not {spec!r}")
            return spec
    raise SpaceError(unknown("backbone", name, known_backbones()))


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def build_backbone(space: Space) -> nn.Module:
    """The backbone of a space, freshly initialised.

    Raises:
        SpaceError: if its own code refuses the configuration.
    """
    build = _load(backbone_spec(space.backbone.name).build)
    try:
        return build(space.backbone.config)
    except Exception as error:  # diffusers checks little of it, and says so with errors of any kind
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        reason = kind + " ".join(str(error).split())[:300]
        raise SpaceError(f"{space.name}: backbone.config is refused by {space.backbone.name}: {reason}") from error


def build_part(space: Space, name: str) -> nn.Module:
    """One spatial part of the space's backbone, freshly initialised: a module of (x, embedding, context).

    Raises:
        SpaceError: if the backbone is not known in parts, or has none of that name.
    """
    spec = backbone_spec(space.backbone.name)
    if not spec.build_part:
        raise SpaceError(f"backbone {space.backbone.name} is not known in parts; measure it whole")
    return _load(spec.build_part)(build_backbone(space), name)


def backbone_forward(space: Space) -> Callable[..., Any]:
    """The function that evaluates the space's backbone: ``run_unet`` for ours."""
    return _load(backbone_spec(space.backbone.name).run)


def run_unet(*args: Any, **kwargs: Any) -> Any:
    """``search_spaces.backbones.unet.run_unet``, imported when called, so that this package stays free of torch."""
    return _load("search_spaces.backbones.unet:run_unet")(*args, **kwargs)
