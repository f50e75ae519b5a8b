"""A diffusers UNet's weights into the frame of a space: module by module, where shapes agree."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from search_spaces.errors import SpaceError
from search_spaces.families.contract import Mapped
from search_spaces.families.unet.narrow import NarrowUNet

Candidates = list[tuple[str, nn.Module]]


def givers() -> dict[str, type]:
    """diffusers' UNet, and what ``nas prune`` made of one."""
    return {kind.__name__: kind for kind in (UNet2DConditionModel, NarrowUNet)}


def inherit(backbone: Any, given: Any) -> Mapped:
    """Copy what matches of a UNet into ``backbone``, in place.

    Stages are paired by resolution, from the highest down, as pruning removes the lowest ones. Within a stage each
    resnet, attention and sampler takes the weights of the one at the same relative place whose shapes are all equal,
    in order and each used once: the first pair of an up stage reads what comes from below, the last the first skip.

    Raises:
        SpaceError: if nothing matches.
    """
    blocks: dict[str, str] = {}
    fresh: list[str] = []
    copied = 0
    for name, wanted, candidates in pairs(backbone, given):
        found = next(((other, module) for other, module in candidates if _same_shapes(wanted, module)), None)
        if found is None:
            fresh.append(name)
            continue
        wanted.load_state_dict(found[1].state_dict())
        blocks[name] = found[0]
        copied += sum(parameter.numel() for parameter in wanted.parameters())
    if not copied:
        raise SpaceError(
            f"no block has the backbone's shapes (channels {list(given.config.block_out_channels)}, the "
            f"backbone's {list(backbone.config.block_out_channels)}); give another UNet"
        )
    notes = [
        f"{key} is {given.config[key]} there, {backbone.config[key]} here"
        for key in ("attention_head_dim", "act_fn", "norm_num_groups", "norm_eps")
        if given.config.get(key) != backbone.config.get(key)
    ]
    total = sum(parameter.numel() for parameter in backbone.parameters())
    return Mapped("", blocks, tuple(fresh), copied, total, tuple(notes))


def pairs(backbone: Any, given: Any) -> Iterable[tuple[str, nn.Module, Candidates]]:
    """Each part of the backbone, and what may be copied into it, the best first."""
    for name in ("conv_in", "time_embedding", "conv_norm_out", "conv_out"):
        wanted, other = getattr(backbone, name), getattr(given, name)
        if wanted is not None:
            yield name, wanted, [(name, other)] if other is not None else []
    for side, ours, theirs in (
        ("down_blocks", list(enumerate(backbone.down_blocks)), list(enumerate(given.down_blocks))),
        ("up_blocks", list(enumerate(backbone.up_blocks))[::-1], list(enumerate(given.up_blocks))[::-1]),
    ):
        for place, (index, stage) in enumerate(ours):
            other = theirs[place] if place < len(theirs) else None
            yield from _stage(f"{side}.{index}", stage, f"{side}.{other[0]}" if other else "", other and other[1])
    if backbone.mid_block is not None:
        yield "mid_block", backbone.mid_block, [("mid_block", given.mid_block)] if given.mid_block is not None else []


def _stage(name: str, stage: Any, other_name: str, other: Any) -> Iterable[tuple[str, nn.Module, Candidates]]:
    """Pairs of one stage; attentions follow the resnets that they stand behind."""
    resnets = list(stage.resnets)
    theirs = list(other.resnets) if other is not None else []
    taken: list[int] = []
    for index, resnet in enumerate(resnets):
        place = index / max(1, len(resnets) - 1)
        order = sorted(range(len(theirs)), key=lambda k: (abs(k / max(1, len(theirs) - 1) - place), k))
        later = [k for k in order if k not in taken and all(k > before for before in taken)]
        best = next((k for k in later if _same_shapes(resnet, theirs[k])), None)
        if best is not None:
            taken.append(best)
        source = [(f"{other_name}.resnets.{best}", theirs[best])] if best is not None else []
        yield f"{name}.resnets.{index}", resnet, source
        attentions = getattr(stage, "attentions", None)
        if attentions is not None:
            known = getattr(other, "attentions", None)
            matched: Candidates = []
            if best is not None and known is not None:
                matched = [(f"{other_name}.attentions.{best}", known[best])]
            yield f"{name}.attentions.{index}", attentions[index], matched
    for kind in ("downsamplers", "upsamplers"):
        for index, sampler in enumerate(getattr(stage, kind, None) or ()):
            known = getattr(other, kind, None) or ()
            sources = [(f"{other_name}.{kind}.{index}", known[index])] if index < len(known) else []
            yield f"{name}.{kind}.{index}", sampler, sources


def _same_shapes(one: nn.Module, other: nn.Module) -> bool:
    mine: dict[str, torch.Tensor] = one.state_dict()
    theirs: dict[str, torch.Tensor] = other.state_dict()
    return mine.keys() == theirs.keys() and all(mine[key].shape == theirs[key].shape for key in mine)
