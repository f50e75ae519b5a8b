"""One step: the shipped configuration, sampling and export at a single noise level, and quality told apart."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tuning_fixtures import make_model

from latency_tables.predict import video_time
from nas.evaluate.apart import apart, frame_features
from nas.export.metadata import network_app
from nas.model.levels import plan_levels
from nas.model.pipeline import load_pipeline
from nas.recipes import finetune
from nas.recipes.config import resolve_finetune
from nas.recipes.discriminator import Heads


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Heads]]:
    """A model of one step by ``--config one_step``, and the heads that judged it."""
    folder = tmp_path_factory.mktemp("one")
    few = ("steps=2", "clips=2", "images=2", "threads=1", "ramp_steps=1", "learning_rate=0.001")
    sets = [f"adversarial.{key}" for key in few] + ["motion.prompts=2", "data.source=moving_shapes"]
    settings = resolve_finetune(folder, Path("one_step"), [*sets, "data.max_objects=1"], "adversarial")
    seen: list[Heads] = []
    made = Heads.__init__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Heads, "__init__", lambda self, *told: (made(self, *told), seen.append(self))[0])
        finetune(make_model(folder / "model"), "adversarial", settings, folder / "one")
    return folder / "one", seen


def test_the_shipped_configuration_is_sf_v_s(tuned: tuple[Path, list[Heads]]) -> None:
    pipeline = load_pipeline(tuned[0])
    assert pipeline.sampling["sigmas"] == [1.0] and pipeline.sampling["guidance"] == 1.0
    (heads,) = tuned[1]
    assert sorted(heads.heads) == ["0-spatial", "0-temporal", "1-spatial", "1-temporal"]


def test_one_step_is_one_evaluation_at_pure_noise(tuned: tuple[Path, list[Heads]]) -> None:
    pipeline = load_pipeline(tuned[0])
    seen: list[tuple[float, torch.Tensor, torch.Tensor]] = []
    pipeline.unet.register_forward_hook(
        lambda module, args, out: seen.append((float(args[1]), args[0].clone(), out.sample.clone()))
    )
    made = pipeline("a red circle moving left", generator=torch.Generator().manual_seed(0))
    ((timestep, noise, velocity),) = seen
    assert timestep == 1000 and made.steps == 1 and made.sigmas == [1.0]
    assert torch.allclose(made.frames, pipeline.decode(noise - velocity), atol=1e-5)  # the clean estimate


def test_an_export_and_a_prediction_know_of_one_step(tuned: tuple[Path, list[Heads]]) -> None:
    told = json.loads(network_app(load_pipeline(tuned[0]), "made", {"main": (4, 8, 8)})["app"])
    assert told["sigmas"] == [1.0] and told["guidance"] == 1.0 and told["renoise"] is False
    assert plan_levels({"sigmas": told["sigmas"], "guidance": told["guidance"]}) == ([1.0], 1.0)  # as packages sample
    time = video_time(SimpleNamespace(plan=SimpleNamespace(text_encoder=None, decoder=None)), None, 12.5, 1)  # type: ignore[arg-type]
    assert time.total_ms == 12.5


def test_frames_and_their_differences_are_judged_apart() -> None:
    rng = np.random.default_rng(0)
    real = np.cumsum(rng.normal(0, 0.02, (24, 6, 12, 12, 3)), axis=1) + rng.random((24, 1, 12, 12, 3)) * 0.3 + 0.3
    frozen = np.repeat(real[:, 2:3], 6, axis=1)
    soft = real.copy()
    soft[:, :, :, 1:] = (real[:, :, :, 1:] + real[:, :, :, :-1]) / 2  # blurred, moving alike
    same, still, blurred = apart(real, real), apart(real, frozen), apart(real, soft)
    assert same["frechet_frames"] == pytest.approx(0, abs=1e-9) == same["frechet_differences"]
    assert still["frechet_differences"] > 5 * blurred["frechet_differences"]
    assert blurred["frechet_frames"] > 5 * still["frechet_frames"]
    assert frame_features(real[0]).shape == (6, 96)
    assert "frechet_differences" not in apart(real[:, :1], real[:, :1])
