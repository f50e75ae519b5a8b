"""Outputs belong to someone: only ours is replaced, at one stroke, by one writer; numbers that are none go nowhere."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tuning_fixtures import make_model

from nas import outputs
from nas.cli import main
from nas.errors import NasError, explain
from nas.export.checks import check_storable
from nas.export.folder import exported
from nas.files import sole_writer, whole
from nas.finite import check_finite
from nas.media import to_uint8, write_contact_sheet, write_video
from nas.model.build import save_model
from nas.model.pipeline import load_pipeline, save_pipeline
from nas.model.sample import sample_video
from nas.outputs import new_folder, put_folder, restore, sole_writer_of


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "model")


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Folders ----------------------------------------------------------------------------------------------------------


def test_a_foreign_pipeline_is_not_overwritten_by_a_build(model: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "sd"
    shutil.copytree(model, foreign)
    told = json.loads((foreign / "model_index.json").read_text())
    told |= {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    (foreign / "model_index.json").write_text(json.dumps(told))
    before, pipeline = tree(foreign), load_pipeline(model)
    with pytest.raises(NasError, match="holds no model of this toolkit; give another --out"):
        save_model(pipeline.unet, pipeline.text_encoder, pipeline.tokenizer, None, foreign)
    with pytest.raises(NasError, match="model of another kind"):
        save_pipeline(pipeline, foreign)
    assert tree(foreign) == before


def test_a_folder_with_only_our_leftovers_is_ours(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    (out / ".x.0123456789abcdef.partial").mkdir(parents=True)
    (out / ".lock").touch()
    pipeline = load_pipeline(model)
    save_model(pipeline.unet, pipeline.text_encoder, pipeline.tokenizer, None, out)
    assert load_pipeline(out).fingerprint() == pipeline.fingerprint()


@pytest.mark.parametrize("exchanged", [True, False])
def test_a_kill_at_any_moment_leaves_the_old_folder_or_the_new_one(
    exchanged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at each file operation in turn; the same call again then gives what it gives undisturbed."""
    real = {name: getattr(os, name) for name in ("replace", "link", "mkdir", "fsync", "rmdir", "unlink", "open")}
    exchange = outputs.exchange
    done = False
    for at in range(200):
        base = tmp_path / str(at)
        out = base / "model"
        (out / "finetune").mkdir(parents=True)
        (out / "weights").write_text("old")
        (out / "index").write_text("old")
        (out / "finetune" / "state").write_text("kept")
        calls = 0

        def killing(call: Any) -> Any:
            def run(*arguments: Any, **named: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == at + 1:  # noqa: B023 - used within this turn
                    raise KeyboardInterrupt
                return call(*arguments, **named)

            return run

        def write() -> None:
            with new_folder(out) as partial:  # noqa: B023
                (partial / "weights").write_text("new")
                (partial / "index").write_text("new")

        with monkeypatch.context() as patch:
            for name, call in real.items():
                patch.setattr(os, name, killing(call))
            patch.setattr(outputs, "exchange", killing(exchange) if exchanged else lambda one, other: False)
            try:
                write()
                done = True
            except KeyboardInterrupt:
                pass
        restore(out)
        found = tree(out)
        assert found["weights"] == found["index"] and found["finetune/state"] == b"kept"
        assert not done or found["weights"] == b"new"
        write()
        assert tree(out) == {"weights": b"new", "index": b"new", "finetune/state": b"kept"}
        if done:
            assert at > 5, "nothing was killed"
            return
    raise AssertionError("never done")


def test_two_writers_of_one_folder_are_one_too_many(tmp_path: Path) -> None:
    with sole_writer_of(tmp_path / "out"):
        with pytest.raises(NasError, match="another process is writing there"), new_folder(tmp_path / "out"):
            pass
        with new_folder(tmp_path / "other"):
            pass
    with new_folder(tmp_path / "out") as partial:
        (partial / "x").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"], "nothing of ours is left beside"


def test_what_stood_aside_comes_back(tmp_path: Path) -> None:
    (tmp_path / ".model.0123.old").mkdir()
    (tmp_path / ".model.0123.old" / "x").touch()
    restore(tmp_path / "model")
    assert (tmp_path / "model" / "x").is_file()
    (tmp_path / "new").mkdir()
    put_folder(tmp_path / "new", tmp_path / "model")
    assert not list((tmp_path / "model").iterdir())


def test_an_export_folder_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "export.json").write_text('{"pages": 3}')
    with pytest.raises(NasError, match="not written by nas export"):
        exported(tmp_path)


# Files ------------------------------------------------------------------------------------------------------------


def test_a_video_that_is_not_ours_is_replaced_only_when_told_so(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.mp4"
    out.write_bytes(b"holiday")
    with pytest.raises(NasError, match="was not made by nas sample; give another --out, or --overwrite"):
        sample_video(model, ["a"], out, steps=1)
    assert out.read_bytes() == b"holiday" and not out.with_suffix(".png").exists()
    words = ["sample", str(model), "--prompt", "a", "--steps", "2", "--out", str(out)]
    for more in (["--overwrite"], []):  # the second time it is ours
        with pytest.raises(SystemExit) as stop:
            main([*words, *more])
        assert stop.value.code == 0 and "sample     2/2" in capsys.readouterr().err
    out.with_suffix(".png").write_bytes(b"portrait")
    with pytest.raises(NasError, match="x.png: is there already"):
        sample_video(model, ["a"], out, steps=1)


@pytest.mark.parametrize("write", [lambda path, frames: write_video(path, frames, 8), write_contact_sheet])
def test_a_full_disk_leaves_the_old_video_and_picture(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.out"
    path.write_bytes(b"old")

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write(path, np.zeros((2, 16, 16, 3), np.uint8))
    assert path.read_bytes() == b"old" and [found.name for found in tmp_path.iterdir()] == ["x.out"]


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--guidance", "nan", "'--guidance': must be a finite number, but is nan"),
        ("--guidance", "inf", "'--guidance': must be a finite number, but is inf"),
        ("--frames", "0", "'--frames'"),
        ("--height", "0", "'--height'"),
        ("--width", "-8", "'--width'"),
    ],
)
def test_a_number_that_is_none_or_nothing_is_one_line(
    option: str, value: str, said: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["sample", str(model), "--prompt", "a", "--out", str(tmp_path / "x.mp4"), option, value])
    lines = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and len(lines) == 1 and said in lines[0] and not list(tmp_path.iterdir())


# Numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, np.float64("nan"), np.array([1.0, np.inf]), torch.tensor([math.nan]), {"a": [1.0, math.inf]}],
)
def test_what_is_not_finite_stops_at_the_edge(value: Any) -> None:
    with pytest.raises(NasError, match="finite"):
        check_finite(value, "it", "do better")


def test_what_is_finite_passes() -> None:
    check_finite({"a": [1, 2.0, "x", None, True], "b": np.arange(3), "c": torch.arange(3), "d": 1e300}, "it", "")


def test_frames_with_a_hole_in_them_become_no_picture() -> None:
    frames = np.zeros((2, 4, 4, 3), np.float32)
    frames[1, 0, 0, 0] = np.nan
    with pytest.raises(NasError, match="1 of 96 values are not finite"):
        to_uint8(frames)


def test_infinities_are_seen_before_they_are_clipped_to_white(model: Path) -> None:
    pipeline = load_pipeline(model)
    with pytest.raises(NasError, match="the sampled frames: 768 of 768 values are not finite"):
        pipeline.decode(torch.full((1, 3, 4, 8, 8), math.inf))


class _Scaled(torch.nn.Module):
    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = torch.nn.Parameter(torch.tensor(by))


def test_weights_beyond_float16_are_refused_before_a_package_is_written() -> None:
    check_storable(_Scaled(1e3), "net")
    with pytest.raises(NasError, match="net: the weight by reaches 1e.06, over 65,504; a package in float16"):
        check_storable(_Scaled(1e6), "net")


@pytest.mark.parametrize("make", [new_folder, sole_writer, lambda out: whole(out / "page.html")])
def test_a_folder_that_cannot_be_written_is_named_and_not_a_hidden_file_in_it(make: Any, tmp_path: Path) -> None:
    """Under /proc nobody makes files, not even root."""
    with pytest.raises(OSError) as caught, make(Path("/proc/self/made")):
        pass
    said = explain(caught.value)
    assert said is not None and said.startswith("/proc/self") and "partial" not in said and "/." not in said
