"""Packages for a phone: structure, weights shared and compressed, ends, and what they say of themselves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLAllegro, FlowMatchEulerDiscreteScheduler
from latent_fixtures import save_allegro, small_space
from training_fixtures import clips, tiny

from latency_tables.lookup import load_table
from nas.cli import main
from nas.errors import NasError
from nas.export import compress, ends, export_model
from nas.export.forms import best_forms
from nas.export.metadata import PREFIX
from nas.export.network import function_name, parse_shape
from nas.model import VideoUNet
from nas.pipeline import TextToVideoPipeline
from nas.supernet import Supernet
from nas.text import TextEncoder

SMALL = (4, 16, 16)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    arrangement = tiny().sample(np.random.default_rng(2))
    unet = VideoUNet.of(tiny(), Supernet(tiny()).eval().extract(arrangement), arrangement)
    text = TextEncoder.small(tiny(), clips().captions).eval()
    path = tmp_path_factory.mktemp("export") / "model"
    TextToVideoPipeline(unet, text.model, text.tokenizer, FlowMatchEulerDiscreteScheduler()).save_pretrained(path)
    return path


def spec(package: Path) -> Any:
    import coremltools as ct

    return ct.models.MLModel(str(package), skip_model_load=True).get_spec()


@pytest.fixture(scope="module")
def plain(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("plain") / "coreml"
    return out, export_model(model, out, shapes=[SMALL])


def test_network_and_text_encoder_are_packages_with_their_shapes(plain: tuple[Path, dict[str, Any]]) -> None:
    out, facts = plain
    described = spec(out / "unet.mlpackage").description
    shapes = {entry.name: tuple(entry.type.multiArrayType.shape) for entry in described.input}
    assert shapes == {"x": (4, 3, 16, 16), "timestep": (1,), "context": (1, 16, 32)}
    assert facts["fused_attention"] >= 1 and facts["max_rank"] <= 5 and facts["package_mb"] > facts["weights_mb"] > 0
    text = spec(out / "text_encoder.mlpackage").description
    assert tuple(text.input[0].type.multiArrayType.shape) == (1, 16) and text.input[0].name == "tokens"
    assert "decoder" not in facts and not (out / "decoder.mlpackage").exists()  # the space works in pixels
    assert facts["weights_mb"] == pytest.approx(facts["weights_mb_expected"], rel=0.05)
    assert json.loads((out / "export.json").read_text())["parity"].startswith(("not checked", "within"))


def test_a_package_says_which_model_it_is(plain: tuple[Path, dict[str, Any]], model: Path) -> None:
    import coremltools as ct

    told = dict(ct.models.MLModel(str(plain[0] / "unet.mlpackage"), skip_model_load=True).user_defined_metadata)
    unet = VideoUNet.from_pretrained(model, subfolder="unet")
    assert told[PREFIX + "arrangement"] == unet.arrangement.key and told[PREFIX + "space"] == "tiny"
    assert PREFIX + "latency_ms" not in told  # nobody asked for a device


def test_shapes_are_functions_that_share_their_weights(
    model: Path, plain: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    other = (4, 16, 32)
    facts = export_model(model, tmp_path / "coreml", shapes=[SMALL, other], parts=["network"])
    found = spec(tmp_path / "coreml" / "unet.mlpackage").description
    assert (
        [entry.name for entry in found.functions] == [function_name(SMALL), function_name(other)] == facts["functions"]
    )
    assert found.defaultFunctionName == function_name(SMALL)
    assert facts["weights_mb"] < 1.05 * plain[1]["weights_mb"]


@pytest.mark.parametrize("quantize", ["int8", "palettize4"])
def test_compressed_weights_are_as_small_as_was_said(quantize: str, model: Path, tmp_path: Path) -> None:
    said: list[str] = []
    out = tmp_path / "coreml"
    facts = export_model(model, out, shapes=[SMALL], parts=["network"], quantize=quantize, tell=said.append)
    assert f"{quantize}: " in said[0] and "should become" in said[0]
    assert (
        facts["weights_mb_expected"] <= facts["weights_mb"] < 1.35 * facts["weights_mb_expected"]
    )  # tables and scales
    operations = {op.type for f in spec(out / "unet.mlpackage").mlProgram.functions.values()
                  for block in f.block_specializations.values() for op in block.operations}  # fmt: skip
    assert any("constexpr" in kind for kind in operations)


def test_predicted_costs_come_from_the_table_and_only_for_its_clip(model: Path, tmp_path: Path) -> None:
    with pytest.raises(NasError, match="is of 8x48x48, which is not among the exported shapes"):
        export_model(model, tmp_path / "coreml", shapes=[SMALL], device="amd_epyc_zen5")
    from nas.export.metadata import predicted_costs

    told = predicted_costs(VideoUNet.from_pretrained(model, subfolder="unet"), "amd_epyc_zen5", tmp_path)
    assert float(told["latency_low_ms"]) < float(told["latency_ms"]) < float(told["latency_high_ms"])
    assert told["source"] == "measured" and told["clip"] == "8x48x48"
    estimated = predicted_costs(
        VideoUNet.from_pretrained(model, subfolder="unet"), "iphone16_pro_max_roofline", tmp_path
    )
    assert estimated["source"] == "estimated" and "estimated" in estimated["evidence"]


def test_layers_are_written_in_the_form_that_the_table_found_fastest(
    model: Path, plain: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    table = load_table("amd_epyc_zen5", tmp_path)
    unet = VideoUNet.from_pretrained(model, subfolder="unet")
    assert best_forms(unet, table) == {}, "that table knows one lowering of each"
    position, layer = next(
        (name, at) for name, vs in unet.arrangement.layers for at, v in enumerate(vs) if v.block == "Conv3D"
    )
    key = unet.space.workload(position, unet.arrangement.at(position)[layer], "fp32").key
    row = table.get(key)
    assert row is not None and row.latency_ms_median is not None
    table.append(replace(row, lowering="plain+taps", latency_ms_median=0.5 * row.latency_ms_median))
    table.save(tmp_path / "amd_epyc_zen5" / "onnxruntime.csv")
    forms = best_forms(unet, load_table("amd_epyc_zen5", tmp_path))
    assert forms[position][layer] == "taps"
    clip = unet.space.clip("deployment")
    shape = (clip.frames, clip.height, clip.width)
    facts = export_model(
        model, tmp_path / "coreml", shapes=[shape], parts=["network"], device="amd_epyc_zen5", tables=tmp_path
    )
    taps = sum(wanted.count("taps") for wanted in forms.values())
    assert facts["forms"] == forms and facts["ops"]["conv"] == plain[1]["ops"]["conv"] + 2 * taps


def test_a_decoder_s_module_decodes_as_the_pipeline_does(tmp_path: Path) -> None:
    vae = AutoencoderKLAllegro.from_pretrained(save_allegro(tmp_path / "vae")).eval()
    space = small_space(tmp_path)
    torch.manual_seed(0)
    arrangement = space.sample(np.random.default_rng(0))
    unet = VideoUNet.of(space, Supernet(space).eval().extract(arrangement), arrangement)
    text = TextEncoder.small(space, ["a ball"]).eval()
    pipeline = TextToVideoPipeline(unet, text.model, text.tokenizer, FlowMatchEulerDiscreteScheduler(), vae)
    latents = torch.randn(1, 4, 2, 4, 4)
    with torch.no_grad():
        expected = pipeline.decode(latents)[0]  # before the decoder is changed in place
        part = ends.decoder(pipeline, (2, 4, 4))
        assert part is not None
        module, inputs, names = part
        assert inputs[0].shape == (2, 4, 4, 4) and names == ("latents",)
        frames = ((module(latents[0].transpose(0, 1)).clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 1)
    assert frames.shape == expected.shape and torch.allclose(frames, expected, atol=1e-4)


def test_bad_requests_are_one_line_and_leave_what_was_there(
    model: Path, plain: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = (plain[0] / "export.json").read_bytes()
    for words, said in (
        (["--quantize", "int3"], "must be one of int8, palettize8, palettize6, palettize4"),
        (["--shape", "4x16"], "must be FRAMESxHEIGHTxWIDTH in pixels"),
        (["--shape", "4x15x16"], "height must be a multiple of 2"),
        (["--parts", "network,wings"], "must be of network, text_encoder, decoder"),
        (["--device", "nobody"], "nobody"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["export", str(model), "--out", str(plain[0]), *words])
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and said in error and len(error.strip().splitlines()) == 1, error
    assert (plain[0] / "export.json").read_bytes() == before and not list(plain[0].parent.glob(".*.partial"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(NasError, match="holds no export"):
        export_model(model, tmp_path / "mine")


def test_sizes_are_added_up_by_bits() -> None:
    assert compress.predicted_mb([10_000, 100], None) == pytest.approx(0.0202)
    assert compress.predicted_mb([10_000, 100], "palettize4") == pytest.approx(0.0052)
    assert parse_shape("16x512x384") == (16, 512, 384)
