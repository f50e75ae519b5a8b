"""Diffusion transformers (LTX, Wan): the blocks are chosen, the rest is the frame."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from search_spaces.errors import SpaceError
from search_spaces.families.contract import Layout, Mapped, Picture, Preset, Pruning, Row
from search_spaces.families.dit.layout import PRESETS, dit_layout

if TYPE_CHECKING:
    from torch import Tensor, nn

    from search_spaces.families.contract import At, Watch


class DiT:
    """The family of ``LTXVideoTransformer3DModel`` and ``WanTransformer3DModel``: every block is a place.

    Each method's docstring is the contract's; what is particular stands with the function that it calls.
    """

    name = "dit"
    task = "denoise"
    presets: Mapping[str, Preset] = PRESETS

    def layout(self, config: Mapping[str, Any]) -> Layout:
        return dit_layout(config)

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        from search_spaces.families.dit.run import build_frame

        return build_frame(config)

    def run(self, frame: nn.Module, inputs: Mapping[str, Any], at: At, watch: Watch | None = None) -> Tensor:
        from search_spaces.families.dit.run import run_transformer

        return run_transformer(frame, inputs, at, watch)

    def part(self, frame: nn.Module, name: str) -> nn.Module:
        raise SpaceError(f"a transformer's frame has no part {name!r}; it is measured whole, and its blocks apart")

    def units(self, frame: nn.Module) -> Iterable[nn.Module]:
        from search_spaces.families.dit.run import units

        return units(frame)

    def features(self, frame: nn.Module) -> Mapping[str, int]:
        from search_spaces.families.dit.run import features

        return features(frame)

    def encoder(self, frame: nn.Module) -> nn.Module:
        import copy

        return copy.deepcopy(frame)  # next to nothing, beside the blocks

    def givers(self) -> Mapping[str, type]:
        from search_spaces.families.dit.inherit import givers

        return givers()

    def inherit(self, frame: nn.Module, given: nn.Module) -> Mapped:
        from search_spaces.families.dit.inherit import inherit

        return inherit(frame, given)

    def pruning(self) -> Pruning | None:
        return None

    def picture(self, names: Sequence[str], skips: Mapping[str, str]) -> Picture:
        return Picture(tuple(Row(name) for name in names), "noisy clip, text, time", "velocity")


FAMILY = DiT()
