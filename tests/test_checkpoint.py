"""Checkpoints: whole or not there, never at the cost of the earlier ones."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from nas.errors import NasError
from nas.training.checkpoint import Checkpoint, check_belongs, list_checkpoints, load_checkpoint, save_checkpoint


def made(value: float = 1.0) -> Checkpoint:
    tensors = {"weights": {"a": torch.full((3, 2), value)}, "average": {"a": torch.full((3, 2), value / 3)}}
    return Checkpoint(tensors, {"space": "s", "recent": [0.1, 1 / 3]})


def names(folder: Path) -> list[str]:
    return [path.name for path in list_checkpoints(folder)]


def break_second_file(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """The next checkpoint fails after its first file."""
    real = safetensors.torch.save_file

    def broken(tensors: Any, path: str) -> None:
        if path.endswith("average.safetensors"):
            Path(path).write_bytes(b"half")
            raise error
        real(tensors, path)

    monkeypatch.setattr(safetensors.torch, "save_file", broken)


def test_what_is_saved_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 7, made(), keep=2)
    loaded = load_checkpoint(path)
    for group, tensors in made().tensors.items():
        assert torch.equal(loaded.tensors[group]["a"], tensors["a"])
    assert loaded.state["recent"] == [0.1, 1 / 3] and loaded.state["step"] == 7


@pytest.mark.parametrize("keep", [1, 3])
def test_the_newest_are_kept_in_order_of_steps(keep: int, tmp_path: Path) -> None:
    for step in (0, 9, 10, 100, 1000):
        save_checkpoint(tmp_path, step, made(), keep)
    assert names(tmp_path) == [f"step-{step:08d}" for step in (0, 9, 10, 100, 1000)[-keep:]]


def test_a_step_saved_again_replaces_the_one_before(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 4, made(1.0), keep=2)
    path = save_checkpoint(tmp_path, 4, made(2.0), keep=2)
    assert float(load_checkpoint(path).tensors["weights"]["a"][0, 0]) == 2.0
    assert names(tmp_path) == ["step-00000004"]


def test_a_process_that_ends_in_the_middle_leaves_the_earlier_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, 2, made(), keep=1)
    break_second_file(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, 4, made(), keep=1)
    assert names(tmp_path) == ["step-00000002"] and load_checkpoint(tmp_path / "step-00000002")
    monkeypatch.undo()
    save_checkpoint(tmp_path, 6, made(), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000006"]  # what was half written is gone


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), safetensors.SafetensorError("I/O: No space left on device")],
)
def test_a_full_disk_is_one_line(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, 2, made(), keep=1)
    break_second_file(monkeypatch, error)
    with pytest.raises(NasError, match="the disk is full, checkpoint 4") as caught:
        save_checkpoint(tmp_path, 4, made(), keep=1)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]


def test_another_error_is_not_called_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    break_second_file(monkeypatch, PermissionError(errno.EACCES, "Permission denied"))
    with pytest.raises(PermissionError):
        save_checkpoint(tmp_path, 4, made(), keep=1)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["weights.safetensors", "average.safetensors", "state.json"])
@pytest.mark.parametrize("bytes_left", [None, 0, 5, -1])
def test_damage_is_one_line_that_names_the_folder(name: str, bytes_left: int | None, tmp_path: Path) -> None:
    file = save_checkpoint(tmp_path, 2, made(), keep=1) / name
    if bytes_left is None:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:bytes_left])
    with pytest.raises(NasError, match="step-00000002.*delete this folder") as caught:
        load_checkpoint(file.parent)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("state", [[], {}, {"bytes": 3}, {"bytes": {"weights": "many"}}])
def test_a_state_that_says_something_else_is_damage_too(state: Any, tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 2, made(), keep=1)
    (path / "state.json").write_text(json.dumps(state))
    with pytest.raises(NasError, match="delete this folder"):
        load_checkpoint(path)


def test_what_differs_is_named_and_nothing_else() -> None:
    state = {"space": "s", "settings": {"steps": 10, "clips": 2}}
    check_belongs(state, {"space": "s"}, Path("x"))
    with pytest.raises(NasError, match="space is 's', the run's is 't'"):
        check_belongs(state, {"space": "t"}, Path("x"))
    with pytest.raises(NasError) as caught:
        check_belongs(state, {"settings": {"steps": 20, "clips": 2}}, Path("x"))
    assert "settings differ: steps is 10, the run's 20;" in str(caught.value) and "clips" not in str(caught.value)
