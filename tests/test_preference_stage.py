"""The stage that learns from preferences: the papers' losses, what it trains, and what it refuses."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_finetune import Stop, log, same, stop_at, weights
from test_preferences import guided, how
from tuning_fixtures import DATA, make_model

from nas.cli import main
from nas.errors import NasError
from nas.preferences.folder import PreferenceSet
from nas.preferences.making import make_set
from nas.recipes import finetune
from nas.recipes.adapters import Adapters
from nas.recipes.config import MotionConfig, known_settings
from nas.recipes.preference import LOSSES, chosen, dense, pair_weights, pairwise, ranked


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model, a set of three clips a prompt and a set of guided pairs."""
    folder = tmp_path_factory.mktemp("stage")
    model = make_model(folder / "model")
    make_set(model, how(rewards=("sharpness",)), folder / "samples")
    make_set(model, guided(), folder / "guided")
    return {"model": model, "samples": folder / "samples", "guided": folder / "guided"}


def settings(data: Path, **changes: Any) -> Any:
    few = {"steps": 4, "clips": 2, "images": 0, "checkpoint_every": 2, "ramp_steps": 1, "learning_rate": 1e-3}
    told = {**few, "threads": 1, "data": data, **changes}
    return known_settings()(data=DATA, motion=MotionConfig(prompts=2, steps=1), preference=told)


# The losses -----------------------------------------------------------------------------------------------------------


def scores(*values: list[float]) -> torch.Tensor:
    """(1, k, T, 2) scores, both values of a frame alike."""
    return torch.tensor([[[[value] * 2 for value in clip] for clip in values]])


def test_pairs_compare_the_best_with_the_worst() -> None:
    video, preference = torch.arange(3.0)[None, :, None], torch.tensor([[[0.5], [0.0], [1.0]]])
    clips, wins = chosen(video, preference, "pairwise")
    assert clips.flatten().tolist() == [2, 1] and wins.flatten().tolist() == [1, 0]
    loss, right, margin = pairwise(scores([0.1, 0.3], [0.4, 0.4]), wins, 10.0, "mean")
    assert float(margin) == pytest.approx(2.0) and float(right) == 1
    assert float(loss) == pytest.approx(math.log1p(math.exp(-2.0)))
    summed = pairwise(
        scores([0.1, 0.3], [0.4, 0.4]), wins, 10.0 / 4, "sum"
    )  # four values: beta belongs to the reduction
    assert float(summed[0]) == pytest.approx(float(loss))


def test_ranked_pairs_weigh_by_gain_and_discount_whatever_their_place() -> None:
    phi = torch.tensor([[0.25, 1.0, 0.5]])  # the best stands in the middle
    weight, better = pair_weights(phi)
    gain = [2**0.25 - 1, 1.0, 2**0.5 - 1]
    discount = [math.log(4), math.log(2), math.log(3)]
    for i, j in ((1, 0), (1, 2), (2, 0)):
        wanted = abs(gain[i] - gain[j]) * abs(1 / discount[i] - 1 / discount[j])
        assert float(weight[0, i, j]) == pytest.approx(wanted, rel=1e-5) and better[0, i, j] == 1 - better[0, j, i] == 1
    s = torch.tensor([0.3, -0.2, 0.1])
    loss, right, _ = ranked(s[None, :, None, None], phi[:, :, None], 2.0, "mean")
    wanted = sum(
        float(weight[0, i, j]) * math.log1p(math.exp(2.0 * float(s[i] - s[j]))) for i, j in ((1, 0), (1, 2), (2, 0))
    )
    assert float(loss) == pytest.approx(wanted, rel=1e-5) and float(right) == 1
    turned = ranked(s.flip(0)[None, :, None, None], phi.flip(1)[:, :, None], 2.0, "mean")
    assert float(turned[0]) == pytest.approx(float(loss))  # the order of storing says nothing
    equal = ranked(s[None, :, None, None], torch.full((1, 3, 1), 0.5), 2.0, "mean")
    assert float(equal[0]) == 0


def test_dense_labels_count_segment_by_segment_and_ties_not_at_all() -> None:
    given = scores([0.1, 0.5, 9.0], [0.3, 0.1, -9.0])
    preference = torch.tensor([[[1.0, 0.0, 0.5], [0.0, 1.0, 0.5]]])
    loss, right, margin = dense(given, preference, 10.0, "mean")
    assert float(margin) == pytest.approx(-10 * ((0.1 - 0.3) - (0.5 - 0.1)) / 2) and float(right) == 1
    assert float(loss) == pytest.approx(math.log1p(math.exp(-3.0)))
    tied = dense(given, torch.full((1, 2, 3), 0.5), 10.0, "mean")
    assert [float(value) for value in tied] == [0, 0, 0]


# The stage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_every_loss_trains_towards_the_preferred_clips(loss: str, made: dict[str, Path], tmp_path: Path) -> None:
    data = made["guided" if loss == "dense" else "samples"]
    told = finetune(made["model"], "preference", settings(data, loss=loss, steps=12, clips=3), tmp_path / "out")
    rows = log(tmp_path / "out")
    assert rows[0]["margin"] == pytest.approx(0, abs=1e-3)  # the reference itself
    assert np.mean([row["margin"] for row in rows[-4:]]) > 0.1
    assert told["improved"]["what"] == "accuracy" and "motion" in told
    before, after = weights(made["model"]), weights(tmp_path / "out")
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_a_stopped_stage_goes_on_as_if_never_stopped(made: dict[str, Path], tmp_path: Path) -> None:
    config = settings(made["samples"], loss="ranked", accumulate=2, workers=1, reference_precision="bf16")
    finetune(made["model"], "preference", config, tmp_path / "whole")
    with pytest.raises(Stop):
        finetune(made["model"], "preference", config, tmp_path / "parts", progress=stop_at(3))
    finetune(made["model"], "preference", config, tmp_path / "parts")
    assert same(tmp_path / "whole", tmp_path / "parts")


def test_lora_trains_few_weights_and_is_merged(made: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="LoRA needs peft: pip install 'temporal-nas[lora]'")
    from nas.training.checkpoint import list_checkpoints, load_checkpoint

    config = settings(made["samples"], lora_rank=2, learning_rate=1e-2, steps=8)
    finetune(made["model"], "preference", config, tmp_path / "whole")
    with pytest.raises(Stop):
        finetune(made["model"], "preference", config, tmp_path / "parts", progress=stop_at(5))
    finetune(made["model"], "preference", config, tmp_path / "parts")
    assert same(tmp_path / "whole", tmp_path / "parts")
    held = load_checkpoint(list_checkpoints(tmp_path / "whole" / "finetune")[-1]).tensors["weights"]
    assert held and all("lora_" in name for name in held)
    before, after = weights(made["model"]), weights(tmp_path / "whole")  # loads as any model does
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(before[name].dim() == 2 for name in changed)
    rows = log(tmp_path / "whole")
    assert rows[0]["margin"] == pytest.approx(0, abs=1e-3) and rows[-1]["margin"] > 0


def test_lora_without_peft_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(NasError, match=r"needs peft, .*temporal-nas\[lora\]'.*or set preference.lora_rank=0"):
        Adapters(torch.nn.Sequential(torch.nn.Linear(2, 2)), 2, 0)


def test_a_set_that_does_not_fit_is_one_line(
    made: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["finetune", str(made["model"]), "--stage", "preference", "--out", str(tmp_path / "out")])
    assert ended.value.code == 2 and "preference.data is missing; make a set with nas prefer" in capsys.readouterr().err
    with pytest.raises(NasError, match="loss=dense needs a set made with kind=guided"):
        finetune(made["model"], "preference", settings(made["samples"], loss="dense"), tmp_path / "out")
    told = PreferenceSet(made["samples"]).header.model_dump()
    other = {**told, "autoencoder": "0123456789ab"}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "set.json").write_text(json.dumps(other))
    with pytest.raises(NasError, match="3x4x8x8 latents of 0123456789ab, but the model's are 3x4x8x8 of pixels; make"):
        finetune(made["model"], "preference", settings(tmp_path / "other"), tmp_path / "out")
    (tmp_path / "other" / "set.json").write_text(json.dumps(told))
    with pytest.raises(NasError, match="in none of its 0 groups is one clip better than another; judge them"):
        finetune(made["model"], "preference", settings(tmp_path / "other"), tmp_path / "out")
