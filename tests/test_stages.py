"""The main job's stages: done only with all that they leave, checked before the first, one run a folder at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from latency_tables.header import Header
from latency_tables.table import Table
from nas.cli import main
from nas.errors import NasError
from nas.files import sole_writer
from nas.run.folder import read_metrics
from nas.run.stages import (
    Stage,
    has_checkpoint,
    has_comparison,
    has_files,
    has_model,
    has_packages,
    has_rows,
    run_stages,
)
from search_spaces.planning import load_plan
from search_spaces.space import Space


class Job:
    """Two stages that each leave two files, and note that they ran."""

    def __init__(self, out: Path) -> None:
        self.out, self.ran, self.checked = out, [], []
        self.fails = ""

    def stage(self, name: str, inputs: list[str | Path]) -> Stage:
        left = [self.out / f"{name}.a", self.out / f"{name}.b"]

        def work() -> None:
            self.ran.append(name)
            for path in left:
                path.write_text(name)

        def check() -> None:
            self.checked.append(name)
            if name == self.fails:
                raise NasError(f"{name} cannot")

        return Stage(name, inputs, lambda: has_files(*left), work, check)

    def run(self, setting: str = "x") -> list[str]:
        self.ran = []
        stages = [self.stage("first", [setting]), self.stage("second", [self.out / "first.a"])]
        run_stages(self.out, stages, lambda stage: None)
        return self.ran


def test_a_stage_is_done_with_all_that_it_leaves_and_not_with_a_part(tmp_path: Path) -> None:
    job = Job(tmp_path)
    assert job.run() == ["first", "second"] and job.run() == []
    (tmp_path / "second.b").unlink()
    assert job.run() == ["second"]
    (tmp_path / "first.b").write_text("")
    assert job.run() == ["first"], "what it depends on is as before, so the second stands"
    assert job.run("another setting") == ["first"]
    (tmp_path / "first.a").write_text("changed")
    assert job.run("another setting") == ["second"]
    assert set(read_metrics(tmp_path)["timings"]) == {"first", "second"}


def test_what_the_last_stage_needs_is_checked_before_the_first(tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.fails = "second"
    with pytest.raises(NasError, match="second cannot"):
        job.run()
    assert job.ran == [] and job.checked == ["first", "second"]
    job.fails = ""
    job.run()
    job.checked = []
    assert job.run() == [] and job.checked == [], "with nothing to do nothing is asked"


def test_a_stage_that_leaves_less_than_it_should_is_not_noted_as_done(tmp_path: Path) -> None:
    half = Stage("half", ["x"], lambda: has_files(tmp_path / "absent"), lambda: None)
    with pytest.raises(NasError, match="half ended without all that it should leave"):
        run_stages(tmp_path, [half], lambda stage: None)
    assert "half" not in read_metrics(tmp_path).get("done", {})


# What the stages of a run leave -------------------------------------------------------------------------


def write(path: Path, data: object = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def model(folder: Path) -> list[Path]:
    """A model folder's files, without what is in them."""
    parts = {"unet": ["nas", "VideoUNet"], "tokenizer": ["transformers", "T"], "vae": [None, None], "_class_name": "P"}
    shards = {"weight_map": {"w": "m-00001-of-00002.safetensors", "v": "m-00002-of-00002.safetensors"}}
    index = write(folder / "unet" / "m.safetensors.index.json", shards)
    write(folder / "unet" / "config.json", {})
    one, two = (
        write(folder / "unet" / "m-00001-of-00002.safetensors"),
        write(folder / "unet" / "m-00002-of-00002.safetensors"),
    )
    tokens = write(folder / "tokenizer" / "tokenizer_config.json", {})
    return [one, two, tokens, index, write(folder / "model_index.json", parts)]


def packages(folder: Path) -> list[Path]:
    files = []
    for name in ("unet", "text_encoder"):
        package = folder / f"{name}.mlpackage"
        entries = {"a": {"path": "c/model.mlmodel"}, "b": {"path": "c/weights"}}
        files.append(write(package / "Manifest.json", {"itemInfoEntries": entries}))
        files += [write(package / "Data" / "c" / "model.mlmodel"), write(package / "Data" / "c" / "weights" / "w.bin")]
    write(folder / "export.json", {"package": "x", "operations": 3, "text_encoder": {"package_mb": 1.0}})
    return [path for path in files if path.name != "w.bin"] + [folder / "export.json"]


def checkpoint(folder: Path) -> list[Path]:
    weights = write(folder / "weights.safetensors", "12345")
    return [weights, write(folder / "state.json", {"bytes": {"weights": 5}})]


@pytest.mark.parametrize(
    ("make", "whole"), [(model, has_model), (packages, has_packages), (checkpoint, has_checkpoint)]
)
def test_each_named_piece_is_looked_for(
    make: Callable[[Path], list[Path]], whole: Callable[[Path], bool], tmp_path: Path
) -> None:
    pieces = make(tmp_path / "all")
    assert whole(tmp_path / "all") and not whole(tmp_path / "absent")
    for piece in pieces:
        kept = piece.read_text()
        piece.unlink()
        assert not whole(tmp_path / "all"), piece
        piece.write_text(kept)
    assert whole(tmp_path / "all")
    for damaged in ("{", "[]", "[" * 100_000):
        pieces[-1].write_text(damaged)
        assert not whole(tmp_path / "all")


def test_a_checkpoint_cut_short_is_none(tmp_path: Path) -> None:
    weights, _ = checkpoint(tmp_path)
    weights.write_text("1234")
    assert not has_checkpoint(tmp_path)


def test_a_table_without_all_of_its_rows_is_not_done(tmp_path: Path) -> None:
    from table_fixtures import small_record

    path = tmp_path / "onnxruntime.csv"
    rows = [small_record("backbone:tiny/t8/48x48/b1@fp32", 3.0), small_record("Conv1D()/c1/t8/4x4/b1@fp32", 1.0)]
    Table(Header("host_cpu", "onnxruntime"), rows).save(path)
    assert has_rows(path, [rows[0].key]) and not has_rows(path, ["another"]) and not has_rows(tmp_path / "no.csv", [])
    path.write_text(path.read_text().replace("3.0", "4.0"))
    assert not has_rows(path, [rows[0].key]), "a table whose checksum fails is measured, not believed"


def test_a_comparison_of_another_arrangement_is_not_done(tmp_path: Path) -> None:
    space = Space.load("tiny")
    space.empty().save(tmp_path / "arrangement.yaml")
    comparison = write(tmp_path / "compare.json", {"key": space.empty().key})
    assert has_comparison(comparison, tmp_path / "arrangement.yaml")
    write(comparison, {"key": load_plan(space).largest().key})
    assert not has_comparison(comparison, tmp_path / "arrangement.yaml")
    assert not has_comparison(comparison, tmp_path / "absent.yaml")


# The command --------------------------------------------------------------------------------------------


@pytest.fixture()
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object, **named: object) -> None:
        raise AssertionError("measured before all was checked")

    monkeypatch.setattr("nas.run.job.profile_space", never)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--set", "search.sampler=nope"], "sampler"),
        (["--storage", "nonsense"], "must be the URL of a database"),
        (["--storage", "sqlite:////absent/folder/study.db"], "unable to open database file"),
        (["--storage", "nosuch://host/name"], "nosuch"),
        (["--set", "data.source=folder", "--set", "data.path=/absent/videos"], "/absent/videos does not exist"),
        (["--set", "train.init=/absent/unet"], "/absent/unet"),
    ],
)
def test_a_wrong_name_is_refused_before_anything_is_measured(
    words: list[str], said: str, unmeasured: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["run", "tiny", "--out", str(tmp_path / "run"), *words])
    lines = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and len(lines) == 1 and lines[0].startswith("nas: ") and said in lines[0], lines


def test_two_runs_of_one_folder_are_one_and_a_refusal(
    unmeasured: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    with pytest.raises(SystemExit):
        main(["run", "tiny", "--out", str(out), "--set", "search.sampler=nope2"])
    capsys.readouterr()
    out.mkdir(exist_ok=True)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with sole_writer(out), pytest.raises(SystemExit) as stopped:
        main(["run", "tiny", "--out", str(out)])
    lines = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and len(lines) == 1 and "another process is writing there" in lines[0]
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.name in before} == before


def test_a_folder_of_somebody_else_stays_as_it_is(
    unmeasured: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(SystemExit) as stopped:
        main(["run", "tiny", "--out", str(tmp_path)])
    assert stopped.value.code == 2 and "is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
