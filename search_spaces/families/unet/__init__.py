"""diffusers' UNet2DConditionModel as the frame of a video network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from search_spaces.families.contract import Layout, Mapped, Picture, Preset, Pruning
from search_spaces.families.unet.layout import PRESETS, unet_layout
from search_spaces.families.unet.picture import unet_picture

if TYPE_CHECKING:
    from torch import Tensor, nn

    from search_spaces.families.contract import At, Watch


class UNet:
    """The family of ``UNet2DConditionModel``: frames in the batch, chosen layers after every resnet(+attention) pair.

    Each method's docstring is the contract's; what is particular stands with the function that it calls.
    """

    name = "unet"
    task = "denoise"
    presets: Mapping[str, Preset] = PRESETS

    def layout(self, config: Mapping[str, Any]) -> Layout:
        return unet_layout(config)

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        from search_spaces.families.unet.run import build_unet

        return build_unet(config)

    def run(self, frame: nn.Module, inputs: Mapping[str, Any], at: At, watch: Watch | None = None) -> Tensor:
        from search_spaces.families.unet.run import run_unet

        return run_unet(frame, inputs["x"], inputs["timestep"], inputs["context"], inputs["frames"], at, watch)

    def part(self, frame: nn.Module, name: str) -> nn.Module:
        from search_spaces.families.unet.run import part_of

        return part_of(frame, name)

    def units(self, frame: nn.Module) -> Iterable[nn.Module]:
        from search_spaces.families.unet.run import units

        return units(frame)

    def features(self, frame: nn.Module) -> Mapping[str, int]:
        from search_spaces.families.unet.encoder import features

        return features(frame)

    def encoder(self, frame: nn.Module) -> nn.Module:
        from search_spaces.families.unet.encoder import encoder

        return encoder(frame)

    def givers(self) -> Mapping[str, type]:
        from search_spaces.families.unet.inherit import givers

        return givers()

    def inherit(self, frame: nn.Module, given: nn.Module) -> Mapped:
        from search_spaces.families.unet.inherit import inherit

        return inherit(frame, given)

    def pruning(self) -> Pruning | None:
        from search_spaces.families.unet import cuts

        return cuts

    def picture(self, names: Sequence[str], skips: Mapping[str, str]) -> Picture:
        return unet_picture(names, skips)


FAMILY = UNet()
