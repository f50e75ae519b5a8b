"""Training: killed and resumed without a trace, and honest when it goes wrong."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training_fixtures import clips, short, tiny

from nas.checkpoint import list_checkpoints
from nas.config import TrainConfig
from nas.errors import NasError
from nas.trainer import Trainer, load_supernet, train
from search_spaces.space import Autoencoder, Space

SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from training_fixtures import clips, short, tiny
from nas.trainer import train
train(tiny(), clips(), short(steps=10), Path(sys.argv[1]), seed=5, progress=lambda s: print(s.step, flush=True))
"""


def losses(folder: Path) -> list[tuple[int, float, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"], row["grad_norm"]) for row in rows]


def run(folder: Path, config: TrainConfig | None = None, space: Space | None = None, **more: Any) -> None:
    train(space or tiny(), clips(), config or short(), folder, seed=5, **more)


def test_killed_in_the_middle_and_started_again_the_losses_are_those_of_an_uninterrupted_run(tmp_path: Path) -> None:
    run(tmp_path / "whole", short(steps=10))
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(tmp_path / "killed"), str(Path(__file__).parent)]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert started.stdout is not None
    for line in started.stdout:
        if int(line) == 5:  # between two checkpoints
            started.send_signal(signal.SIGKILL)
            break
    started.wait()
    assert started.returncode == -signal.SIGKILL
    started.stdout.close()
    assert len(losses(tmp_path / "killed")) >= 5
    run(tmp_path / "killed", short(steps=10))
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert [step for step, _, _ in losses(tmp_path / "killed")] == list(range(1, 11))


def test_training_lowers_the_loss_and_can_be_loaded(tmp_path: Path) -> None:
    run(tmp_path, short(steps=40, warmup_steps=20, clips=4, checkpoint_every=40))
    values = [loss for _, loss, _ in losses(tmp_path)]
    assert sum(values[-8:]) < 0.8 * sum(values[:8])
    supernet, text, step = load_supernet(tiny(), tmp_path)
    assert step == 40 and not supernet.training and text(["a red circle moving left"]).shape == (1, 16, 32)


@pytest.mark.parametrize("settings", [{"paths": "sandwich"}, {"paths": "uniform"}, {"accumulate": 2}, {"images": 0}])
def test_every_way_of_training_runs(settings: dict[str, Any], tmp_path: Path) -> None:
    run(tmp_path, short(steps=4, **settings))
    assert len(losses(tmp_path)) == 4


def test_a_step_leaves_the_layers_off_its_path_alone(tmp_path: Path) -> None:
    trainer = Trainer(tiny(), clips(), short(warmup_steps=0), tmp_path, 5, lambda message: None)
    before = {name: p.detach().clone() for name, p in trainer.supernet.named_parameters()}
    trainer.advance()
    moved = {name for name, p in trainer.supernet.named_parameters() if not torch.equal(p, before[name])}
    used = {name for name, p in trainer.supernet.named_parameters() if p.grad is not None}
    temporal = {name for name in before if name.startswith("layers.")}
    assert moved <= used and moved & temporal and temporal - moved


def test_a_spatial_rate_of_zero_freezes_the_backbone_once_paths_train(tmp_path: Path) -> None:
    config = short(spatial_rate=0.0, warmup_steps=2)
    trainer = Trainer(tiny(), clips(), config, tmp_path, 5, lambda message: None)
    start = trainer.supernet.unet.conv_in.weight.detach().clone()  # type: ignore[union-attr]
    trainer.advance()
    trainer.advance()
    warmed = trainer.supernet.unet.conv_in.weight.detach().clone()  # type: ignore[union-attr]
    assert not torch.equal(start, warmed)
    trainer.advance()
    trainer.advance()
    assert torch.equal(trainer.supernet.unet.conv_in.weight, warmed)  # type: ignore[union-attr, arg-type]


def test_a_loss_that_is_not_finite_is_rolled_back_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    real = Trainer._losses
    broken = {"left": 1}

    def sometimes(self: Trainer, *arguments: Any) -> Any:
        video, image = real(self, *arguments)
        if self.step == 3 and broken["left"]:
            broken["left"] -= 1
            video = video * float("nan")
        return video, image

    monkeypatch.setattr(Trainer, "_losses", sometimes)
    run(tmp_path, warn=said.append)
    assert len(said) == 1 and "went back to step 2" in said[0]
    assert [step for step, _, _ in losses(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_what_never_recovers_ends_in_one_line_with_the_last_good_checkpoint_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Trainer._losses

    def broken(self: Trainer, *arguments: Any) -> Any:
        video, image = real(self, *arguments)
        return (video * float("nan") if self.step >= 2 else video), image

    monkeypatch.setattr(Trainer, "_losses", broken)
    with pytest.raises(NasError, match="lower train.learning_rate") as caught:
        run(tmp_path)
    assert "\n" not in str(caught.value)
    assert list_checkpoints(tmp_path)[-1].name == "step-00000002"


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


def test_a_space_in_latents_is_refused(tmp_path: Path) -> None:
    space = replace(tiny(), autoencoder=Autoencoder(time=1, space=8))
    with pytest.raises(NasError, match="pixels only"):
        run(tmp_path, space=space)
    assert not tmp_path.exists() or not any(tmp_path.iterdir())


def test_a_folder_without_a_supernet_says_how_to_train_one(tmp_path: Path) -> None:
    with pytest.raises(NasError, match="nas train tiny"):
        load_supernet(tiny(), tmp_path)
