"""Task reconstruct: its measures, latent consistency, and an autoencoder trained by the loop of every training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nas.config import QualityConfig, TrainConfig
from nas.data.cached import check_source
from nas.errors import NasError
from nas.supernet.quality import Quality
from nas.supernet.stage import train
from nas.supernet.supernet import Supernet
from nas.supernet.trained import load_supernet
from nas.tasks import open_task, trained_task
from nas.tasks.contract import Question
from nas.tasks.likeness import psnr, psnr_of_changes, ssim
from search_spaces.families import Backbone
from search_spaces.parts import Clip
from search_spaces.space import Space

FEW = {
    "steps": 4,
    "warmup_steps": 0,
    "paths": "fair",
    "spatial_rate": 1.0,
    "clips": 2,
    "images": 1,
    "checkpoint_every": 2,
    "validate_every": 0,
    "trackers": (),
    "workers": 0,
    "task": {"kl": 1e-4},
}


def space() -> Space:
    """The shipped one, narrower and on smaller clips."""
    whole = Space.load("tiny_decoder")
    clip = Clip(9, 16, 16, 8)
    config = {**whole.backbone.config, "channels": [32, 16, 8, 8]}
    positions = tuple(
        replace(p, channels=width, variants=p.variants[:3:2])
        for p, width in zip(whole.positions, config["channels"], strict=True)
    )
    return replace(
        whole,
        backbone=Backbone("tiny_autoencoder", config),
        positions=positions,
        clips={"training": clip, "deployment": clip},
        stated_baseline=None,
    )


def data(split: str = "train") -> Any:
    from nas.config import DataConfig
    from nas.data import open_data

    return open_data(DataConfig(source="moving_shapes", validation_clips=2), space().clip("training"), split, 0)


def test_measures_are_what_they_say() -> None:
    clip = torch.rand(2, 4, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(ssim(clip, clip), torch.ones(2, dtype=torch.float64))
    assert psnr(clip, clip + 0.1).tolist() == pytest.approx([20.0, 20.0], abs=1e-4)
    assert psnr_of_changes(clip, clip + 0.1).min() > 90, "a wrong brightness changes nothing between frames"
    worse = (clip + 0.3 * torch.rand(clip.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    assert 0 < ssim(clip, worse).max() < 0.95


class Halving:
    """An autoencoder of two numbers: latents are half the clip, and the way back is by ``gain``."""

    def __init__(self, gain: float) -> None:
        self.gain = torch.nn.Parameter(torch.tensor(gain))
        self.passes = [torch.nn.Parameter(torch.tensor(0.5)) for _ in range(2)]  # the encoder's, told apart
        self.encoded = 0

    def __call__(self, inputs: Mapping[str, Any]) -> Tensor:
        if "video" in inputs:
            mean = inputs["video"] * self.passes[self.encoded % 2]
            self.encoded += 1
            return torch.cat([mean, torch.full_like(mean, -30.0)], dim=1)
        return inputs["x"] * self.gain


@pytest.mark.parametrize("what", ["means", "gaussians"])
def test_latent_consistency_teaches_the_decoder_through_a_frozen_encoder(what: str) -> None:
    """Its gradient pulls the decoder towards latents that come back; the second pass of the encoder feels nothing."""
    video = torch.rand(2, 3, 3, 8, 8)
    question = Question({"video": video, "seed": torch.arange(2)}, {})
    pulls = []
    for weight in (0.0, 1.0):
        made = Halving(1.0)  # too dark by half: it should grow towards 2
        task = open_task("reconstruct", {"consistency": weight, "consistent_in": what, "kl": 0.0})
        found = task.loss(made, question)
        found.total.backward()
        assert made.encoded == 1 + bool(weight) and made.passes[1].grad is None
        assert made.gain.grad is not None
        pulls.append((float(made.gain.grad), float(found.total.detach())))
    assert pulls[1][0] < pulls[0][0] < 0
    assert pulls[1][1] == pytest.approx(pulls[0][1]), "what is consistent is a gradient, and no part of the loss"


def test_the_running_mean_square_is_one_for_all_processes() -> None:
    task = open_task("reconstruct", {})
    question = Question({"video": torch.rand(2, 3, 3, 8, 8), "seed": torch.arange(2)}, {})
    task.loss(Halving(1.0), question)
    task.settle(lambda values: [4.0 for _ in values])
    state: Any = task.state
    assert float(state.square) == 4.0
    task.loss(Halving(1.0), question)
    task.settle(lambda values: [8.0 for _ in values])
    assert float(state.square) == pytest.approx(0.99 * 4 + 0.01 * 8)


def test_an_autoencoder_trains_and_goes_on_exactly_where_it_was_stopped(tmp_path: Path) -> None:
    config = TrainConfig.model_validate(FEW)
    rows = {}
    for name, first in (("whole", 4), ("again", 2)):
        if first < 4:
            try:
                train(space(), data(), config, tmp_path / name, progress=_stop_after(first + 1))
            except KeyboardInterrupt:
                pass
        train(space(), data(), config, tmp_path / name)
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        rows[name] = [
            {key: row[key] for key in ("loss", "loss_reconstruction", "loss_kl", "loss_consistency")}
            for row in map(json.loads, lines)
        ]
    assert rows["whole"] == rows["again"] and len(rows["whole"]) == 4
    supernet, text, step = load_supernet(space(), tmp_path / "again")
    assert step == 4
    score = Quality(supernet, text, data("validation"), QualityConfig(clips=2)).score(space().baseline())
    assert set(score.parts) == {"psnr", "psnr_changes", "ssim"} and 0 < score.parts["psnr"] < 60
    wanted = 0.5 * score.parts["psnr"] + 0.5 * score.parts["psnr_changes"] + 10 * score.parts["ssim"]
    assert score.loss == pytest.approx(wanted)


def _stop_after(step: int) -> Any:
    def told(row: Any) -> None:
        if row.step >= step:
            raise KeyboardInterrupt

    return told


@torch.no_grad()
def test_several_paths_score_together_as_alone() -> None:
    supernet = Supernet(space()).eval()
    task, clip = supernet.task, torch.rand(2, 9, 3, 16, 16)
    question = Question({"video": clip}, {"video": clip})
    paths = [space().baseline(), space().baseline()]
    together = task.answer(lambda inputs: supernet.predict(inputs, paths), question.repeated(2))
    alone = task.answer(lambda inputs: supernet.predict(inputs, paths[0]), question)
    assert torch.allclose(together[:2], alone, atol=1e-5) and torch.allclose(together[2:], alone, atol=1e-5)


def test_settings_and_data_that_do_not_fit_are_refused() -> None:
    with pytest.raises(NasError, match="train.task: reconstruciton"):
        trained_task("reconstruct", {"task": {"reconstruciton": "l1"}})
    with pytest.raises(NasError, match="unknown task 'recontruct'. Did you mean 'reconstruct'?"):
        open_task("recontruct")
    with pytest.raises(NasError, match="learns from pixels"):
        check_source(space(), "cache")
