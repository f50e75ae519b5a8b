"""What the engine and the loop give every stage: micro-batches, recomputation, workers, validation, curves, fp16."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from test_finetune import Stop, log, same, stop_at
from tuning_fixtures import TOOK, config, make_model, mini

from nas.errors import NasError
from nas.prune.config import PruneConfig
from nas.prune.recover import Recover
from nas.recipes import finetune
from nas.recipes.adversarial import Adversarial
from nas.recipes.joint import Joint
from nas.training.distributed import World
from nas.training.engine import compile_parts
from nas.training.log import read_best
from nas.training.loop import Loop
from search_spaces.families import build_backbone
from search_spaces.families.unet import FAMILY, cuts
from search_spaces.network import recompute

STAGES = pytest.mark.parametrize("stage", ["joint", "adversarial"])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("options") / "model")


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "finetune" / "metrics.jsonl").read_text().splitlines()]


@STAGES
def test_recomputation_and_workers_change_no_loss(stage: str, model: Path, tmp_path: Path) -> None:
    finetune(model, stage, config(steps=3), tmp_path / "plain")
    again: list[Any] = []
    more = {"activation_checkpoints": True, "workers": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nas.training.engine.recompute", lambda part: (again.append(part), recompute(part)))
        finetune(model, stage, config(steps=3, **more), tmp_path / "again")
    assert same(tmp_path / "plain", tmp_path / "again") and len(again) > 4


def test_a_recomputed_part_keeps_what_enters_it_alone() -> None:
    kept = {}
    for name in ("plain", "again"):
        part = torch.nn.Sequential(*(torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh()) for _ in range(4)))
        if name == "again":
            recompute(part)
        saved: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t.numel()) or t, lambda t: t):
            out = part(torch.ones(16, 8))
        kept[name] = sum(saved)
        out.sum().backward()
        assert all(p.grad is not None for p in part.parameters())
    assert kept["again"] < 0.5 * kept["plain"]


def test_micro_batches_have_the_mean_of_their_gradients(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss with a gradient of one at every weight has the same norm however many make it up."""
    turns: list[int] = []

    def loss(self: Joint, batch: Any, draws: Any) -> torch.Tensor:
        turns.append(len(batch.captions))
        return torch.stack([p.sum() for p in self.pipeline.unet.parameters()]).sum() + float(len(turns) == 1)

    monkeypatch.setattr(Joint, "_loss", loss)
    norms = []
    for accumulate in (1, 3):
        turns.clear()
        settings = config(steps=1, accumulate=accumulate, images=0, gradient_clip=1e9)
        finetune(model, "joint", settings, tmp_path / str(accumulate))
        norms.append(rows(tmp_path / str(accumulate))[0]["grad_norm"])
        assert len(turns) == accumulate
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)
    losses = [rows(tmp_path / str(accumulate))[0]["loss"] for accumulate in (1, 3)]
    assert losses[0] - losses[1] == pytest.approx(2 / 3, abs=1e-3)


def test_adversarial_micro_batches_hold_no_graph_while_the_heads_learn(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[bool] = []
    teach = Adversarial._teach

    def watched(self: Adversarial, made: list[Any], *more: Any) -> bool:
        held.extend(one.fake.requires_grad for one in made)
        return teach(self, made, *more)

    monkeypatch.setattr(Adversarial, "_teach", watched)
    finetune(model, "adversarial", config(steps=1), tmp_path / "one")
    finetune(model, "adversarial", config(steps=1, accumulate=2), tmp_path / "two")
    assert held == [True] * 2 + [False] * 4
    one, two = (log(tmp_path / name)[0] for name in ("one", "two"))
    assert one.keys() == two.keys() and all(math.isfinite(v) for v in two.values() if v is not None)
    assert two["loss"] == pytest.approx(one["loss"], rel=0.5)  # a mean over them, not their sum


@STAGES
def test_the_best_validated_step_is_marked_and_training_is_as_without(stage: str, model: Path, tmp_path: Path) -> None:
    finetune(model, stage, config(steps=4), tmp_path / "plain")
    finetune(model, stage, config(steps=4, validate_every=2), tmp_path / "looked")
    found = rows(tmp_path / "looked")
    assert [row["validation"] is not None for row in found] == [False, True, False, True]
    scored = {row["step"]: row["validation"] for row in found if row["validation"] is not None}
    best = min(scored, key=lambda step: scored[step])
    assert read_best(tmp_path / "looked" / "finetune") == {"step": best, "loss": scored[best]}
    for mine, other in zip(found, rows(tmp_path / "plain"), strict=True):
        assert all(mine[name] == other[name] for name in other if name not in (*TOOK, "validation"))


def test_curves_of_fine_tuning_go_to_tensorboard(model: Path, tmp_path: Path) -> None:
    finetune(model, "joint", config(steps=2, trackers=("tensorboard",)), tmp_path / "out")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "out" / "finetune" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss_video")] == [1, 2]


def test_a_tracker_that_is_missing_is_named_with_the_stage_s_key(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accelerate.utils.is_wandb_available", lambda: False)
    with pytest.raises(NasError, match="joint.trackers names wandb.*pip install wandb"):
        finetune(model, "joint", config(trackers=("wandb",)), tmp_path / "out")


@STAGES
def test_half_precision_scales_both_optimisers_and_goes_on_exactly(stage: str, model: Path, tmp_path: Path) -> None:
    settings = config(steps=3, precision="fp16", checkpoint_every=2)
    finetune(model, stage, settings, tmp_path / "whole")
    with pytest.raises(Stop):
        finetune(model, stage, settings, tmp_path / "parts", progress=stop_at(3))
    finetune(model, stage, settings, tmp_path / "parts")
    assert same(tmp_path / "whole", tmp_path / "parts")


def test_a_checkpoint_from_before_these_settings_goes_on(model: Path, tmp_path: Path) -> None:
    finetune(model, "joint", config(steps=4, checkpoint_every=2), tmp_path / "whole")
    with pytest.raises(Stop):
        finetune(model, "joint", config(steps=4, checkpoint_every=2), tmp_path / "old", progress=stop_at(3))
    state = tmp_path / "old" / "finetune" / "step-00000002" / "state.json"
    known = json.loads(state.read_text())
    assert "accumulate" not in known["settings"]
    del known["scaler"]  # which such a checkpoint does not hold either
    state.write_text(json.dumps(known))
    finetune(model, "joint", config(steps=4, checkpoint_every=2), tmp_path / "old")
    assert same(tmp_path / "whole", tmp_path / "old")
    shutil.copytree(tmp_path / "old", tmp_path / "other")
    with pytest.raises(NasError, match="accumulate is None, the run's 2"):
        finetune(model, "joint", config(steps=4, checkpoint_every=2, accumulate=2), tmp_path / "other")


@pytest.mark.filterwarnings("ignore")  # torch about its own internals while it compiles
def test_compiled_units_make_the_same_loss(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced as for any back-end, without its minutes of code generation."""
    compiled: list[Any] = []

    def eagerly(parts: Any) -> None:
        compiled.extend(parts)
        compile_parts(compiled, "eager")

    finetune(model, "joint", config(steps=1), tmp_path / "plain")
    monkeypatch.setattr("nas.training.engine.compile_parts", eagerly)
    finetune(model, "joint", config(steps=1, compile=True), tmp_path / "out")
    assert compiled and log(tmp_path / "out")[0]["loss"] == pytest.approx(log(tmp_path / "plain")[0]["loss"], rel=1e-4)


class Stills:
    """Images of noise with texts of ones, four a turn; what ``Recover`` reads of ``Images``."""

    world = World(0, 1, torch.device("cpu"))
    loaders = ()
    family = FAMILY

    def __init__(self) -> None:
        self.turns: list[int] = []

    def training(self, turn: int, change: Any) -> tuple[torch.Tensor, torch.Tensor]:
        self.turns.append(turn)
        change(["a"] * 4)
        return torch.randn((4, 3, 8, 8), generator=torch.Generator().manual_seed(turn)), torch.ones(4, 12, 16)


def test_recovery_takes_micro_batches_and_computes_again(tmp_path: Path) -> None:
    found = {}
    for name, more in {"plain": {}, "again": {"activation_checkpoints": True}, "two": {"accumulate": 2}}.items():
        torch.manual_seed(0)
        whole, unet = (build_backbone(mini().backbone) for _ in range(2))
        stills = Stills()
        settings = PruneConfig(steps=2, ramp_steps=0, checkpoint_every=2, **more)
        stage = Recover(whole.requires_grad_(False), unet, stills, settings, cuts)
        Loop(stage, tmp_path / name, {}, 0, print).run()
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        found[name] = [json.loads(line)["loss"] for line in lines]
        assert stills.turns == list(range(4 if name == "two" else 2))
    assert found["plain"] == found["again"] != found["two"]
