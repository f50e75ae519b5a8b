"""The stage distribution_matching: two time scales, its own steps, no guidance left, and the same with a stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_finetune import Stop, log, same, stop_at, weights
from tuning_fixtures import DATA, make_model

from nas.errors import NasError
from nas.model.pipeline import load_pipeline
from nas.recipes import finetune
from nas.recipes.config import MotionConfig, known_settings, resolve_finetune
from nas.recipes.contract import Materials
from nas.recipes.distribution_matching import Matching, MatchingConfig
from nas.training.batches import Batch
from nas.training.distributed import World
from nas.training.draws import Draws
from nas.training.engine import Engine


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("matching") / "model")


def settings(**changes: Any) -> Any:
    few = {"steps": 3, "clips": 2, "checkpoint_every": 2, "ramp_steps": 1, "threads": 1, "learning_rate": 1e-3}
    told = {**few, "fake_steps": 2, "levels": (1.0, 0.5), **changes}
    return known_settings()(data=DATA, motion=MotionConfig(prompts=2, steps=1), distribution_matching=told)


def made(pipeline: Any, **changes: Any) -> tuple[Matching, Batch, torch.Tensor]:
    """A stage without data, a batch and its text."""
    config = MatchingConfig(levels=(1.0, 0.5), **changes)
    world = World(0, 1, torch.device("cpu"))

    class Nothing:
        loaders = ()

    stage = Matching(Materials(pipeline, Path(), Nothing(), 0, Engine(config, world)), config)
    captions = ["a red circle moving left"] * 2
    video = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return stage, Batch(video, captions), pipeline.encode(captions)


def draws(seed: int = 0) -> Draws:
    return Draws(torch.Generator().manual_seed(seed), World(0, 1, torch.device("cpu")))


def test_a_stopped_stage_goes_on_and_its_model_takes_few_steps_without_guidance(model: Path, tmp_path: Path) -> None:
    config = settings(adversarial_weight=0.1, accumulate=2, images=2, fake_steps=1)
    finetune(model, "distribution_matching", config, tmp_path / "whole")
    with pytest.raises(Stop):
        finetune(model, "distribution_matching", config, tmp_path / "parts", progress=stop_at(3))
    finetune(model, "distribution_matching", config, tmp_path / "parts")
    assert same(tmp_path / "whole", tmp_path / "parts")
    pipeline = load_pipeline(tmp_path / "whole")
    assert pipeline.sampling["sigmas"] == [1.0, 0.5] and pipeline.sampling["guidance"] == 1.0
    assert pipeline.scheduler.config.stochastic_sampling
    row = log(tmp_path / "whole")[-1]
    assert {"loss", "loss_fake", "loss_discriminator", "loss_generator"} <= set(row)
    before, after = weights(model), weights(tmp_path / "whole")
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_the_generator_s_gradient_is_the_difference_of_the_clean_estimates(model: Path) -> None:
    stage, batch, context = made(load_pipeline(model), guidance=1.0)
    pooled = context[:, 0]
    same_yet = stage._loss(batch, context, pooled, 1.0, draws(), lambda *told: None)  # fake is the teacher
    assert float(same_yet.detach()) == 0
    with torch.no_grad():
        for parameter in stage.modules["fake"].parameters():
            parameter.mul_(0.5)
    seen: list[torch.Tensor] = []
    kept = stage._made

    def watch(*told: Any) -> torch.Tensor:
        seen.append(kept(*told))
        seen[-1].retain_grad()
        return seen[-1]

    stage._made = watch  # type: ignore[method-assign]
    loss = stage._loss(batch, context, pooled, 1.0, draws(), lambda *told: None)
    loss.backward()
    clip = seen[0]
    assert clip.grad is not None and float(loss.detach()) > 0
    again = draws()
    with torch.no_grad():
        kept(batch, context, again)  # what was drawn before
        noisy, level, _ = stage._noised(clip, again)
        good, own = (
            noisy - level.reshape(-1, 1, 1, 1, 1) * network(noisy, 1000.0 * level, context).sample
            for network in (stage.teacher, stage.modules["fake"])
        )
        scale = (clip - good).abs().mean((1, 2, 3, 4), keepdim=True)
    assert torch.allclose(clip.grad * clip.numel(), (own - good) / scale, atol=1e-4)


def test_guidance_is_the_teacher_s_and_training_meets_its_own_steps(model: Path) -> None:
    stage, batch, context = made(load_pipeline(model), guidance=3.0)
    noisy, level = torch.randn(2, 3, 4, 8, 8), torch.tensor([0.4, 0.9])
    empty = stage.pipeline.encode(["", ""])
    with torch.no_grad():
        with_text, plain = (stage.teacher(noisy, 1000.0 * level, text).sample for text in (context, empty))
        guided = stage._guided(noisy, level, batch, context)
    assert torch.allclose(guided, plain + 3.0 * (with_text - plain), atol=1e-5)
    seen: list[list[float]] = []
    stage.modules["unet"].register_forward_pre_hook(lambda module, told: seen.append(told[1].tolist()))
    for seed in range(8):
        stage._made(batch, context, draws(seed))
    assert all(first == [1000.0, 1000.0] for first in seen[::2])  # from noise, never from a real clip
    assert {level for last in seen[1::2] for level in last} == {1000.0, 500.0}


def test_the_fake_score_steps_more_often(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    step = Matching._step
    monkeypatch.setattr(Matching, "_step", lambda self, name, rate: (taken.append(name), step(self, name, rate))[1])
    finetune(model, "distribution_matching", settings(steps=2), tmp_path / "out")
    assert taken == ["fake", "fake", "unet"] * 2
    with pytest.raises(NasError, match="distribution_matching.levels: .*must start at 1 and fall"):
        resolve_finetune(model, None, ["distribution_matching.levels=[0.5]"])
