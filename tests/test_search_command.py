"""nas search with workers and storages: what a user types, and what goes wrong."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import training_fixtures
import yaml

from latency_tables.table import PACKAGED, Table
from nas.cli import main
from nas.config import resolve, store
from nas.errors import NasError
from nas.run.costs import make_problem, table_watch

DEVICE = "amd_epyc_zen5"
SETTINGS = [
    "data.source=moving_shapes",
    "data.validation_clips=4",
    "quality.clips=2",
    "quality.batch=2",
    "search.trials=4",
    "search.rescored=1",
    "search.rescore_clips=2",
    "train.trackers=[]",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    store(resolve("tiny", DEVICE, None, SETTINGS), folder)
    training_fixtures.run(folder / "supernet", training_fixtures.short(steps=2, warmup_steps=1))
    shutil.copytree(PACKAGED / DEVICE, folder / "table" / DEVICE)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def nas(*words: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return int(stop.value.code or 0)


def test_helpers_search_beside_the_command_and_leave_the_answer_to_it(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    assert nas("search", run, "--helper-of", os.getppid()) == 0
    assert not (run / "front.csv").exists()
    assert capfd.readouterr().out == ""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    assert nas("search", run, "--workers", 2, "--trials", 6, "--json") == 0
    answer = capfd.readouterr()
    assert json.loads(answer.out)["chosen"]["key"] in (run / "front.csv").read_text()
    searched = [line for line in (run / "front.csv").read_text().splitlines()[1:] if "reference: " not in line]
    assert len(searched) == 6
    assert "worker 2" not in answer.err, answer.err
    assert torch.get_num_threads() == threads


def test_a_helper_ends_with_the_search_that_started_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert nas("search", run, "--helper-of", 2**22 + 1) == 2
    assert "the search that started this worker is gone" in capsys.readouterr().err


def test_a_table_that_was_measured_again_is_refused_with_its_rows(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert nas("search", run, "--trials", 1) == 0
    path = run / "table" / DEVICE / "onnxruntime.csv"
    key = change_a_row(path)
    capsys.readouterr()
    assert nas("search", run, "--trials", 2) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    assert "study.journal holds a study of something else: table was" in said
    assert f"{key} was" in said and "is 999.0 ms" in said


def test_a_search_of_other_validation_clips_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert nas("search", run, "--trials", 1) == 0
    assert nas("search", run, "--trials", 1) == 0
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["max_objects"] = 1
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    capsys.readouterr()
    assert nas("search", run, "--trials", 1) == 2
    assert "holds a study of something else: validation was" in capsys.readouterr().err


def test_a_table_that_changes_while_a_search_runs_ends_it(run: Path) -> None:
    config = resolve("tiny", DEVICE, None, SETTINGS)
    check = table_watch(config, run, make_problem(config, run))
    check()
    path = run / "table" / DEVICE / "onnxruntime.csv"
    os.utime(path)
    check()  # written again, with the same rows
    key = change_a_row(path)
    with pytest.raises(NasError, match="changed while the search ran") as error:
        check()
    assert key in str(error.value)


def change_a_row(path: Path) -> str:
    table = Table.load(path)
    row = next(row for row in table if row.block == "Conv3D")
    changed = [replace(row, latency_ms_median=999.0) if r is row else r for r in table]
    Table(table.header, changed).save(path, replace=True)
    return row.key


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--workers", 0], "--workers must be 1 or more, but is 0"),
        (["--trials", 0], "--trials must be 1 or more, but is 0"),
        (["--latency-ms", 0], "latency_ms must be a number over 0, got 0.0"),
        (["--memory-mb", -5], "memory_mb must be a number over 0, got -5.0"),
        (["--parameters-min", 2e6, "--parameters-max", 1e6], "parameters_min 2e+06 is over parameters_max 1e+06"),
        (["--storage", "localhost/study"], "--storage localhost/study: must be the URL of a database"),
    ],
)
def test_what_cannot_be_meant_is_one_line(
    run: Path, words: list[object], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert nas("search", run, *words) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1


def test_limits_that_contradict_each_other_are_answered_at_once(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert nas("search", run, "--latency-ms", 51, "--parameters-min", 1e9) == 1
    assert "nearest feasible budget" in capsys.readouterr().out


def test_a_search_can_be_told_otherwise_than_its_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert nas("search", run) == 0
    before = json.loads((run / "metrics.json").read_text())
    assert before["held"]["margin"] > 0
    assert nas("search", run, "--set", "search.margin=0", "--set", "search.trials=2") == 0
    assert json.loads((run / "metrics.json").read_text())["held"]["margin"] == 0
    capsys.readouterr()
    assert nas("search", run, "--set", "train.steps=3") == 2
    assert "a search changes search.* alone" in capsys.readouterr().err
    assert nas("search", run, "--set", "search.margins=0") == 2
    assert "search.margins: unknown key. Did you mean 'margin'?" in capsys.readouterr().err


def test_a_table_may_be_measured_into_the_run_folder_first(tmp_path: Path) -> None:
    (tmp_path / "run" / "table").mkdir(parents=True)
    store(resolve("tiny", DEVICE, None, SETTINGS), tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(NasError, match="is not empty and holds no config.yaml"):
        store(resolve("tiny", DEVICE, None, SETTINGS), tmp_path / "other")
