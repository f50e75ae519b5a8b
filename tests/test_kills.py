"""Killed at any file operation, training and fine-tuning go on with the same command to the same result."""

from __future__ import annotations

import errno
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from kills import die_everywhere
from training_fixtures import losses, short
from tuning_fixtures import DATA, config, make_model, mini

from nas.config import QualityConfig
from nas.data import open_data
from nas.errors import NasError
from nas.files import only_leftovers
from nas.recipes import finetune
from nas.supernet.stage import train
from nas.supernet.trained import load_supernet
from nas.training.checkpoint import list_checkpoints, sole_writer
from nas.training.log import cut_metrics, newest_checkpoint


def content(path: Path) -> bytes:
    """A file's bytes; of a tokenizer without how it last padded, which is no part of it."""
    if path.name != "tokenizer.json":
        return path.read_bytes()
    return json.dumps({**json.loads(path.read_text()), "padding": None}).encode()


def digests(folder: Path) -> dict[str, str]:
    """Every file of a result, but for its log, which counts seconds, earlier checkpoints, and half-written files."""
    old = [path for where in (folder, folder / "finetune") for path in list_checkpoints(where)[:-1]]
    return {
        str(path.relative_to(folder)): hashlib.sha256(content(path)).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.name != "metrics.jsonl"
        and ".partial" not in str(path)
        and not any(path.is_relative_to(other) for other in old)
    }


EVERY = pytest.mark.parametrize("every", [6, pytest.param(1, marks=pytest.mark.slow)])


@EVERY
def test_training_survives_a_kill_at_any_file_operation(
    every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nas.supernet.stage.VALIDATION", QualityConfig(clips=2, batch=2))
    space = mini()
    clips, unseen = (open_data(DATA, space.clip("training"), split, seed=0) for split in ("train", "validation"))
    settings = short(steps=1, warmup_steps=0, clips=1, images=0, checkpoint_every=1, keep=1, validate_every=1)

    def work(out: Path) -> None:
        with sole_writer(out):
            train(space, clips, settings, out, seed=5, validation=unseen)

    deaths, lost = die_everywhere(tmp_path, work, lambda out: (losses(out), digests(out)), every)
    assert deaths * every > 40 and lost == []


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("tuning") / "model")


@EVERY
def test_fine_tuning_survives_a_kill_at_any_file_operation(every: int, model: Path, tmp_path: Path) -> None:
    settings = config(steps=1, clips=1, images=0, checkpoint_every=1, keep=1)

    def result(out: Path) -> Any:
        return losses(out / "finetune"), digests(out)

    deaths, lost = die_everywhere(tmp_path, lambda out: finetune(model, "joint", settings, out), result, every)
    assert deaths * every > 40 and lost == []


# What is found on going on --------------------------------------------------------------------------------------------


def test_a_checkpoint_that_may_not_be_read_ends_it_and_nothing_is_lost(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not called damaged, and no earlier one takes its place."""

    def closed(path: Path) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(path / "weights.safetensors"))

    space = mini()
    clips = open_data(DATA, space.clip("training"), "train", seed=0)
    settings = short(steps=2, warmup_steps=0, clips=1, images=0, checkpoint_every=1)
    train(space, clips, settings, tmp_path / "run", seed=5)
    finetune(model, "joint", config(steps=2, clips=1, images=0, checkpoint_every=1), tmp_path / "tuned")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr("nas.training.log.load_checkpoint", closed)
    said: list[str] = []
    for action in (
        lambda: train(space, clips, settings, tmp_path / "run", seed=5, warn=said.append),
        lambda: finetune(
            model,
            "joint",
            config(steps=2, clips=1, images=0, checkpoint_every=1),
            tmp_path / "tuned",
            warn=said.append,
        ),
    ):
        with pytest.raises(
            NasError, match="step-00000002/weights.*cannot be read .Permission denied.*nothing"
        ) as caught:
            action()
        assert "\n" not in str(caught.value) and "damaged" not in str(caught.value)
    assert said == [] and {path: path.read_bytes() for path in before} == before


def test_a_flipped_bit_in_the_weights_is_not_built_upon(tmp_path: Path) -> None:
    """Training goes back to the checkpoint before, to the same losses; who wants the weights alone is told."""
    space = mini()
    clips = open_data(DATA, space.clip("training"), "train", seed=0)
    settings = short(steps=2, warmup_steps=0, clips=1, images=0, checkpoint_every=1)
    train(space, clips, settings, tmp_path, seed=5)
    before, file = losses(tmp_path), tmp_path / "step-00000002" / "average.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(NasError, match="average.safetensors: not the bytes that were written"):
        load_supernet(space, tmp_path)
    said: list[str] = []
    train(space, clips, settings, tmp_path, seed=5, warn=said.append)
    assert len(said) == 1 and "Going on from an earlier one" in said[0] and losses(tmp_path) == before


def test_a_folder_that_may_not_be_looked_into_is_not_taken_for_a_fresh_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(path: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("os.listdir", closed)
    with pytest.raises(NasError, match="cannot be read .Permission denied"):
        newest_checkpoint(tmp_path, {}, lambda message: None)


def test_a_damaged_line_of_the_log_costs_that_line_alone(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_bytes(b'{"step": 1}\n{"st\xff\xfe\n[3]\n{"step": 2}\n{"step": 3}\n{"ste')
    cut_metrics(log, 2)
    assert log.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_folder_that_holds_our_leftovers_alone_is_ours(model: Path, tmp_path: Path) -> None:
    (tmp_path / ".config.yaml.partial").write_text("half")
    (tmp_path / ".lock").touch()
    assert only_leftovers(tmp_path)
    finetune(model, "joint", config(steps=1, clips=1, images=0), tmp_path)
    assert not only_leftovers(tmp_path)
