"""A UNet of stages without its blocks: what joins the places, and how it is run."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn
from torch.nn import functional as F

from search_spaces.blocks.spatial_convolution import frame_norm
from search_spaces.errors import SpaceError
from search_spaces.families.staged_unet.layout import TIME, Shape, read_shape

if TYPE_CHECKING:
    from search_spaces.families.contract import At, Watch


class Told(nn.Module):
    """The time as sines and cosines, and the mean of the text, mixed into one embedding."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.sinusoid = 2 * shape.widths[0]
        self.time = nn.Linear(self.sinusoid, shape.embedding)
        self.text = nn.Linear(shape.text, shape.embedding) if shape.text else None
        self.mix = nn.Linear(shape.embedding, shape.embedding)

    def forward(self, timestep: Tensor, context: Tensor | None) -> Tensor:
        """``timestep: (B,)`` in 0..1000 and ``context: (B, L, D)`` to ``(B, E)``."""
        waves = get_timestep_embedding(timestep, self.sinusoid, flip_sin_to_cos=True, downscale_freq_shift=0)
        told = self.time(waves.to(self.time.weight.dtype))
        if self.text is not None and context is not None:
            told = told + self.text(context.mean(1))
        return self.mix(F.silu(told))


class Join(nn.Module):
    """A skip and the running tensor, normalised together and mixed to the width of a stage."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.norm, self.mix = frame_norm(channels), nn.Conv2d(channels, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C + skip, H, W)`` to ``(N, C', H, W)``."""
        return self.mix(self.norm(x))


class Upsample(nn.Module):
    """Twice the height and width by repeating, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to ``(N, C, 2H, 2W)``."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class StagedUNet(ModelMixin, ConfigMixin):
    """The frame of a staged UNet: stem, samplers, joins, end, and what tells the time.

    Args:
        in_channels: of the picture, in and out. cross_attention_dim: width of the text; 0 where none is read.
        block_out_channels: channels by stage, highest resolution first.
        groups, blocks: on the way down, one number or one a stage: groups of places, each of which leaves a skip, and
            places of a group. mid_blocks: places at the turn.
        up_groups, up_blocks: of the way up, by stage as on the way down; None mirrors it, the entry's skip included.

    Source: the stages of SnapGen (arXiv 2412.09619) and AsCAN (arXiv 2411.04967) over SDXL's order (arXiv 2307.01952).
    Stem, samplers, joins and the time's embedding are published by neither; these are ours.
    """

    _supports_gradient_checkpointing = False

    @register_to_config
    def __init__(
        self,
        in_channels: int,
        cross_attention_dim: int,
        block_out_channels: Sequence[int],
        groups: int | Sequence[int],
        blocks: int | Sequence[int],
        mid_blocks: int = 0,
        up_groups: int | Sequence[int] | None = None,
        up_blocks: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        shape = read_shape(self.config)
        widths = shape.widths
        self.told = Told(shape)
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList(
            nn.Conv2d(one, other, 3, stride=2, padding=1) for one, other in zip(widths, widths[1:], strict=False)
        )
        joins, running = [], widths[-1]
        for stage in reversed(range(shape.stages)):
            made = []
            for _, skip in shape.skips(stage):
                made.append(Join(running + skip, widths[stage]))
                running = widths[stage]
            joins.append(nn.ModuleList(made))
        self.joins = nn.ModuleList(joins)
        self.up = nn.ModuleList(Upsample(width) for width in reversed(widths[1:]))
        self.conv_out: nn.Module = nn.Sequential(
            frame_norm(running), nn.SiLU(), nn.Conv2d(running, in_channels, 3, padding=1)
        )
        self.has_way_up = True  # an encoder has none

    @property
    def shape(self) -> Shape:
        """The configuration's numbers."""
        return read_shape(self.config)


def run_staged(
    frame: StagedUNet,
    x: Tensor,
    timestep: Tensor,
    context: Tensor | None,
    num_frames: int,
    at: At,
    watch: Watch | None = None,
) -> Tensor:
    """One evaluation; see the contract. Without its way up it ends at the lowest resolution."""
    see = watch or (lambda name, x, skips: None)
    shape = frame.shape
    beside = {"embedding": frame.told(timestep, context)} | ({"context": context} if context is not None else {})
    skips: list[tuple[str, Tensor]] = []

    def group(name: str, blocks: int, x: Tensor) -> Tensor:
        for place in (*(f"{name}.{block}" for block in range(blocks)), f"{name}.{TIME}"):
            see(place, x, skips)
            x = at(place, x, beside)
        return x

    def keep(name: str, stage: int, x: Tensor) -> None:
        if frame.has_way_up and name in (made for made, _ in shape.skips(stage)):
            skips.append((name, x))

    x = frame.conv_in(x)
    see("conv_in", x, skips)
    keep("conv_in", 0, x)
    for stage in range(shape.stages):
        for index in range(shape.groups[stage]):
            x = group(f"down.{stage}.{index}", shape.blocks[stage], x)
            keep(f"down.{stage}.{index}.{TIME}", stage, x)
        if stage < shape.stages - 1:
            x = frame.down[stage](x)
            see(f"down.{stage}.downsample", x, skips)
            keep(f"down.{stage}.downsample", stage + 1, x)
    if not frame.has_way_up:
        return x
    if shape.mid:
        x = group("mid", shape.mid, x)
    for up, stage in enumerate(reversed(range(shape.stages))):
        joins: Any = frame.joins[up]
        for index, join in enumerate(joins):
            x = join(torch.cat([x, skips.pop()[1]], dim=1))
            see(f"up.{up}.{index}.join", x, skips)
            x = group(f"up.{up}.{index}", shape.up_blocks[stage], x)
        if stage:
            x = frame.up[up](x)
            see(f"up.{up}.upsample", x, skips)
    x = frame.conv_out(x)
    see("conv_out", x, skips)
    return x


class Piece(nn.Module):
    """One part of a frame as it runs within it; neither the time nor the text reaches it."""

    def __init__(self, module: nn.Module, embedding: int) -> None:
        super().__init__()
        self.module, self.embedding = module, embedding

    def forward(self, x: Tensor, embedding: Tensor, context: Tensor) -> Tensor:
        """``x: (B*T, C, H, W)``; the rest is not read."""
        return self.module(x)


def piece_of(frame: StagedUNet, name: str) -> Piece:
    """A part by the name that the layout gives it.

    Raises:
        SpaceError: if there is none.
    """
    known: dict[str, nn.Module] = {"conv_in": frame.conv_in, "conv_out": frame.conv_out}
    known |= {f"down.{stage}.downsample": module for stage, module in enumerate(frame.down)}
    known |= {f"up.{stage}.upsample": module for stage, module in enumerate(frame.up)}
    stages: Any = frame.joins
    for up, joins in enumerate(stages):
        known |= {f"up.{up}.{index}.join": join for index, join in enumerate(joins)}
    if name not in known:
        raise SpaceError(f"this staged UNet has no part {name!r}")
    return Piece(known[name], frame.shape.embedding)


def units(frame: StagedUNet) -> Iterator[nn.Module]:
    """Stem, samplers, joins and end."""
    yield frame.conv_in
    yield from frame.down
    for joins in frame.joins:
        yield from joins  # type: ignore[misc]
    yield from frame.up
    yield frame.conv_out


def features(frame: StagedUNet) -> dict[str, int]:
    """The last place of every stage on the way down, highest resolution first, with its channels."""
    shape = frame.shape
    return {f"down.{stage}.{shape.groups[stage] - 1}.{TIME}": width for stage, width in enumerate(shape.widths)}


def encoder(frame: StagedUNet) -> StagedUNet:
    """A copy without turn and way up; what is left of it runs as before."""
    kept: Mapping[str, Any] = {name: frame._modules[name] for name in ("joins", "up", "conv_out")}
    for name in kept:  # not copied, only to be thrown away
        frame._modules[name] = None
    try:
        made = copy.deepcopy(frame)
    finally:
        frame._modules.update(kept)
    made.joins, made.up, made.conv_out = nn.ModuleList(), nn.ModuleList(), nn.Identity()
    made.has_way_up = False
    return made
