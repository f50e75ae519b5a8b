"""The contract of a recipe: found by name, from another package too, with everything that the one loop has."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import Field
from test_finetune import Stop, log, same, stop_at, weights
from tuning_fixtures import DATA, make_model

import nas.recipes.contract as contract
from nas.cli import main
from nas.errors import NasError
from nas.evaluate.motion import compared, fell, motion_energy, sentence
from nas.files import read_json
from nas.recipes import finetune
from nas.recipes.config import MotionConfig, known_settings, resolve_finetune
from nas.recipes.contract import Recipe, find_recipe, known_recipes
from nas.training.config import StageConfig
from nas.training.engine import Engine
from nas.training.loop import Stage
from search_spaces import registry


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("recipes") / "model")


class PullConfig(StageConfig):
    """Towards clips of one brightness."""

    pull: float = Field(0.5, gt=0.0)


class Pull(Stage):
    """Pulls the network's answer to real clips towards a constant: what another package might try."""

    key = "pull"
    averaged = frozenset({"unet"})

    def __init__(self, pipeline: Any, batches: Any, config: PullConfig, engine: Engine) -> None:
        self.pipeline, self.batches, self.config, self.engine = pipeline, batches, config, engine
        self.modules = {"unet": pipeline.unet.train()}
        engine.prepare(pipeline.unet, pipeline.unet.blocks())
        self.optimizers = {"": torch.optim.AdamW(pipeline.unet.parameters(), config.learning_rate)}

    def advance(self, step: int, draws: Any, sane: Any) -> Any:
        optimizer = self.optimizers[""]
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for micro in range(self.config.accumulate):
            batch = self.batches.videos(step * self.config.accumulate + micro)
            noisy = batch.video + draws.normal(batch.video)
            answer = self.pipeline.unet(noisy, 500.0, self.pipeline.encode(batch.captions)).sample
            loss = (answer - self.config.pull).square().mean()
            self.engine.back(loss)
            total += float(loss.detach()) / self.config.accumulate
        norm = self.engine.norm(optimizer)
        (total,) = self.engine.world.mean([total])
        if not self.engine.usable(total, norm, sane):
            return None
        self.engine.step(optimizer)
        return {"loss": total}


PULL = Recipe("pull", "a stranger's", PullConfig, lambda m, c: Pull(m.pipeline, m.batches, c, m.engine))


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("pull", "test_recipes:PULL", contract.GROUP)
    broken = EntryPoint("broken", "test_recipes:NOTHING", contract.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point] if group == contract.GROUP else [broken])


def settings(**changes: Any) -> Any:
    few = {"steps": 4, "clips": 2, "images": 2, "checkpoint_every": 2, "threads": 1, **changes}
    return known_settings()(data=DATA, motion=MotionConfig(prompts=3, steps=1), pull=few)


def test_a_recipe_of_another_package_trains_stops_and_goes_on(model: Path, foreign: None, tmp_path: Path) -> None:
    assert known_recipes()[:2] == ["joint", "adversarial"] and known_recipes()[-1] == "pull"
    told = finetune(model, "pull", settings(accumulate=2), tmp_path / "whole")
    with pytest.raises(Stop):
        finetune(model, "pull", settings(accumulate=2), tmp_path / "parts", progress=stop_at(3))
    finetune(model, "pull", settings(accumulate=2), tmp_path / "parts")
    assert same(tmp_path / "whole", tmp_path / "parts") and len(log(tmp_path / "whole")) == 4
    before = weights(model)
    assert any(not torch.equal(before[name], w) for name, w in weights(tmp_path / "whole").items())
    assert told["improved"]["what"] == "loss" and told["improved"]["last"] < told["improved"]["first"]
    assert resolve_finetune(model, None, ["pull.pull=0.25"]).stage("pull").pull == 0.25  # type: ignore[attr-defined]


def test_a_recipe_that_nobody_knows_is_one_line(
    model: Path, foreign: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["finetune", str(model), "--stage", "adverserial", "--out", "nowhere"])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "unknown recipe 'adverserial'. Did you mean 'adversarial'?" in said
    broken = EntryPoint("pull", "test_recipes:NOTHING", contract.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [broken])
    with pytest.raises(NasError, match="recipe 'pull': test_recipes:NOTHING cannot be loaded .*; repair or uninstall"):
        find_recipe("pull")
    wrong = EntryPoint("pull", "test_recipes:PullConfig", contract.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [wrong])
    with pytest.raises(NasError, match="must name a Recipe, not"):
        find_recipe("pull")


def test_settings_of_another_recipe_alone_are_not_lost_silently(model: Path) -> None:
    with pytest.raises(NasError, match=r"--stage is joint, but .* say something of adversarial alone; add --stage adv"):
        resolve_finetune(model, None, ["adversarial.steps=3"], "joint")
    assert resolve_finetune(model, None, ["adversarial.steps=3", "joint.steps=2"], "joint").stage("joint").steps == 2


# Motion ---------------------------------------------------------------------------------------------------------------


def test_motion_is_told_before_and_after_with_an_interval(model: Path, foreign: None, tmp_path: Path) -> None:
    told = finetune(model, "pull", settings(steps=2), tmp_path / "out")
    motion = told["motion"]
    assert motion["prompts"] == 3 and motion["low"] <= motion["change"] <= motion["high"]
    assert motion["before"] > 0 and motion["change"] == pytest.approx(motion["after"] - motion["before"])
    kept = read_json(tmp_path / "out" / "finetune" / "result.json")
    assert kept["motion"] == motion and kept["motion_sentence"] == told["motion_sentence"] and kept["stage"] == "pull"


def test_a_fall_beyond_chance_is_a_sentence_and_a_smaller_one_is_not() -> None:
    before = np.linspace(0.1, 0.2, 12)
    much, little = compared(before, before * 0.8), compared(before, before + 0.01 * np.array([1, -1] * 6))
    assert fell(much) and sentence(much).startswith("Motion fell by 20%, from 0.1500 to 0.1200")
    assert not fell(little) and "did not change beyond chance" in sentence(little)
    assert sentence(compared(before, before * 1.5)).startswith("Motion rose")
    still = np.zeros((2, 3, 4, 4, 3))
    assert motion_energy(still).tolist() == [0.0, 0.0]
    still[1, 1:] = 0.5
    assert motion_energy(still).tolist() == [0.0, 0.25]
    assert motion_energy(still[:, :1]).tolist() == [0.0, 0.0]


def test_the_report_tells_of_fine_tuned_models_and_of_motion_that_fell(
    model: Path, foreign: None, tmp_path: Path
) -> None:
    from nas.report import write_report

    (tmp_path / "metrics.json").write_text('{"space": "mini"}')
    assert "Fine-tuned from it" not in Path(write_report(tmp_path)).read_text()
    finetune(model, "pull", settings(steps=1), tmp_path / "pulled")
    path = tmp_path / "pulled" / "finetune" / "result.json"
    lost = {"before": 0.2, "after": 0.1, "change": -0.1, "low": -0.12, "high": -0.08, "prompts": 24}
    path.write_text(json.dumps({**read_json(path), "motion": lost}))
    (tmp_path / "other" / "finetune").mkdir(parents=True)
    (tmp_path / "other" / "finetune" / "result.json").write_text('{"improved": [1], "motion": {"low": "x"}}')
    page = Path(write_report(tmp_path)).read_text()
    assert "Fine-tuned from it" in page and "<strong>Motion fell by 50%, from 0.2000 to 0.1000" in page
    assert "was not measured" in page  # of one whose numbers cannot be read
