"""Training: every way of it runs, moves what it should, and is honest when it goes wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training_fixtures import clips, losses, run, short, tiny

from nas.errors import NasError
from nas.supernet.paths import PATHS
from nas.supernet.stage import SupernetStage, begin
from nas.supernet.trained import load_supernet
from nas.training.checkpoint import list_checkpoints
from search_spaces.space import Autoencoder


def test_training_lowers_the_loss_and_can_be_loaded(tmp_path: Path) -> None:
    run(tmp_path, short(steps=40, warmup_steps=20, clips=4, checkpoint_every=40))
    values = [loss for _, loss, _ in losses(tmp_path)]
    assert sum(values[-8:]) < 0.8 * sum(values[:8])
    supernet, text, step = load_supernet(tiny(), tmp_path)
    assert step == 40 and not supernet.training and text(["a red circle moving left"]).shape == (1, 16, 32)


@pytest.mark.parametrize(
    "settings",
    [
        {"paths": "sandwich"},
        {"paths": "fair"},
        {"precision": "bf16"},
        {"paths": "uniform"},
        {"accumulate": 2},
        {"images": 0},
    ],
)
def test_every_way_of_training_runs(settings: dict[str, Any], tmp_path: Path) -> None:
    run(tmp_path, short(steps=4, **settings))
    assert len(losses(tmp_path)) == 4


def test_steps_leave_the_layers_off_their_path_alone(tmp_path: Path) -> None:
    """Also those that an earlier step trained: no decay, and no momentum left over from it."""
    config = short(warmup_steps=0, weight_decay=0.5)
    trainer = begin(tiny(), clips(), config, tmp_path, 5, lambda message: None)
    trained: set[str] = set()
    rested = 0
    for _ in range(4):
        before = {name: p.detach().clone() for name, p in trainer.stage.supernet.layers.named_parameters()}
        trainer.advance()
        now = dict(trainer.stage.supernet.layers.named_parameters())
        used = {name for name, p in now.items() if p.grad is not None}
        moved = {name for name, p in now.items() if not torch.equal(p, before[name])}
        assert used and moved <= used
        rested += len(trained - used)
        trained |= moved
    assert rested and set(before) - trained


def test_a_spatial_rate_of_zero_freezes_the_backbone_once_paths_train(tmp_path: Path) -> None:
    config = short(spatial_rate=0.0, warmup_steps=2)
    trainer = begin(tiny(), clips(), config, tmp_path, 5, lambda message: None)
    start = trainer.stage.supernet.unet.conv_in.weight.detach().clone()  # type: ignore[union-attr]
    trainer.advance()
    trainer.advance()
    warmed = trainer.stage.supernet.unet.conv_in.weight.detach().clone()  # type: ignore[union-attr]
    assert not torch.equal(start, warmed)
    trainer.advance()
    trainer.advance()
    assert torch.equal(trainer.stage.supernet.unet.conv_in.weight, warmed)  # type: ignore[union-attr, arg-type]


def test_a_loss_that_is_not_finite_is_rolled_back_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    real = SupernetStage._pass
    broken = {"left": 1}

    def sometimes(self: SupernetStage, *arguments: Any) -> Any:
        passed = real(self, *arguments)
        if self.step == 3 and broken["left"]:
            broken["left"] -= 1
            passed = replace(passed, video=float("nan"))
        return passed

    monkeypatch.setattr(SupernetStage, "_pass", sometimes)
    run(tmp_path, warn=said.append)
    assert len(said) == 1 and "went back to step 2" in said[0]
    assert [step for step, _, _ in losses(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_what_never_recovers_ends_in_one_line_with_the_last_good_checkpoint_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = SupernetStage._pass

    def broken(self: SupernetStage, *arguments: Any) -> Any:
        passed = real(self, *arguments)
        return replace(passed, video=float("nan")) if self.step >= 2 else passed

    monkeypatch.setattr(SupernetStage, "_pass", broken)
    with pytest.raises(NasError, match="lower train.learning_rate") as caught:
        run(tmp_path)
    assert "\n" not in str(caught.value)
    assert list_checkpoints(tmp_path)[-1].name == "step-00000002"


def test_a_space_in_latents_is_refused(tmp_path: Path) -> None:
    space = replace(tiny(), autoencoder=Autoencoder(time=1, space=8))
    with pytest.raises(NasError, match="encode the data first"):
        run(tmp_path, space=space)
    assert not tmp_path.exists() or not any(tmp_path.iterdir())


def test_a_folder_without_a_supernet_says_how_to_train_one(tmp_path: Path) -> None:
    with pytest.raises(NasError, match="nas train tiny"):
        load_supernet(tiny(), tmp_path)


def test_a_step_that_goes_wrong_whenever_it_is_reached_again_ends_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Good steps lie between the checkpoint and the bad one: made again, they are no progress."""
    real = SupernetStage._pass

    def broken(self: SupernetStage, *arguments: Any) -> Any:
        passed = real(self, *arguments)
        return replace(passed, video=float("nan")) if self.step >= 3 else passed

    monkeypatch.setattr(SupernetStage, "_pass", broken)
    said: list[str] = []
    with pytest.raises(NasError, match="step 4 went wrong .*3 times did not help"):
        run(tmp_path, warn=said.append)
    assert len(said) == 3
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000000", "step-00000002"]


def test_a_spike_is_rolled_back_once_and_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = SupernetStage._pass

    def spiked(self: SupernetStage, *arguments: Any) -> Any:
        passed = real(self, *arguments)
        spike = 1000 if self.step == 3 and self.salt == 0 else 1
        return replace(passed, video=spike * passed.video)

    monkeypatch.setattr(SupernetStage, "_pass", spiked)
    monkeypatch.setattr("nas.training.loop.RECENT", 2)
    said: list[str] = []
    run(tmp_path, warn=said.append)
    assert len(said) == 1 and "went back to step 2" in said[0]
    assert [step for step, _, _ in losses(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_the_sandwich_trains_the_deepest_and_a_fair_path_in_one_step(tmp_path: Path) -> None:
    config = short(warmup_steps=0, paths="sandwich")
    trainer = begin(tiny(), clips(), config, tmp_path, 5, lambda message: None)
    deepest, _, between = PATHS["sandwich"](tiny(), 5, 0)
    done = trainer.advance()
    assert done is not None and done["path"] == deepest.key
    on_path = {
        id(p)
        for path in (deepest, between)
        for layers in trainer.stage.supernet.path(path).values()
        for layer in layers
        for p in layer.parameters()
    }
    assert {id(p) for p in trainer.stage.supernet.temporal_parameters() if p.grad is not None} == on_path


def test_every_step_sees_clips_and_images_of_its_own(tmp_path: Path) -> None:
    """However many of either, and however many micro-batches."""
    asked: list[int] = []

    class Watched:
        skipped, captions = (), clips().captions

        def __len__(self) -> int:
            return len(clips())

        def __getitem__(self, index: int) -> Any:
            asked.append(index)
            return clips()[index]

    run(tmp_path, short(steps=2, clips=1, images=3, accumulate=2), data=Watched())
    half = len(clips()) // 2  # images are cut from other clips than a step's own
    assert sorted(asked) == sorted([*range(4), *range(half, half + 12)])


def test_a_device_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    for name in ("abacus", "cuda:99"):
        with pytest.raises(NasError, match=f"train.device: '{name}'") as caught:
            run(tmp_path, short(device=name))
        assert "\n" not in str(caught.value)
    assert not list_checkpoints(tmp_path)
