"""Video autoencoders: the family's contract, its blocks, and what a decoder promises of its frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch

from search_spaces.errors import SpaceError
from search_spaces.families import Backbone, build_backbone, family_of
from search_spaces.testing import BlockContract, FamilyContract
from search_spaces.variant import Variant

SMALL: Mapping[str, Any] = {"latent_channels": 4, "channels": [16, 8, 8, 8], "encoder": False}


class TestTinyAutoencoder(FamilyContract):
    preset = "tiny_autoencoder"
    config = SMALL
    variant = Variant.of("CausalConv3D", width=8)
    frames, height, width = 3, 4, 2


class TestSeparableDecoder(FamilyContract):
    preset = "separable"
    config: ClassVar[Mapping[str, Any]] = {"latent_channels": 4, "channels": [8, 8, 8, 8, 8, 8]}
    variant = Variant.of("Residual21D", width=8)
    frames, height, width = 2, 2, 2


class TestResidual2D(BlockContract):
    variant = Variant.of("Residual2D", width=12, depth=2)


class TestResidual21D(BlockContract):
    variant = Variant.of("Residual21D", width=12)


class TestCausalConv3D(BlockContract):
    variant = Variant.of("CausalConv3D", width=12)


class TestCausalAttention3D(BlockContract):
    variant = Variant.of("CausalAttention3D", width=12, heads=2)


def autoencoder(**config: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    preset = family_of("tiny_autoencoder").presets["tiny_autoencoder"].config
    return build_backbone(Backbone("tiny_autoencoder", {**preset, **SMALL, "encoder": True, **config})).eval()


def run(frame: torch.nn.Module, **inputs: Any) -> torch.Tensor:
    return family_of("tiny_autoencoder").run(frame, inputs, lambda name, x, beside: x)


@torch.no_grad()
def test_a_clip_of_one_and_eight_frames_comes_back_whole_and_an_image_too() -> None:
    frame = autoencoder()
    for frames, latents in ((9, 3), (1, 1)):
        moments = run(frame, video=torch.randn(2 * frames, 3, 16, 16), frames=frames)
        assert moments.shape == (2 * latents, 8, 2, 2)
        assert run(frame, x=moments[:, :4], frames=latents).shape == (2 * frames, 3, 16, 16)


@torch.no_grad()
def test_no_frame_depends_on_later_ones() -> None:
    frame = autoencoder()
    video = torch.randn(9, 3, 16, 16)
    later = torch.cat([video[:5], torch.randn(4, 3, 16, 16)])
    one, other = (run(frame, video=clip, frames=9) for clip in (video, later))
    assert torch.allclose(one[:2], other[:2], atol=1e-5) and not torch.allclose(one[2], other[2])
    image = run(frame, video=video[:1], frames=1)
    assert torch.allclose(image[0], one[0], atol=1e-5), "the first frame stands alone"


@torch.no_grad()
def test_frame_by_frame_it_decodes_what_it_decodes_whole() -> None:
    """The bare frame's two parts, the second one frame at a time, are the bare frame."""
    frame, family = autoencoder(encoder=False), family_of("tiny_autoencoder")
    x = torch.randn(3, 4, 2, 2)
    whole = run(frame, x=x, frames=3)
    held = family.part(frame, "whole")(x)
    each = family.part(frame, "frame")
    apart = torch.cat([each(one[None]) for one in held])
    assert whole.shape == apart.shape and torch.allclose(whole, apart, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"time": [2, 2]}, "time must have 3 factors"),
        ({"time": [1, 2, 2]}, "time grows after stage 2, but only the first 2 stages hold all frames; raise whole"),
        ({"channels": [48, 32, 16, 16]}, "channels 48 of stage 0 must be a multiple of 4 and divide 4 times the 32"),
        ({"space": [1, 2, 2]}, "channels change from 64 to 32 between stages 0 and 1, where space does not grow"),
        ({"causal": "yes"}, "causal must be true or false"),
        ({"whole": 9}, "whole must be at most 4"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_in_one_line(change: dict[str, Any], words: str) -> None:
    family = family_of("tiny_autoencoder")
    with pytest.raises(SpaceError, match=words.replace("[", r"\[")) as caught:
        family.layout({**family.presets["tiny_autoencoder"].config, **change})
    assert "\n" not in str(caught.value)
