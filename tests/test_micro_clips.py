"""Clips at once: as many as memory holds, half as many where it runs out, and the gradient of the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from training_fixtures import clips, losses, run, short, tiny

from nas.errors import NasError
from nas.supernet import room
from nas.supernet.passes import Passes
from nas.supernet.paths import PATHS
from nas.supernet.stage import SupernetStage, begin
from nas.training.log import Step
from nas.training.loop import Loop
from nas.training.micro import AtOnce, fitting

SMALL = {"clips": 3, "images": 2, "spatial_rate": 0.5, "steps": 4}


def runs_out(monkeypatch: pytest.MonkeyPatch, when: Callable[[Passes, int], bool]) -> None:
    """Memory that runs out at some of the forward passes, by their number."""
    real, calls = Passes._loss, [0]

    def loss(self: Passes, *asked: Any) -> Any:
        calls[0] += 1
        if when(self, calls[0]):
            raise torch.OutOfMemoryError("CUDA out of memory. A stand-in")
        return real(self, *asked)

    monkeypatch.setattr(Passes, "_loss", loss)


def made(folder: Path, **settings: Any) -> Loop[SupernetStage]:
    config = short(warmup_steps=0, paths="sandwich", **{**SMALL, **settings})
    return begin(tiny(), clips(), config, folder, 5, lambda message: None)


def gradients(loop: Loop[SupernetStage]) -> tuple[Any, dict[str, torch.Tensor]]:
    stage = loop.stage
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in stage.supernet.temporal_parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    passed = stage._pass(PATHS["sandwich"](stage.space, stage.seed, 0), 0, 0.2)
    return passed, {name: p.grad.clone() for name, p in loop.named() if p.grad is not None}


def test_a_few_clips_at_once_make_the_gradient_of_all(tmp_path: Path) -> None:
    whole, expected = gradients(made(tmp_path / "whole"))
    passed, found = gradients(made(tmp_path / "few", micro_clips=2))
    assert found.keys() == expected.keys() and passed.image is not None
    assert (passed.video, passed.image) == pytest.approx((whole.video, whole.image), rel=1e-5)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6)


def test_where_memory_runs_out_once_half_as_many_go_on_also_after_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Amid a step, with gradients of its first clips already there: the step is made again from its start."""

    class Stop(Exception):
        pass

    def stop(done: Step) -> None:
        if done.step == 3:
            raise Stop

    small = {**SMALL, "clips": 2, "images": 1}
    run(tmp_path / "by hand", short(**small, micro_clips=1))
    runs_out(monkeypatch, lambda passes, call: call == 2)  # after the videos' backward pass, at the images
    said: list[str] = []
    told: list[str] = []
    with pytest.raises(Stop):
        run(tmp_path / "out", short(**small), progress=stop, warn=said.append, tell=told.append)
    run(tmp_path / "out", short(**small), warn=said.append, tell=told.append)
    assert losses(tmp_path / "out") == losses(tmp_path / "by hand")
    assert said == ["step 1: memory ran out with 2 clips at once; goes on with 1"]
    assert told[0] == "train      fp32 on cpu; 2 clips a step, all at once (by the plan all fit)"
    assert told[1] == "train      fp32 on cpu; 2 clips a step, 1 at once (as it began)"


def test_memory_that_holds_not_one_clip_ends_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs_out(monkeypatch, lambda passes, call: True)
    with pytest.raises(NasError, match="step 1 with 1 clips at once; try train.activation_checkpoints=true") as caught:
        run(tmp_path, short(**SMALL))
    assert "\n" not in str(caught.value)


def test_as_many_fit_as_memory_has_room_for() -> None:
    def fit(room: float) -> int:
        return fitting(8, 3e9, 5e9, room, "measured").clips

    assert [fit(size) for size in (1e9, 5e9, 6e9, 1e10, 1e12)] == [1, 1, 2, 4, 8]
    assert fitting(8, 3e9, float("inf"), 1e12, "measured").clips == 1
    assert fitting(8, 3e9, 5e9, 1e10, "counted").sentence(8) == (
        "8 clips a step, 4 at once (counted: 9.0 GB of 10.0 GB free)"
    )
    assert "more than is free" in fitting(8, 3e9, 5e9, 1e9, "measured").why


def test_a_small_machine_counts_a_step_and_runs_what_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = SimpleNamespace(gradient_bytes=1e6, fixed_bytes=1e6, clip_bytes=1e7)
    monkeypatch.setattr(room, "estimate_step", lambda *asked: counted)
    monkeypatch.setattr(room.host, "available_mb", lambda: 35.0)
    loop = made(tmp_path)
    moments = 8e-6 * sum(p.numel() for p in loop.stage.supernet.parameters())
    assert loop.stage.room == AtOnce(2, f"counted: {round(22 + moments)} MB of 35 MB free")
