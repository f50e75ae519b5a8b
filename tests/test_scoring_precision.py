"""Scores are taken in the precision of the training, say so, and do not mix with scores of another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from training_fixtures import DATA, clips, run, short, tiny

from nas.config import RunConfig, store
from nas.ranking.scores import open_quality, rescorer, scored_by
from nas.supernet.quality import Quality
from nas.supernet.trained import load_supernet


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run trained in bf16 for a step, as ``auto`` would on a device that has it."""
    out = tmp_path_factory.mktemp("bf16")
    train = short(steps=1, warmup_steps=0, clips=1, images=0, precision="bf16")
    store(config(), out)
    run(out / "supernet", train)
    return out


def config() -> RunConfig:
    quality = {"clips": 2, "batch": 2}
    return RunConfig(space="tiny", data=DATA, train=short(clips=1), quality=quality)  # type: ignore[arg-type]


def test_a_run_is_scored_in_the_precision_of_its_training(folder: Path) -> None:
    quality, _ = open_quality(config(), folder)
    supernet, text, _ = load_supernet(tiny(), folder / "supernet")
    full = Quality(supernet, text, clips("validation"), config().quality)
    path = tiny().sample(np.random.default_rng(0))
    seen: list[torch.dtype] = []
    quality.supernet.unet.conv_in.register_forward_hook(lambda module, given, out: seen.append(out.dtype))  # type: ignore[union-attr, operator]
    half, whole = quality.score(path), full.score(path)
    assert quality.precision == "bf16" and seen == [torch.bfloat16]
    assert half.loss == pytest.approx(whole.loss, rel=0.02) and half.loss != whole.loss


def test_what_scores_depend_on_names_a_precision_that_is_not_full(folder: Path, tmp_path: Path) -> None:
    run(tmp_path / "supernet", short(steps=1, warmup_steps=0, clips=1, images=0))
    asked = {where: scored_by(config(), where, 1)["quality"] for where in (folder, tmp_path)}
    assert asked[folder] == asked[tmp_path] + " in bf16"
    assert asked[tmp_path] == config().quality.model_dump_json()  # as before: earlier studies go on


def test_scores_that_were_kept_in_another_precision_are_not_taken_up(folder: Path) -> None:
    quality, steps = open_quality(config(), folder)
    path, scored = tiny().baseline(), scored_by(config(), folder, steps)
    finer, _ = rescorer(config(), folder, quality, scored)
    finer.score(path)
    finer.keep()
    again, _ = rescorer(config(), folder, quality, scored)
    assert path.key in again._known
    other, _ = rescorer(config(), folder, quality, {**scored, "quality": scored["quality"].removesuffix(" in bf16")})
    assert not other._known
