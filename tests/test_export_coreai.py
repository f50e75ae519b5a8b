"""``nas export --format coreai``: files that Core AI's own runtime executed here and held to the model."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from export_fixtures import SMALL
from test_coreai import needs_coreai

from device_profiler.lowering import coreai
from nas.cli import main
from nas.errors import AnswerIsNo, NasError
from nas.export import coreai as export
from nas.export import export_model
from nas.export.coreai import Halved
from nas.export.network import NAMES, bound_at
from nas.model.packages import APP
from nas.model.pipeline import load_pipeline

OTHER = (8, 16, 16)


@pytest.fixture(scope="module")
def made(exported_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("coreai") / "coreai"
    return out, export_model(exported_model, out, shapes=[SMALL, OTHER], format="coreai")


@needs_coreai
def test_each_function_is_executed_and_is_the_model(made: tuple[Path, dict[str, Any]]) -> None:
    out, facts = made
    assert sorted(file.name for file in out.iterdir()) == ["export.json", "text_encoder.aimodel", "unet.aimodel"]
    checks = {**facts["check"], "text": facts["text_encoder"]["check"]["main"]}
    assert set(checks) == {"f4x16x16", "f8x16x16", "text"}
    for found in checks.values():
        assert found["error_fp32"] < 1e-4 and 0 < found["error_fp16"] < 5e-3
    told = json.loads((out / "export.json").read_text())
    assert told["format"] == "coreai" and told["check"] == facts["check"]
    app = json.loads(coreai.metadata_of(out / "unet.aimodel")[APP])
    assert app["functions"]["f4x16x16"]["pixels"] == list(SMALL) and app["model"] == told["weights"]
    assert any("executed by Core AI's runtime, off by" in line for line in export.sentences(facts))


@needs_coreai
def test_what_answers_otherwise_replaces_nothing(
    made: tuple[Path, dict[str, Any]], exported_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "coreai"
    shutil.copytree(made[0], out)
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    predict = coreai.predict
    monkeypatch.setattr(coreai, "predict", lambda *given: 1.01 * predict(*given))
    with pytest.raises(AnswerIsNo, match="Core AI's answer in float32 is off by 0.01 of the largest output, over 0.0"):
        export_model(exported_model, out, parts=["text_encoder"], format="coreai")
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before
    facts = export_model(exported_model, out, parts=["text_encoder"], check=False, format="coreai")
    assert facts["text_encoder"]["check"] == "not checked: --no-check"
    assert coreai.metadata_of(out / "text_encoder.aimodel")["temporal_nas.check"] == "not checked: --no-check"
    assert json.loads((out / "export.json").read_text())["check"] == made[1]["check"], "the network's facts stay"


@needs_coreai
@pytest.mark.parametrize("kind", ["epsilon", "v"])
def test_a_velocity_comes_out_whatever_the_network_answers(kind: str, exported_model: Path, tmp_path: Path) -> None:
    from nas.tasks.noise import Diffusion

    unet = load_pipeline(exported_model).unet.eval()
    bound, inputs = bound_at(unet, SMALL, True)
    bound.diffusion = Diffusion(kind)  # type: ignore[arg-type]
    path = tmp_path / "unet.aimodel"
    coreai.write([coreai.Entry("main", Halved(bound), inputs)], NAMES, path, half=True, wide=["timestep"])
    with torch.no_grad():
        assert coreai.error_of(path, bound, inputs, NAMES) < 2e-2


def test_what_cannot_be_asked_of_it_is_one_line(
    exported_model: Path, exported: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for more, words in (
        ({"format": "onnx"}, "--format onnx: must be one of coreml, coreai"),
        ({"format": "coreai", "safe": True, "quantize": "int8"}, "--quantize, --safe: of Core ML's packages alone"),
    ):
        with pytest.raises(NasError, match=words):
            export_model(exported_model, tmp_path / "out", **more)  # type: ignore[arg-type]
    monkeypatch.setattr(coreai, "available", lambda: False)
    with pytest.raises(NasError, match="--format coreai needs coreai-torch: pip install"):
        export_model(exported_model, tmp_path / "out", format="coreai")
    monkeypatch.setattr(coreai, "available", lambda: True)
    with pytest.raises(NasError, match="holds packages of --format coreml; give another --out"):
        export_model(exported_model, exported[0], format="coreai")
    assert not (tmp_path / "out").exists()


def test_the_command_names_its_own_folder(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[Any] = []

    def stand_in(model: Path, out: Path, *more: Any, **named: Any) -> dict[str, Any]:
        asked.append((out, named["format"]))
        return {"format": "coreai", "operations": 7, "package_mb": 1.0, "check": "not checked: --no-check"}

    monkeypatch.setattr("nas.export.export_model", stand_in)
    with pytest.raises(SystemExit) as end:
        main(["export", "run/model", "--format", "coreai"])
    assert end.value.code == 0 and asked == [(Path("run/coreai"), "coreai")]
    assert "unet.aimodel: 7 operations" in capsys.readouterr().out
