"""A UNet whose every block is a choice: SnapGen's spatial network, AsCAN's letters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from search_spaces.families.contract import Layout, Mapped, Picture, Preset, Pruning
from search_spaces.families.staged_unet.layout import PRESETS, staged_layout
from search_spaces.families.staged_unet.picture import staged_picture

if TYPE_CHECKING:
    from torch import Tensor, nn

    from search_spaces.families.contract import At, Watch
    from search_spaces.families.staged_unet.frame import StagedUNet as Frame


class StagedUNet:
    """The family of staged UNets: the frame joins places, and each place holds one block of a picture.

    Each method's docstring is the contract's; what is particular stands with the function that it calls.
    """

    name = "staged_unet"
    task = "denoise"
    presets: Mapping[str, Preset] = PRESETS

    def layout(self, config: Mapping[str, Any]) -> Layout:
        return staged_layout(config)

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        from search_spaces.families.staged_unet.frame import StagedUNet as Frame

        return Frame(**config)

    def run(self, frame: nn.Module, inputs: Mapping[str, Any], at: At, watch: Watch | None = None) -> Tensor:
        from search_spaces.families.staged_unet.frame import run_staged

        told = inputs["timestep"], inputs.get("context"), inputs["frames"]
        return run_staged(cast("Frame", frame), inputs["x"], *told, at, watch)

    def part(self, frame: nn.Module, name: str) -> nn.Module:
        from search_spaces.families.staged_unet.frame import piece_of

        return piece_of(cast("Frame", frame), name)

    def units(self, frame: nn.Module) -> Iterable[nn.Module]:
        from search_spaces.families.staged_unet.frame import units

        return units(cast("Frame", frame))

    def features(self, frame: nn.Module) -> Mapping[str, int]:
        from search_spaces.families.staged_unet.frame import features

        return features(cast("Frame", frame))

    def encoder(self, frame: nn.Module) -> nn.Module:
        from search_spaces.families.staged_unet.frame import encoder

        return encoder(cast("Frame", frame))

    def givers(self) -> Mapping[str, type]:
        from search_spaces.families.staged_unet.inherit import givers

        return givers()

    def inherit(self, frame: nn.Module, given: nn.Module) -> Mapped:
        from search_spaces.families.staged_unet.inherit import inherit

        return inherit(cast("Frame", frame), given)

    def pruning(self) -> Pruning | None:
        return None

    def picture(self, names: Sequence[str], skips: Mapping[str, str]) -> Picture:
        return staged_picture(names, skips)


FAMILY = StagedUNet()
