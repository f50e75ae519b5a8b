"""Several processes fine-tune as one, on a CPU through gloo."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from training_fixtures import members
from tuning_fixtures import TOOK, config, make_model, mini

from nas.cli import main
from nas.errors import NasError
from nas.model.pipeline import load_pipeline
from nas.recipes import finetune
from nas.training import launch
from nas.training.distributed import PEER_LOST


def member(rank: int, port: int, arguments: tuple[Any, ...], said: Any) -> None:
    """One of two processes."""
    from accelerate import PartialState

    PartialState._reset_state()
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}  # as launchers set it
    try:
        finetune(*arguments)
    except NasError as error:
        said.put(str(error))


def together(*arguments: Any) -> list[str]:
    """Fine-tune with two processes; what those that refused said."""
    mini()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    codes, found = members(member, port, arguments, method="fork")
    assert codes == [0, 0], found
    return found


def rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "finetune" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("stage", ["joint", "adversarial"])
def test_two_processes_make_the_losses_of_one(stage: str, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    settings = config(steps=4, text_rate=0.5)
    assert together(model, stage, settings, tmp_path / "two") == []
    finetune(model, stage, settings, tmp_path / "one")
    for mine, other in zip(rows(tmp_path / "two"), rows(tmp_path / "one"), strict=True):
        assert mine.keys() == other.keys()
        told = {name: value for name, value in other.items() if name not in TOOK and value is not None}
        assert {name: mine[name] for name in told} == pytest.approx(told, rel=2e-3, abs=1e-5)
    two, one = (load_pipeline(tmp_path / name).unet.state_dict() for name in ("two", "one"))
    assert all(torch.allclose(two[name], one[name], atol=2e-3) for name in one)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_clips_that_do_not_divide_are_refused_on_every_process(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    said = together(model, "joint", config(clips=3), tmp_path / "out")
    assert said == ["clips must divide by the 2 processes that share it, but is 3"] * 2
    assert not (tmp_path / "out").exists()


class Ends:
    """Stands for a process that ends with ``code`` at a time."""

    def __init__(self, code: int, at: float, clock: list[float]) -> None:
        self.code, self.at, self.clock = code, at, clock

    def poll(self) -> int | None:
        return self.code if self.clock[0] >= self.at else None


@pytest.mark.parametrize(
    ("ends", "culprit"),
    [
        ([(1, 0.5), (1, 0.0)], 0),  # a collapse that both found: the first one's sentence and exit code
        ([(0, 0.5), (2, 0.0)], 1),
        ([(PEER_LOST, 0.5), (2, 0.0)], 1),
        ([(PEER_LOST, 0.0), (2, 3.0)], 1),
        ([(1, 99.0), (1, 0.0)], 1),  # the first one hangs
        ([(1, 9.0), (-9, 0.0)], 1),
        ([(PEER_LOST, 0.0), (PEER_LOST, 0.0)], 0),
        ([(0, 1.0), (0, 0.0)], None),
    ],
)
def test_what_ends_all_processes_alike_is_said_by_the_first(
    ends: list[tuple[int, float]], culprit: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]

    def later(seconds: float) -> None:
        clock[0] += seconds

    monkeypatch.setattr("nas.training.launch.time", SimpleNamespace(sleep=later, monotonic=lambda: clock[0]))
    started: Any = [Ends(code, at, clock) for code, at in ends]
    assert launch._wait(started) == culprit


@pytest.mark.parametrize("main_one", [True, False])
def test_only_the_main_process_prints_the_summary(
    main_one: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = {"model": "out", "stage": "joint", "steps": 1, "main": main_one}
    monkeypatch.setattr("nas.recipes.finetune", lambda *arguments, **more: told)
    for words in ([], ["--json"]):
        with pytest.raises(SystemExit):
            main(["finetune", str(make_model(tmp_path / "model")), "--out", str(tmp_path / "out"), *words])
        assert bool(capsys.readouterr().out.strip()) is main_one


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("stage", ["joint", "adversarial"])
def test_two_processes_that_split_the_weights_make_the_same_model(stage: str, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    more = {"activation_checkpoints": True, "validate_every": 1} if stage == "joint" else {}
    settings = config(steps=3, text_rate=0.5, shard=True, **more)
    assert together(model, stage, settings, tmp_path / "two") == []
    finetune(model, stage, settings, tmp_path / "one")
    for mine, other in zip(rows(tmp_path / "two"), rows(tmp_path / "one"), strict=True):
        told = {name: value for name, value in other.items() if name not in TOOK and value is not None}
        assert {name: mine[name] for name in told} == pytest.approx(told, rel=2e-3, abs=1e-5)
    for part in ("unet", "text_encoder"):
        two, one = (getattr(load_pipeline(tmp_path / name), part).state_dict() for name in ("two", "one"))
        assert all(torch.allclose(two[name], one[name], atol=2e-3) for name in one)
