"""diffusers' ``UNet2DConditionModel`` as a video backbone: frames in the batch, chosen layers between its modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from diffusers import Transformer2DModel, UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from search_spaces.errors import SpaceError
from search_spaces.families.unet.narrow import NarrowUNet

if TYPE_CHECKING:
    from search_spaces.families.contract import At, Watch


def build_unet(config: Mapping[str, Any]) -> UNet2DConditionModel:
    """A freshly initialised UNet; with ``widths``, one whose attentions are narrower than diffusers makes them."""
    return NarrowUNet(**config) if config.get("widths") else UNet2DConditionModel(**config)


class Part(nn.Module):
    """One spatial part of a UNet as ``run_unet`` runs it.

    Args:
        modules: run one after the other; those that take the time embedding or the text are told it.
        embedding: width of the time embedding.
    """

    def __init__(self, modules: Sequence[nn.Module], embedding: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)
        self.embedding = embedding

    def forward(self, x: Tensor, embedding: Tensor, context: Tensor) -> Tensor:
        """``x: (B*T, C, H, W)``, ``embedding: (B, E)`` and ``context: (B, L, D)``, one a clip."""
        frames = x.shape[0] // embedding.shape[0]
        told, text = per_frame(embedding, frames), per_frame(context, frames)
        for part in self.parts:
            if isinstance(part, ResnetBlock2D):
                x = part(x, told)
            elif isinstance(part, Transformer2DModel):
                x = part(x, encoder_hidden_states=text, return_dict=False)[0]
            elif hasattr(part, "resnets"):
                x = part(x, told, encoder_hidden_states=text) if part.has_cross_attention else part(x, told)
            else:
                x = part(x)
        return x


def part_of(unet: Any, name: str) -> Part:
    """A spatial part by the name that ``unet_parts`` gives it.

    Raises:
        SpaceError: if there is none.
    """
    side, _, rest = name.partition(".")
    found: list[nn.Module] = []
    if name == "conv_in":
        found = [unet.conv_in]
    elif name == "conv_out":
        found = [part for part in (unet.conv_norm_out, unet.conv_act) if part is not None] + [unet.conv_out]
    elif name == "mid" and unet.mid_block is not None:
        found = [unet.mid_block]
    elif side in ("down", "up"):
        stage, _, which = rest.partition(".")
        blocks = dict(enumerate(unet.down_blocks if side == "down" else unet.up_blocks))
        block = blocks.get(int(stage)) if stage.isdigit() else None
        if block is None:
            pass
        elif which == f"{side}sample":
            found = list((block.downsamplers if side == "down" else block.upsamplers) or ())
        elif which.isdigit() and int(which) < len(block.resnets):
            found = [block.resnets[int(which)]]
            found += [block.attentions[int(which)]] if getattr(block, "has_cross_attention", False) else []
    if not found:
        raise SpaceError(f"this UNet has no part {name!r}")
    return Part(found, unet.time_embedding.linear_2.out_features)


def per_frame(x: Tensor, num_frames: int) -> Tensor:
    """Repeat what is given once a clip for each of its frames: ``(B, ...)`` to ``(B*T, ...)``."""
    return x[:, None].expand(-1, num_frames, *x.shape[1:]).flatten(0, 1)


def units(unet: Any) -> Iterator[nn.Module]:
    """Resnets and attentions, in execution order."""
    for stage in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        if stage is not None:
            yield from stage.resnets
            yield from getattr(stage, "attentions", ())


@dataclass(frozen=True)
class _Evaluation:
    """What every step of one evaluation is told."""

    embedded: Tensor  # (B*T, E)
    context: Tensor  # (B*T, L, D)
    beside: Mapping[str, Tensor]
    at: At
    see: Watch
    uneven: bool


def run_unet(
    unet: Any, x: Tensor, timestep: Tensor, context: Tensor, num_frames: int, at: At, watch: Watch | None = None
) -> Tensor:
    """One evaluation of the UNet that hands the running tensor to ``at`` after every resnet(+attention) pair.

    It walks the UNet's own modules in the order of ``UNet2DConditionModel.forward``; with an identity for ``at`` the
    result is that method's, bit for bit. What ``at`` returns goes on to the next pair and, on the way down,
    into the skip that the way up will read.

    Args:
        unet: text-conditioned, without class labels, added conditions or masks.
        x: ``(B*T, C, H, W)``.
        timestep: ``(B,)``, one a clip.
        context: ``(B, L, D)``, one text a clip.
        num_frames: T.
        at: ``(name, x, beside) -> x``; names are those of ``unet_layout``, and beside are ``context`` and ``embedding``
            (B, E).
        watch: told of every moment of execution, for accounting.

    Returns:
        ``(B*T, C_out, H, W)``.
    """
    embedded = unet.time_embedding(unet.get_time_embed(x, per_frame(timestep, num_frames)))
    beside = {"context": context, "embedding": embedded[::num_frames]}
    # An odd height or width comes out of down and up one larger than it went in; the skip knows the right size.
    uneven = any(side % 2**unet.num_upsamplers for side in x.shape[-2:])
    see = watch or (lambda name, x, skips: None)
    told = _Evaluation(embedded, per_frame(context, num_frames), beside, at, see, uneven)

    alive = [("conv_in", unet.conv_in(x))]
    see(*alive[0], [])
    _down(unet, alive, told)
    x = _up(unet, alive, told)
    if unet.conv_norm_out is not None:
        x = unet.conv_act(unet.conv_norm_out(x))
    x = unet.conv_out(x)
    see("conv_out", x, [])
    return x


Alive = list[tuple[str, Tensor]]  # tensors that are still to be read, by the names of their points

# Below, one step a line, each into the same name: a name that is still in use keeps its tensor in memory.


def _down(unet: Any, skips: Alive, told: _Evaluation) -> None:
    """The way down and the mid block: adds the skips, and behind them the running tensor."""
    x = skips[-1][1]
    for stage, block in enumerate(unet.down_blocks):
        for index in range(len(block.resnets)):
            name = f"down.{stage}.{index}"
            x = block.resnets[index](x, told.embedded)
            x = _attention(block, index, x, told.context)
            told.see(name, x, skips)
            x = told.at(name, x, told.beside)
            skips.append((name, x))
        for downsampler in block.downsamplers or ():
            x = downsampler(x)
            told.see(f"down.{stage}.downsample", x, skips)
            skips.append((f"down.{stage}.downsample", x))
    if unet.mid_block is not None:
        text = {"encoder_hidden_states": told.context} if _reads_text(unet.mid_block) else {}
        x = unet.mid_block(x, told.embedded, **text)
        told.see("mid", x, skips)
    skips.append(("", x))


def _up(unet: Any, skips: Alive, told: _Evaluation) -> Tensor:
    """The way up, which empties the skips and the running tensor behind them."""
    x = skips.pop()[1]
    for stage, block in enumerate(unet.up_blocks):
        for index in range(len(block.resnets)):
            name = f"up.{stage}.{index}"
            x = torch.cat([x, skips.pop()[1]], dim=1)
            x = block.resnets[index](x, told.embedded)
            x = _attention(block, index, x, told.context)
            told.see(name, x, skips)
            x = told.at(name, x, told.beside)
        for upsampler in block.upsamplers or ():
            x = upsampler(x, skips[-1][1].shape[2:] if told.uneven else None)
            told.see(f"up.{stage}.upsample", x, skips)
    return x


def _attention(block: Any, index: int, x: Tensor, context: Tensor) -> Tensor:
    if not _reads_text(block):
        return x
    return block.attentions[index](x, encoder_hidden_states=context, return_dict=False)[0]


def _reads_text(block: Any) -> bool:
    return bool(getattr(block, "has_cross_attention", False))
