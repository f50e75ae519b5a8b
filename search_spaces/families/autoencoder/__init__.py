"""Video autoencoders: a decoder whose stages are chosen, and its encoder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from search_spaces.errors import SpaceError
from search_spaces.families.autoencoder.layout import PRESETS, decoder_layout
from search_spaces.families.contract import Layout, Mapped, Picture, Preset, Pruning, Row

if TYPE_CHECKING:
    from torch import Tensor, nn

    from search_spaces.families.contract import At, Watch


class VideoAutoencoder:
    """The family of video autoencoders: latents in, frames out, one stage of convolutions at every resolution.

    What is searched, measured and deployed is the decoder; the frame also holds the encoder, where its configuration
    has one. The first ``whole`` stages hold all frames, the others decode frame by frame.

    Each method's docstring is the contract's; what is particular stands with the function that it calls.
    """

    name = "autoencoder"
    task = "reconstruct"
    presets: Mapping[str, Preset] = PRESETS

    def layout(self, config: Mapping[str, Any]) -> Layout:
        return decoder_layout(config)

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        from search_spaces.families.autoencoder.frame import Frame

        return Frame(config)

    def run(self, frame: nn.Module, inputs: Mapping[str, Any], at: At, watch: Watch | None = None) -> Tensor:
        """Latents ``x`` to frames; or, of a ``video (B*T, 3, H, W)`` in [-1, 1], the encoder's moments.

        The moments are ``(B*t, 2*z, h, w)``: the mean of every latent, then the logarithm of its variance. Of part
        ``whole`` latents go only as far as all frames are held; of ``frame`` held frames go on from there.
        """
        from search_spaces.families.autoencoder.frame import run_decoder, run_each, run_encoder, run_whole

        if "video" in inputs:
            return run_encoder(frame, inputs["video"], inputs["frames"])
        if inputs.get("part") == "whole":
            return run_whole(frame, inputs["x"], inputs["frames"], at, watch)
        if inputs.get("part") == "frame":
            return run_each(frame, inputs["x"], at, watch)
        return run_decoder(frame, inputs["x"], inputs["frames"], at, watch)

    def part(self, frame: nn.Module, name: str) -> nn.Module:
        from search_spaces.families.autoencoder.frame import part_of

        return part_of(frame, name)

    def units(self, frame: nn.Module) -> Iterable[nn.Module]:
        from search_spaces.families.autoencoder.frame import units

        return units(frame)

    def features(self, frame: nn.Module) -> Mapping[str, int]:
        return {}  # a decoder's running tensors say nothing of whether a video is real

    def encoder(self, frame: nn.Module) -> nn.Module:
        from copy import deepcopy

        return deepcopy(frame)

    def givers(self) -> Mapping[str, type]:
        return {}

    def inherit(self, frame: nn.Module, given: nn.Module) -> Mapped:
        raise SpaceError("an autoencoder of ours takes no given weights; distil a decoder for a given encoder instead")

    def pruning(self) -> Pruning | None:
        return None

    def picture(self, names: Sequence[str], skips: Mapping[str, str]) -> Picture:
        return Picture(tuple(Row(name) for name in names), "latents", "frames")


FAMILY = VideoAutoencoder()
