"""A training that was stopped, by whatever, goes on as if it had not been."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training_fixtures import clips, losses, run, short, tiny

from nas.errors import NasError
from nas.supernet.stage import SupernetStage
from nas.supernet.trained import load_supernet
from nas.training.checkpoint import list_checkpoints, load_checkpoint
from nas.training.log import Step, cut_metrics


class Stop(Exception):
    """The process ends here."""


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of Python 3.12, of any fork
def test_killed_in_the_middle_and_started_again_the_losses_are_those_of_an_uninterrupted_run(tmp_path: Path) -> None:
    run(tmp_path / "whole", short(steps=10))

    def killed() -> None:  # forked, so that the libraries are there
        run(
            tmp_path / "killed",
            short(steps=10),
            progress=lambda s: s.step == 5 and os.kill(os.getpid(), signal.SIGKILL),
        )

    started = multiprocessing.get_context("fork").Process(target=killed)
    started.start()
    started.join()
    assert started.exitcode == -signal.SIGKILL  # between two checkpoints
    assert len(losses(tmp_path / "killed")) == 5
    run(tmp_path / "killed", short(steps=10))
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert [step for step, _, _ in losses(tmp_path / "killed")] == list(range(1, 11))


def test_a_checkpoint_cut_short_is_passed_over_with_a_sentence(tmp_path: Path) -> None:
    run(tmp_path / "whole")
    run(tmp_path / "cut", short(steps=6))
    newest = list_checkpoints(tmp_path / "cut")[-1] / "weights.safetensors"
    newest.write_bytes(newest.read_bytes()[:1000])
    said: list[str] = []
    run(tmp_path / "cut", warn=said.append)
    assert len(said) == 1 and "Going on from an earlier one" in said[0]
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_only_the_newest_checkpoints_stay(tmp_path: Path) -> None:
    run(tmp_path)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000004", "step-00000006"]


def test_a_checkpoint_of_another_space_or_setting_is_refused_and_kept(tmp_path: Path) -> None:
    run(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(NasError, match="settings"):
        run(tmp_path, short(learning_rate=1e-3))
    other = replace(tiny(), name="other")
    with pytest.raises(NasError, match="space"):
        run(tmp_path, space=other)
    with pytest.raises(NasError, match="space"):
        load_supernet(other, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_full_disk_is_one_line_and_earlier_checkpoints_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors.torch

    real = safetensors.torch.save_file

    def full(tensors: Any, path: str) -> None:
        if "00000004" in path:
            raise OSError(errno.ENOSPC, "No space left on device", path)
        real(tensors, path)

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(NasError, match="the disk is full") as caught:
        run(tmp_path)
    assert "\n" not in str(caught.value)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000000", "step-00000002"]
    assert not list(tmp_path.glob(".*partial"))
    monkeypatch.undo()
    run(tmp_path)
    assert len(losses(tmp_path)) == 6


@pytest.mark.parametrize("settings", [{}, {"paths": "sandwich", "spatial_rate": 0.0}, {"accumulate": 2, "images": 3}])
def test_stopped_after_any_step_it_goes_on_to_the_same_weights(settings: dict[str, Any], tmp_path: Path) -> None:
    """Right after a checkpoint, and right before one."""
    config = short(**settings)
    run(tmp_path / "whole", config)

    def stop_at(step: int) -> Any:
        def told(done: Step) -> None:
            if done.step == step:
                raise Stop

        return told

    for step in range(1, 7):  # progress is told after the row is logged and before the checkpoint is written
        with pytest.raises(Stop):
            run(tmp_path / "stopped", config, progress=stop_at(step))
    run(tmp_path / "stopped", config)
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    one, other = (load_checkpoint(list_checkpoints(tmp_path / name)[-1]) for name in ("whole", "stopped"))
    for group, tensors in one.tensors.items():
        assert tensors.keys() == other.tensors[group].keys() and tensors
        assert all(torch.equal(tensor, other.tensors[group][name]) for name, tensor in tensors.items())


def test_stopped_after_a_roll_back_it_goes_on_to_the_same_losses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The roll-back is made again: what it changes is not in the checkpoint that it went back to."""
    real = SupernetStage._pass

    def sometimes(self: SupernetStage, *arguments: Any) -> Any:
        passed = real(self, *arguments)
        return replace(passed, video=float("nan")) if self.step == 3 and self.salt == 0 else passed

    monkeypatch.setattr(SupernetStage, "_pass", sometimes)
    run(tmp_path / "whole")

    def stop(done: Step) -> None:
        if done.step == 4:
            raise Stop

    with pytest.raises(Stop):
        run(tmp_path / "stopped", progress=stop)
    run(tmp_path / "stopped")
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    assert [step for step, _, _ in losses(tmp_path / "whole")] == [1, 2, 3, 4, 5, 6]


def test_other_captions_are_refused_before_their_words_are_mixed_up(tmp_path: Path) -> None:
    run(tmp_path, short(steps=2))

    class Recaptioned:
        skipped = ()
        captions = [text.replace("red", "scarlet") for text in clips().captions]  # as many words, other ones

        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> Any:
            return clips()[index]

    with pytest.raises(NasError, match="captions"):
        run(tmp_path, short(steps=2), data=Recaptioned())


def test_a_checkpoint_of_other_layers_is_refused_in_one_line(tmp_path: Path) -> None:
    import safetensors.torch

    run(tmp_path, short(steps=2))
    for group in ("weights", "average"):
        file = tmp_path / "step-00000002" / f"{group}.safetensors"
        tensors = safetensors.torch.load_file(file)
        renamed = {name.replace("conv_in", "conv_on"): tensor for name, tensor in tensors.items()}  # same size
        safetensors.torch.save_file(renamed, file)
        noted = file.parent / "state.json"
        state = json.loads(noted.read_text())
        state["sha256"][group] = hashlib.sha256(file.read_bytes()).hexdigest()
        noted.write_text(json.dumps(state))
    for action in (lambda: run(tmp_path, short(steps=2)), lambda: load_supernet(tiny(), tmp_path)):
        with pytest.raises(NasError, match="conv_in|conv_on") as caught:
            action()
        assert "\n" not in str(caught.value)


def test_the_log_is_cut_to_the_step_and_a_half_written_row_dropped(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    cut_metrics(log, 5)
    assert log.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3}\n'
    cut_metrics(log, 2)
    assert log.read_text() == '{"step": 1}\n{"step": 2}\n'
    cut_metrics(tmp_path / "nothing.jsonl", 2)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_kill_while_old_checkpoints_go_leaves_none_of_them_for_good(tmp_path: Path) -> None:
    run(tmp_path, short(keep=1, validate_every=0))
    for name in ("step-00000002", ".step-00000004.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights.safetensors").touch()
    run(tmp_path, short(keep=1, validate_every=0))
    assert [path.name for path in sorted(tmp_path.glob("*step-*"))] == ["step-00000006"]
