"""A diffusers UNet's weights into a pruned backbone: module by module, where shapes agree."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Mapped:
    """What came over.

    Attributes:
        source: of the weights. blocks: a module of the backbone -> the module that it was copied from.
        fresh: modules that keep their random start. copied, total: parameters. notes: what fits only nearly.
    """

    source: str
    blocks: dict[str, str]
    fresh: tuple[str, ...]
    copied: int
    total: int
    notes: tuple[str, ...] = ()

    def sentence(self) -> str:
        """One line for people."""
        left = f"; fresh: {', '.join(self.fresh)}" if self.fresh else ""
        notes = f" ({'; '.join(self.notes)})" if self.notes else ""
        share = f"{self.copied:,} of {self.total:,} parameters ({self.copied / self.total:.0%})"
        return f"init: {share} in {len(self.blocks)} modules from {self.source}{left}{notes}"


Candidates = list[tuple[str, nn.Module]]


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
