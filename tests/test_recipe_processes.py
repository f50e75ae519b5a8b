"""Recipes beside the first two in several processes: the losses of one, whoever holds which clips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_finetune_processes import rows, together
from test_preferences import how
from tuning_fixtures import DATA, make_model

from nas.model.pipeline import load_pipeline
from nas.preferences.making import make_set
from nas.recipes import finetune
from nas.recipes.config import MotionConfig, known_settings

pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
FEW = {"steps": 3, "clips": 2, "images": 0, "checkpoint_every": 2, "ramp_steps": 1, "learning_rate": 1e-3, "threads": 1}
SPUN = DATA.model_copy(update={"boundary": "inside", "rotation": (-0.5, 0.5)})


def both(model: Path, stage: str, out: Path, source: Any = DATA, **changes: Any) -> list[tuple[dict[str, Any], ...]]:
    """The log of two processes beside that of one."""
    told = {stage: {**FEW, **changes}}
    settings = known_settings()(data=source, motion=MotionConfig(prompts=2, steps=1), **told)
    assert together(model, stage, settings, out / "two") == []
    finetune(model, stage, settings, out / "one")
    return list(zip(rows(out / "two"), rows(out / "one"), strict=True))


def test_preferences_in_two_processes_make_the_losses_of_one(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    make_set(model, how(rewards=("sharpness",)), tmp_path / "set")
    names = ("loss", "accuracy", "margin", "grad_norm")
    for mine, other in both(model, "preference", tmp_path, data=tmp_path / "set", loss="ranked"):
        assert [mine[name] for name in names] == pytest.approx([other[name] for name in names], rel=2e-3, abs=1e-4)
    two, one = (load_pipeline(tmp_path / name).unet.state_dict() for name in ("two", "one"))
    assert all(torch.allclose(two[name], one[name], atol=2e-3) for name in one)


@pytest.mark.slow
def test_distribution_matching_in_two_processes_makes_the_losses_of_one(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    for mine, other in both(model, "distribution_matching", tmp_path, fake_steps=1, levels=(1.0, 0.5)):
        names = ("loss", "loss_fake", "grad_norm")
        assert [mine[name] for name in names] == pytest.approx([other[name] for name in names], rel=1e-2, abs=1e-4)


@pytest.mark.slow
def test_points_in_two_processes_make_the_video_s_losses_of_one(tmp_path: Path) -> None:
    """Points count by how many of a process's are seen, so that half alone may differ from one process's mean."""
    model = make_model(tmp_path / "model")
    for mine, other in both(model, "points", tmp_path, source=SPUN)[:1]:
        assert mine["loss_video"] == pytest.approx(other["loss_video"], rel=2e-3)
