"""Bad input: one clear line, exit code 2 (or 1 where the answer is no), nothing overwritten."""

from __future__ import annotations

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from search_problems import tiny_problem
from training_fixtures import clips, short, tiny

from latency_tables.header import Header
from latency_tables.table import Table, table_path
from nas.cli import main
from nas.config import resolve, store
from nas.supernet.stage import train
from nas.training.checkpoint import sole_writer
from search_spaces.space import Space

SETTINGS = ["--set", "data.source=moving_shapes", "--set", "train.threads=1"]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()} if folder.exists() else {}


class Shell:
    """Runs a command and checks what every refusal has in common."""

    def __init__(self, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
        self.capsys, self.folder = capsys, folder

    def refused(self, *words: object, code: int = 2) -> str:
        before = files(self.folder)
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([str(word) for word in words])
        lines = [line for line in self.capsys.readouterr().err.splitlines() if line.startswith("nas: ")]
        assert stopped.value.code == code
        assert len(lines) == 1
        after = files(self.folder)
        assert {path: after.get(path) for path in before} == before
        return lines[0]


@pytest.fixture()
def shell(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Shell:
    return Shell(capsys, tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a table of made-up costs and a supernet of six steps."""
    out = tmp_path_factory.mktemp("trained") / "run"
    sets = ["data.source=moving_shapes", "train.steps=6", "train.warmup_steps=2", "quality.clips=4"]
    store(resolve("tiny", sets=sets), out)
    made_up = tiny_problem().costs
    header = Header(device="host_cpu", runtime="onnxruntime", precision="fp32", chip="made up")
    Table(header, made_up.rows.values()).save(table_path(out / "table", "host_cpu", "onnxruntime"))
    train(tiny(), clips(), short(), out / "supernet", seed=0)
    return out


@pytest.fixture()
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def space_yaml(folder: Path, change: tuple[str, str]) -> Path:
    import search_spaces.space

    text = (search_spaces.space.SPACES / "tiny.yaml").read_text()
    assert change[0] in text
    path = folder / "mine.yaml"
    path.write_text(text.replace(*change, 1))
    return path


def test_a_misspelt_key(shell: Shell, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert "Did you mean 'steps'?" in shell.refused("run", "tiny", "--out", out, "--set", "train.stepz=3")
    config = tmp_path / "config.yaml"
    config.write_text("serach: {trials: 3}\n")
    assert "serach: unknown key" in shell.refused("train", "tiny", "--out", out, "--config", config)
    assert not out.exists()
    assert "unknown key" in shell.refused("space", "check", space_yaml(tmp_path, ("max_layers:", "max_layer:")))


def test_an_unknown_block_or_device_or_space(shell: Shell, tmp_path: Path) -> None:
    path = space_yaml(tmp_path, ("Conv3D(kernel_size=3)", "SelfAttention2D(heads=2)"))
    line = shell.refused("space", "show", path)
    assert "SelfAttention2D" in line and "Conv1D, Conv3D, CrossAttention1D" in line and "positions.down.0.0" in line
    line = shell.refused("profile", "tiny", "--device", "host_cpp", "--table", tmp_path / "tables")
    assert "host_cpp" in line and "host_cpu" in line
    assert "tiny" in shell.refused("space", "show", "tinny")


def test_heads_that_do_not_divide_the_channels(shell: Shell, tmp_path: Path) -> None:
    line = shell.refused(
        "space", "show", space_yaml(tmp_path, ("SelfAttention1D(heads=2)", "SelfAttention1D(heads=3)"))
    )
    assert "heads" in line and "16" in line and "3" in line


def test_a_corrupt_or_half_written_table(shell: Shell, run: Path) -> None:
    table = table_path(run / "table", "host_cpu", "onnxruntime")
    whole = table.read_bytes()
    table.write_bytes(whole[: len(whole) // 2])
    assert str(table) in shell.refused("search", run)
    table.write_bytes(b"\x00\xff not a table")
    assert str(table) in shell.refused("search", run)
    assert str(table) in shell.refused("profile", "tiny", "--table", run / "table")


def test_a_video_that_does_not_decode(shell: Shell, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    (videos / "broken.mp4").write_bytes(b"this is no video" * 100)
    (videos / "captions.csv").write_text("path,caption\nbroken.mp4,a broken film\n")
    out = tmp_path / "run"
    words = ("train", "tiny", "--out", out, "--set", "data.source=folder", "--set", f"data.path={videos}")
    line = shell.refused(*words, "--set", f"data.cache={tmp_path / 'cache'}")
    assert "broken.mp4" in line
    (videos / "captions.csv").unlink()
    assert "captions" in shell.refused(*words, "--set", f"data.cache={tmp_path / 'cache'}")


def test_a_checkpoint_of_another_space(shell: Shell, run: Path) -> None:
    for state in run.glob("supernet/step-*/state.json"):
        facts = json.loads(state.read_text())
        state.write_text(json.dumps({**facts, "space": "0123456789ab"}))
    assert "checkpoint's space is '0123456789ab'" in shell.refused("search", run)


def test_a_budget_below_the_bare_backbone(shell: Shell, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(run)
    with pytest.raises(SystemExit) as stopped:
        main(["search", str(run), "--latency-ms", "1"])
    out = capsys.readouterr().out
    assert stopped.value.code == 1
    assert "latency_ms 1.000 ms is missed: nearest is 44.000 ms (43.000 ms over" in out  # 40 and the margin
    assert files(run) == before


def test_a_run_with_a_budget_that_nothing_meets_stops_before_training(
    shell: Shell, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "other"
    table = table_path(run / "table", "host_cpu", "onnxruntime")

    def measured(space: str, device: str, table_dir: Path, **_: Any) -> None:
        shutil.copytree(table.parent, table_dir / "host_cpu")
        made = Table.load(table_path(table_dir, "host_cpu", "onnxruntime"))
        ends = [row.key for row in Space.load("tiny").ends("fp32")]
        made.append([replace(next(iter(made)), key=key) for key in ends])
        made.save(table_path(table_dir, "host_cpu", "onnxruntime"))

    monkeypatch.setattr("nas.run.job.profile_space", measured)
    line = shell.refused("run", "tiny", "--out", out, *SETTINGS, "--set", "search.latency_ms=1", code=1)
    assert "nearest feasible budget" in line
    assert not (out / "supernet").exists()


def test_a_full_disk(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors.torch

    def full(tensors: Any, path: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", path)

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    few = ("--set", "train.steps=2", "--set", "train.warmup_steps=1")
    assert "the disk is full" in shell.refused("train", "tiny", "--out", tmp_path / "run", *SETTINGS, *few)


def test_a_warm_up_that_leaves_no_step_for_the_temporal_layers(shell: Shell, run: Path, tmp_path: Path) -> None:
    for command in ("train", "run"):
        line = shell.refused(command, "tiny", "--out", tmp_path / "new", *SETTINGS, "--set", "train.steps=200")
        assert "no path is trained, but is 400 of 200; add --set train.warmup_steps=66" in line
    assert not (tmp_path / "new").exists()


def test_two_trainings_in_one_folder(shell: Shell, run: Path) -> None:
    words = ("train", "tiny", "--out", run, "--set", "data.source=moving_shapes", "--set", "train.steps=6")
    words += ("--set", "train.warmup_steps=2", "--set", "quality.clips=4")
    with sole_writer(run / "supernet"):
        assert "another process is writing there; wait for it" in shell.refused(*words)
        assert "another process is writing there" in shell.refused(*words, "--set", "train.keep=5")


def test_too_few_validation_clips(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("train", "tiny", "--out", tmp_path / "run", *SETTINGS)
    assert "data.validation_clips" in shell.refused(*words, "--set", "data.validation_clips=1")
    monkeypatch.setattr("nas.data.shapes.MovingShapes.__len__", lambda shapes: 1)  # as of a single short video
    assert "validation needs 2 clips or more, but the data gives 1" in shell.refused(*words)
    assert not (tmp_path / "run").exists()


def test_a_folder_of_another_run_or_of_something_else(shell: Shell, run: Path, tmp_path: Path) -> None:
    assert "holds another run: seed" in shell.refused("run", "tiny", "--out", run, "--set", "seed=9")
    other = tmp_path / "letters"
    other.mkdir()
    (other / "letter.txt").write_text("dear reader")
    assert "is not empty" in shell.refused("run", "tiny", "--out", other)
    assert "no run folder" in shell.refused("search", other)
    assert "no arrangement.yaml" in shell.refused("build", run)
    assert "model_index.json" in shell.refused("sample", other, "--prompt", "a cat")
    assert "model_index.json" in shell.refused("export", other)


def test_settings_that_cannot_be(shell: Shell, run: Path) -> None:
    assert "must be a number over 0" in shell.refused("search", run, "--latency-ms", "-5")
    assert "Known samplers" in shell.refused("search", run, "--sampler", "best")


def test_a_space_in_latents_says_that_it_cannot_be_trained_yet(shell: Shell, tmp_path: Path) -> None:
    assert "encode the data first" in shell.refused("train", "snapgen_v", "--out", tmp_path / "run", *SETTINGS)


def test_estimates_do_not_drive_a_search_unless_told_to(shell: Shell, run: Path) -> None:
    path = table_path(run / "table", "host_cpu", "onnxruntime")
    table = Table.load(path)
    rows = [replace(row, source="estimated", estimator="roofline") for row in table]
    Table(table.header, rows).save(path, replace=True)
    assert "search.allow_estimated=true" in shell.refused("search", run)
