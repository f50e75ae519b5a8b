"""Packages for a phone: structure, weights shared and compressed, ends, and what they say of themselves."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLAllegro, FlowMatchEulerDiscreteScheduler
from export_fixtures import SMALL
from latent_fixtures import save_allegro, small_space
from training_fixtures import tiny

from device_profiler.lowering.coreml import lower
from latency_tables.lookup import load_table
from nas.cli import main
from nas.errors import NasError
from nas.export import compress, ends, export_model
from nas.export.folder import put
from nas.export.forms import best_lowerings, forms_in
from nas.export.network import NAMES, bound_at, function_name, parse_shape
from nas.model.network import VideoUNet
from nas.model.packages import PREFIX
from nas.model.pipeline import TextToVideoPipeline
from nas.pretrained.text import TextEncoder
from nas.supernet.supernet import Supernet

Exported = tuple[Path, dict[str, Any]]


def spec(package: Path) -> Any:
    import coremltools as ct

    return ct.models.MLModel(str(package), skip_model_load=True).get_spec()


def test_network_and_text_encoder_are_packages_with_their_shapes(exported: Exported) -> None:
    out, facts = exported
    described = spec(out / "unet.mlpackage").description
    shapes = {entry.name: tuple(entry.type.multiArrayType.shape) for entry in described.input}
    assert shapes == {"x": (4, 3, 16, 16), "timestep": (1,), "context": (1, 16, 32)}
    assert facts["fused_attention"] >= 1 and facts["max_rank"] <= 5 and facts["package_mb"] > facts["weights_mb"] > 0
    text = spec(out / "text_encoder.mlpackage").description
    assert tuple(text.input[0].type.multiArrayType.shape) == (1, 16) and text.input[0].name == "tokens"
    assert "decoder" not in facts and not (out / "decoder.mlpackage").exists()  # the space works in pixels
    assert facts["weights_mb"] == pytest.approx(facts["weights_mb_expected"], rel=0.05)
    assert json.loads((out / "export.json").read_text())["parity"].startswith(("not checked", "within"))


def test_a_package_says_which_model_it_is(exported: Exported, exported_model: Path) -> None:
    import coremltools as ct

    told = dict(ct.models.MLModel(str(exported[0] / "unet.mlpackage"), skip_model_load=True).user_defined_metadata)
    unet = VideoUNet.from_pretrained(exported_model, subfolder="unet")
    assert told[PREFIX + "arrangement"] == unet.arrangement.key and told[PREFIX + "space"] == "tiny"
    assert PREFIX + "latency_ms" not in told  # nobody asked for a device


@pytest.mark.parametrize("kind", ["epsilon", pytest.param("v", marks=pytest.mark.slow)])
def test_a_package_gives_the_model_s_velocity_whatever_its_network_answers(kind: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    arrangement = tiny().sample(np.random.default_rng(2))
    unet = VideoUNet.of(tiny(), Supernet(tiny()).eval().extract(arrangement), arrangement, kind)
    bound, (x, _, context) = bound_at(unet, SMALL)
    for step in (0.0, 300.3, 750.0, 1000.0):
        with torch.no_grad():
            expected = unet(x.transpose(0, 1)[None], step, context).sample[0].transpose(0, 1)
            got = bound(x, torch.tensor([step]), context)
        assert torch.allclose(got, expected, atol=1e-4 * float(expected.abs().max()))
    told = lower(bound, (x, torch.tensor([500.0]), context), NAMES, "fused", "fp16", tmp_path)
    described = spec(tmp_path / told["file"]).description
    assert {tuple(entry.type.multiArrayType.shape) for entry in described.input} == {(4, 3, 16, 16), (1,), (1, 16, 32)}
    assert told["export_error"] < 1e-5 and told["ops"]["log"] == 1  # its schedule is in there


def test_shapes_are_functions_that_share_their_weights(
    exported_model: Path, exported: Exported, tmp_path: Path
) -> None:
    other = (4, 16, 32)
    facts = export_model(exported_model, tmp_path / "coreml", shapes=[SMALL, other], parts=["network"])
    found = spec(tmp_path / "coreml" / "unet.mlpackage").description
    assert (
        [entry.name for entry in found.functions] == [function_name(SMALL), function_name(other)] == facts["functions"]
    )
    assert found.defaultFunctionName == function_name(SMALL)
    assert facts["weights_mb"] < 1.05 * exported[1]["weights_mb"]


@pytest.mark.parametrize("quantize", [pytest.param("int8", marks=pytest.mark.slow), "palettize4"])
def test_compressed_weights_are_as_small_as_was_said(quantize: str, exported_model: Path, tmp_path: Path) -> None:
    said: list[str] = []
    out = tmp_path / "coreml"
    facts = export_model(exported_model, out, shapes=[SMALL], parts=["network"], quantize=quantize, tell=said.append)
    assert f"{quantize}: " in said[0] and "should become" in said[0]
    assert (
        facts["weights_mb_expected"] <= facts["weights_mb"] < 1.35 * facts["weights_mb_expected"]
    )  # tables and scales
    operations = {op.type for f in spec(out / "unet.mlpackage").mlProgram.functions.values()
                  for block in f.block_specializations.values() for op in block.operations}  # fmt: skip
    assert any("constexpr" in kind for kind in operations)


def test_predicted_costs_come_from_the_table_and_only_for_its_clip(exported_model: Path, tmp_path: Path) -> None:
    with pytest.raises(NasError, match="is of 8x48x48, which is not among the exported shapes"):
        export_model(exported_model, tmp_path / "coreml", shapes=[SMALL], device="amd_epyc_zen5")
    from nas.export.metadata import predicted_costs

    told = predicted_costs(VideoUNet.from_pretrained(exported_model, subfolder="unet"), "amd_epyc_zen5", tmp_path)
    assert float(told["latency_low_ms"]) < float(told["latency_ms"]) < float(told["latency_high_ms"])
    assert told["source"] == "measured" and told["clip"] == "8x48x48"
    estimated = predicted_costs(
        VideoUNet.from_pretrained(exported_model, subfolder="unet"), "iphone16_pro_max_roofline", tmp_path
    )
    assert estimated["source"] == "estimated" and "estimated" in estimated["evidence"]


def test_layers_are_written_in_the_form_that_the_table_found_fastest(
    exported_model: Path, exported: Exported, tmp_path: Path
) -> None:
    table = load_table("amd_epyc_zen5", tmp_path)
    unet = VideoUNet.from_pretrained(exported_model, subfolder="unet")
    assert forms_in(best_lowerings(unet, table)) == {}, "that table knows one lowering of each"
    position, layer = next(
        (name, at) for name, vs in unet.arrangement.layers for at, v in enumerate(vs) if v.block == "Conv3D"
    )
    key = unet.space.workload(position, unet.arrangement.at(position)[layer], "fp32").key
    row = table.get(key)
    assert row is not None and row.latency_ms_median is not None
    table.append(replace(row, lowering="plain+taps", latency_ms_median=0.5 * row.latency_ms_median))
    table.save(tmp_path / "amd_epyc_zen5" / "onnxruntime.csv")
    forms = forms_in(best_lowerings(unet, load_table("amd_epyc_zen5", tmp_path)))
    assert forms[position][layer] == "taps"
    clip = unet.space.clip("deployment")
    shape = (clip.frames, clip.height, clip.width)
    facts = export_model(
        exported_model, tmp_path / "coreml", shapes=[shape], parts=["network"], device="amd_epyc_zen5", tables=tmp_path
    )
    taps = sum(wanted.count("taps") for wanted in forms.values())
    assert facts["forms"] == forms and facts["ops"]["conv"] == exported[1]["ops"]["conv"] + 2 * taps


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
    exported_model: Path, exported: Exported, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = (exported[0] / "export.json").read_bytes()
    for words, said in (
        (["--quantize", "int3"], "must be one of int8, palettize8, palettize6, palettize4"),
        (["--shape", "4x16"], "must be FRAMESxHEIGHTxWIDTH in pixels"),
        (["--shape", "4x15x16"], "height must be a multiple of 2"),
        (["--parts", "network,wings"], "must be of network, text_encoder, decoder"),
        (["--device", "nobody"], "nobody"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["export", str(exported_model), "--out", str(exported[0]), *words])
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and said in error and len(error.strip().splitlines()) == 1, error
    assert (exported[0] / "export.json").read_bytes() == before and not list(exported[0].parent.glob(".*.partial"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(NasError, match="holds no export"):
        export_model(exported_model, tmp_path / "mine")


def test_exporting_one_part_again_leaves_the_others(
    exported_model: Path, exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "coreml"
    shutil.copytree(exported[0], out)
    (out / "notes.txt").write_text("mine")
    before = json.loads((out / "export.json").read_text())
    monkeypatch.chdir(out)
    export_model(exported_model, Path("."), shapes=[SMALL], parts=["text_encoder"], quantize="int8")
    after = json.loads((out / "export.json").read_text())
    assert after.pop("text_encoder")["quantize"] == "int8" and before.pop("text_encoder")["quantize"] is None
    assert after == before and after["quantize"] is None and after["operations"] == exported[1]["operations"]
    assert {path.name for path in out.iterdir()} == {
        "export.json",
        "notes.txt",
        "text_encoder.mlpackage",
        "unet.mlpackage",
    }
    assert spec(out / "unet.mlpackage").description == spec(exported[0] / "unet.mlpackage").description
    assert not list(tmp_path.glob(".*"))


def test_packages_of_two_models_do_not_share_a_folder(exported_model: Path, exported: Exported, tmp_path: Path) -> None:
    out = tmp_path / "coreml"
    shutil.copytree(exported[0], out)
    facts = json.loads((out / "export.json").read_text())
    (out / "export.json").write_text(json.dumps({**facts, "weights": "of another"}))
    with pytest.raises(NasError, match="holds unet.mlpackage of another model; export all parts anew"):
        export_model(exported_model, out, shapes=[SMALL], parts=["text_encoder"])


def test_packages_lie_beside_the_model_one_stands_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Path] = []

    def export(model: Path, out: Path, *more: Any, **named: Any) -> dict[str, Any]:
        asked.append(out)
        return {"forms": {}, "predicted": None}

    monkeypatch.setattr("nas.export.export_model", export)
    for model in (".", "run/model"):
        with pytest.raises(SystemExit):
            main(["export", model])
    assert asked == [Path("../coreml"), Path("run/coreml")]


@pytest.mark.parametrize("killed_at", range(8))
def test_what_export_json_tells_of_is_there_whenever_it_is_killed(
    killed_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, partial = tmp_path / "out", tmp_path / ".out.partial"
    for folder, text in ((out, "old"), (partial, "new")):
        for name in ("unet", "text_encoder", "decoder")[: 3 if folder == out else 2]:
            (folder / f"{name}.mlpackage").mkdir(parents=True)
            (folder / f"{name}.mlpackage" / "made").write_text(text)
    before = {"operations": "old", "text_encoder": "old", "decoder": "old"}
    facts = {"operations": "new", "text_encoder": "new"}
    (out / "export.json").write_text(json.dumps(before))
    calls: list[Any] = []
    replace = os.replace

    def killed(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == killed_at + 1:
            raise KeyboardInterrupt
        replace(*arguments)

    monkeypatch.setattr(os, "replace", killed)
    with contextlib.suppress(KeyboardInterrupt):
        put(partial, out, facts, before)
    told = json.loads((out / "export.json").read_text())
    assert told["decoder"] == (out / "decoder.mlpackage" / "made").read_text() == "old"
    for key, name in (("operations", "unet"), ("text_encoder", "text_encoder")):
        assert key not in told or told[key] == (out / f"{name}.mlpackage" / "made").read_text()
    assert killed_at < 6 or told == {**before, **facts}  # six moves in all


def test_sizes_are_added_up_by_bits() -> None:
    assert compress.predicted_mb([10_000, 100], None) == pytest.approx(0.0202)
    assert compress.predicted_mb([10_000, 100], "palettize4") == pytest.approx(0.0052)
    assert parse_shape("16x512x384") == (16, 512, 384)
