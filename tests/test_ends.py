"""The text encoder and the decoder: workloads with rows of their own, what is refused, and what a plan says of them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from device_profiler.admission import admit
from device_profiler.device import Device
from device_profiler.errors import OutOfMemory
from device_profiler.lowering import lower
from device_profiler.subject import Subject
from search_spaces import ends
from search_spaces.ends import DECODERS, build_decoder, build_text_encoder, decoder_spec
from search_spaces.errors import SpaceError
from search_spaces.network import build_module
from search_spaces.planning import load_plan
from search_spaces.space import Space
from search_spaces.testing import _RankMeter


def test_a_space_of_latents_has_two_ends_and_one_of_pixels_has_one() -> None:
    keys = [workload.key for workload in Space.load("snapgen_v").ends("fp16")]
    assert keys == ["text_encoder:clip_vit_l14/l77x768/b1@fp16", "decoder:allegro/t6/24x24/b1@fp16"]
    assert [workload.key for workload in Space.load("tiny").ends("fp32")] == ["text_encoder:small/l16x32/b1@fp32"]


def test_tiles_cover_the_clip() -> None:
    spec = decoder_spec("allegro")
    (tile, shared), covered = (spec.tile[1], spec.overlap[1]), 0
    calls = spec.calls(1, 64, 1)
    covered = tile + (calls - 1) * (tile - shared)
    assert covered >= 64 > covered - (tile - shared)
    assert spec.calls(*spec.tile) == 1 and spec.tile_of(2, 8, 100) == (2, 8, spec.tile[2])
    assert Space.load("snapgen_v").decoder_calls() == 7 * 3 * 3


def test_the_plan_names_both_ends_and_the_tables_read_them() -> None:
    plan = load_plan("snapgen_v")
    assert plan.text_encoder is not None and plan.decoder is not None
    assert plan.text_encoder.parameters == 123_060_480  # CLIP ViT-L/14's text model
    assert (plan.decoder.workload, plan.decoder.calls) == ("decoder:allegro/t6/24x24/b1", 63)
    tiny = load_plan("tiny")
    assert tiny.decoder is None and tiny.text_encoder is not None


def test_a_decoder_makes_frames_of_latents() -> None:
    spec = DECODERS["allegro"]
    with torch.device("meta"), torch.no_grad():
        frames = build_decoder("allegro")(torch.empty(2, spec.channels, 4, 3))
    assert frames.shape == (2 * spec.time, 3, 4 * spec.space, 3 * spec.space)


def test_a_decoder_is_that_of_diffusers_within_five_axes() -> None:
    from diffusers.models.autoencoders.autoencoder_kl_allegro import AllegroTemporalConvLayer

    torch.manual_seed(0)
    theirs = AllegroTemporalConvLayer(8, norm_num_groups=2, up_sample=True, stride=3).eval()
    x = torch.randn(3, 8, 5, 4)
    with torch.no_grad(), _RankMeter() as meter:
        ours = ends._twice_the_frames(theirs, x, 1)
    with torch.no_grad():
        assert torch.allclose(ours, theirs(x, 1), atol=1e-6)
    assert meter.rank == 5
    norm, video = torch.nn.GroupNorm(2, 8), torch.randn(1, 8, 3, 5, 4)
    torch.nn.init.normal_(norm.weight)
    assert torch.allclose(ends._flat_norm(norm, video), norm(video), atol=1e-6)
    layers = [m for m in build_decoder("allegro").modules() if isinstance(m, AllegroTemporalConvLayer) and m.up_sample]
    assert len(layers) == 2 and all("forward" in vars(layer) for layer in layers)


def test_the_small_encoder_gives_the_spaces_width() -> None:
    module, words = build_text_encoder("small", 16, 32)
    with torch.no_grad():
        assert module(torch.randint(words, (2, 16))).shape == (2, 16, 32)


@pytest.mark.parametrize("toolkit", ["onnx", "coreml"])
def test_an_encoder_is_lowered_with_whole_numbers_as_input(toolkit: str, tmp_path: Path) -> None:
    (workload,) = Space.load("tiny").ends("fp16" if toolkit == "coreml" else "fp32")
    lowered = lower(Subject(workload), toolkit, "plain", tmp_path)
    assert [(spec.name, spec.dtype) for spec in lowered.inputs] == [("tokens", "int64")]
    assert lowered.output_shape == (1, 16, 32) and lowered.stats["weights_mb"] > 0


def test_a_decoder_that_cannot_fit_is_refused_with_the_figure() -> None:
    workload = Space.load("snapgen_v").ends("fp16")[1]
    phone = Device.load("iphone16_pro_max_roofline")
    admit(workload, "plain", phone)
    with pytest.raises(
        OutOfMemory, match=r"decoder allegro needs 24\.2 GB .* 30x64x64 latents, over the device's 1\.8 GB"
    ):
        admit(replace(workload, frames=30, height=64, width=64), "plain", phone)


def test_weights_and_inputs_are_the_same_for_the_same_seed() -> None:
    (workload,) = Space.load("tiny").ends("fp32")
    (first, inputs, _), (second, again, _) = (build_module(workload) for _ in range(2))
    assert torch.equal(inputs[0], again[0]) and torch.equal(first(*inputs), second(*again))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("encoder: clip_vit_l14", "encoder: clip_vit_l41", r"unknown text encoder .*clip_vit_l14"),
        ("tokens: 77", "tokens: 78", "gives 77 vectors of width 768, but the space has 78"),
        ("decoder: allegro", "decoder: alegro", "unknown decoder .*allegro"),
        ("time: 4", "time: 2", "multiplies time by 4 and space by 8"),
    ],
)
def test_a_wrong_end_is_one_line_with_the_remedy(old: str, new: str, message: str, tmp_path: Path) -> None:
    source = Space.load("snapgen_v").source
    assert source is not None
    path = tmp_path / "mine.yaml"
    path.write_text(source.read_text().replace(old, new))
    with pytest.raises(SpaceError, match=message) as caught:
        Space.load(path)
    assert "\n" not in str(caught.value)
