"""Fine-tuning: both stages end in a model folder, go on exactly after a stop, and survive a step that goes wrong."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tuning_fixtures import TOOK, config, make_model

import nas.recipes.adversarial as adversarial_stage
import nas.recipes.joint as joint_stage
from nas.config import RunConfig, store
from nas.data.cached import _NoStills
from nas.errors import AnswerIsNo, NasError
from nas.model.pipeline import load_pipeline
from nas.recipes import finetune
from nas.recipes.adversarial import AdversarialConfig, pseudo_huber
from nas.recipes.config import FinetuneConfig, resolve_finetune

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("tuning") / "model")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: p.clone() for name, p in load_pipeline(folder).unet.state_dict().items()}


def log(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "finetune" / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TOOK} for row in rows]


def same(a: Path, b: Path) -> bool:
    first, second = weights(a), weights(b)
    return all(torch.equal(first[name], second[name]) for name in first) and log(a) == log(b)


class Stop(Exception):
    pass


def stop_at(step: int) -> Any:
    def progress(done: int, row: Any) -> None:
        if done == step:
            raise Stop

    return progress


@pytest.mark.parametrize("stage", ["joint", "adversarial"])
def test_a_stage_ends_in_a_model_folder_and_leaves_its_input_alone(stage: str, model: Path, tmp_path: Path) -> None:
    before = weights(model)
    summary = finetune(model, stage, config(), tmp_path / "out")
    after = weights(tmp_path / "out")
    assert summary["steps"] == 6
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(model).items())
    frames = load_pipeline(tmp_path / "out")(
        "a red circle moving left", generator=torch.Generator().manual_seed(0)
    ).frames
    assert frames.shape == (1, 4, 8, 8, 3) and frames.isfinite().all()


@pytest.mark.parametrize("stage", ["joint", "adversarial"])
def test_a_stopped_stage_goes_on_as_if_never_stopped(stage: str, model: Path, tmp_path: Path) -> None:
    settings = config(text_rate=0.5, data={"buckets": ["3x8x12"]})
    finetune(model, stage, settings, tmp_path / "whole")
    with pytest.raises(Stop):
        finetune(model, stage, settings, tmp_path / "parts", progress=stop_at(5))  # one step after a checkpoint
    assert not (tmp_path / "parts" / "model_index.json").exists()
    finetune(model, stage, settings, tmp_path / "parts")
    assert same(tmp_path / "whole", tmp_path / "parts")


def test_the_few_steps_are_the_noise_levels_of_training(model: Path, tmp_path: Path) -> None:
    finetune(model, "adversarial", config(levels=(1.0, 0.6, 0.2), renoise=True), tmp_path / "few")
    pipeline = load_pipeline(tmp_path / "few")
    seen: list[float] = []
    pipeline.unet.register_forward_pre_hook(lambda module, args: seen.append(float(args[1])))
    made = pipeline("a red circle moving left", num_inference_steps=3)
    assert seen == pytest.approx([1000, 600, 200]) and made.sigmas == [1.0, 0.6, 0.2]
    assert pipeline.scheduler.config.stochastic_sampling
    assert pipeline("a red circle moving left").steps == 3  # what it was made for
    assert pipeline("a red circle moving left", num_inference_steps=2).sigmas == [1.0, 0.5]


def test_joint_training_lowers_the_loss_on_images_and_videos(model: Path, tmp_path: Path) -> None:
    finetune(model, "joint", config(steps=30, learning_rate=1e-2, text_rate=1.0, checkpoint_every=30), tmp_path / "out")
    rows = log(tmp_path / "out")
    for part in ("loss_video", "loss_image"):
        first, last = ([row[part] for row in rows[i]] for i in (slice(0, 5), slice(-5, None)))
        assert sum(last) < 0.8 * sum(first)


def test_every_bucket_is_trained_on_and_known_to_the_model(model: Path, tmp_path: Path) -> None:
    seen: set[tuple[int, ...]] = set()
    hook = joint_stage.mix

    def watch(clean: Any, *more: Any) -> Any:
        seen.add(tuple(clean.shape[2:]))
        return hook(clean, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(joint_stage, "mix", watch)
        finetune(model, "joint", config(data={"buckets": ["3x8x12"]}), tmp_path / "out")
    assert seen == {(4, 8, 8), (1, 8, 8), (3, 8, 12), (1, 8, 12)}
    assert load_pipeline(tmp_path / "out").sampling["clips"] == [[4, 8, 8], [3, 8, 12]]


def test_the_text_encoder_trains_only_when_asked(model: Path, tmp_path: Path) -> None:
    before = load_pipeline(model).text_encoder.state_dict()
    for rate, changed in ((0.0, False), (1.0, True)):
        finetune(model, "joint", config(steps=2, text_rate=rate), tmp_path / f"rate-{rate}")
        after = load_pipeline(tmp_path / f"rate-{rate}").text_encoder.state_dict()
        assert any(not torch.equal(before[name], after[name]) for name in before) is changed


def test_a_step_that_is_not_a_number_is_taken_back(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = joint_stage.mix
    calls = []

    def once(*args: Any) -> Any:
        calls.append(1)
        return whole(*args) * (math.nan if len(calls) == 9 else 1.0)  # two calls a step: the fifth step

    monkeypatch.setattr(joint_stage, "mix", once)
    said: list[str] = []
    finetune(model, "joint", config(), tmp_path / "out", warn=said.append)
    assert said == ["step 5: loss nan; went back to step 4 and draws the noise anew"]
    assert [row["step"] for row in log(tmp_path / "out")] == [1, 2, 3, 4, 5, 6]
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "out").values())


def test_a_step_that_always_goes_wrong_ends_it(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joint_stage, "mix", lambda clean, noise, level: clean * math.nan)
    with pytest.raises(NasError, match=r"step 1 .*\(loss nan\), and going back 3 times .* lower joint.learning_rate"):
        finetune(model, "joint", config(), tmp_path / "out")
    assert not (tmp_path / "out" / "model_index.json").exists()


def test_a_damaged_checkpoint_is_passed_over(model: Path, tmp_path: Path) -> None:
    finetune(model, "joint", config(), tmp_path / "whole")
    with pytest.raises(Stop):
        finetune(model, "joint", config(), tmp_path / "parts", progress=stop_at(5))
    (tmp_path / "parts" / "finetune" / "step-00000004" / "weights.safetensors").write_bytes(b"cut")
    said: list[str] = []
    finetune(model, "joint", config(), tmp_path / "parts", warn=said.append)
    assert len(said) == 1 and "Going on from an earlier one" in said[0]
    assert same(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"loss_discriminator": 0.001, "real": 5.0, "fake": -5.0}, "told all clips apart"),
        ({"loss_discriminator": 2.0, "real": 0.1, "fake": 0.1}, "answers to real and generated clips differed by 0"),
    ],
)
def test_a_collapsed_discriminator_is_reported_and_the_last_good_model_kept(
    row: dict[str, float], said: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(steps=12, collapse_window=3, keep=6)
    good = config(steps=12, collapse_window=12, keep=6)  # the same steps, never looked at
    step = adversarial_stage.Adversarial.advance

    def collapsing(self: Any, number: int, *more: Any) -> Any:
        told = step(self, number, *more)
        return {**told, **row} if number >= 6 else told

    monkeypatch.setattr(adversarial_stage.Adversarial, "advance", collapsing)
    with pytest.raises(AnswerIsNo, match=f"at step 9 the discriminator had collapsed: .*{said}.*kept step 6"):
        finetune(model, "adversarial", settings, tmp_path / "out")
    monkeypatch.undo()
    with pytest.raises(Stop):
        finetune(model, "adversarial", good, tmp_path / "good", progress=stop_at(7))
    from nas.training.checkpoint import load_checkpoint

    average = load_checkpoint(tmp_path / "good" / "finetune" / "step-00000006").tensors["average"]
    kept = weights(tmp_path / "out")
    assert all(torch.equal(kept[name.removeprefix("unet.")], tensor) for name, tensor in average.items())


def test_a_collapse_over_many_checkpoints_still_finds_one_from_before_it(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = adversarial_stage.Adversarial.advance

    def collapsing(self: Any, number: int, *more: Any) -> Any:
        told = step(self, number, *more)
        return {**told, "loss_discriminator": 0.001} if number >= 4 else {**told, "loss_discriminator": 9.0}

    monkeypatch.setattr(adversarial_stage.Adversarial, "advance", collapsing)
    settings = config(steps=20, collapse_window=6, keep=1, collapse_low=0.02)
    with pytest.raises(AnswerIsNo, match="at step 10 .*; kept step 2, from before it began"):
        finetune(model, "adversarial", settings, tmp_path / "out")
    kept = sorted(path.name for path in (tmp_path / "out" / "finetune").glob("step-*"))
    assert kept == ["step-00000002", "step-00000006", "step-00000008"]

    def lost(self: Any, number: int, *more: Any) -> Any:
        for path in sorted((tmp_path / "lost" / "finetune").glob("step-*"))[:-1]:
            shutil.rmtree(path)
        return collapsing(self, number, *more)

    monkeypatch.setattr(adversarial_stage.Adversarial, "advance", lost)
    with pytest.raises(AnswerIsNo, match="kept step 8, the oldest that is left, perhaps from amid it"):
        finetune(model, "adversarial", settings, tmp_path / "lost")


def test_the_heads_may_learn_first_and_more_often(model: Path, tmp_path: Path) -> None:
    made = []
    step = adversarial_stage.Adversarial._step

    def watch(self: Any, name: str, rate: float) -> None:
        made.append(name)
        step(self, name, rate)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adversarial_stage.Adversarial, "_step", watch)
        finetune(model, "adversarial", config(steps=3, head_warmup=1, head_steps=2), tmp_path / "out")
    assert made == ["heads", "heads", *["heads", "heads", "generator"] * 2]
    first, second, _ = log(tmp_path / "out")
    assert first["loss_generator"] == 0 != second["loss_generator"]
    assert abs(first["loss_discriminator"] - 2) < 1  # a mean over the two, not their sum


def test_without_an_adversarial_loss_there_is_no_discriminator(model: Path, tmp_path: Path) -> None:
    finetune(model, "adversarial", config(adversarial_weight=0.0), tmp_path / "out")
    assert "loss_discriminator" not in log(tmp_path / "out")[0]


@pytest.mark.parametrize(
    "change", [{"heads": kind} for kind in ("separate", "spatial", "temporal")] + [{"r1": "exact"}, {"r1": "finite"}]
)
def test_every_variant_of_the_discriminator_trains(change: dict[str, Any], model: Path, tmp_path: Path) -> None:
    finetune(model, "adversarial", config(steps=2, **change), tmp_path / "out")
    row = log(tmp_path / "out")[-1]
    assert math.isfinite(row["loss_discriminator"]) and ("r1" in row) is ("r1" in change)


def test_the_reconstruction_is_square_near_zero_and_absolute_far_away() -> None:
    error = torch.tensor([0.001, 10.0])
    assert pseudo_huber(error, 0.1).tolist() == pytest.approx([0.001**2 / 0.2, 9.9005], rel=1e-3)


# Wrong use ------------------------------------------------------------------------------------------------------------


def test_another_fine_tuning_is_never_overwritten(model: Path, tmp_path: Path) -> None:
    finetune(model, "joint", config(steps=2), tmp_path / "out")
    with pytest.raises(NasError, match="learning_rate is 0.001, the run's 0.01"):
        finetune(model, "joint", config(steps=2, learning_rate=1e-2), tmp_path / "out")
    with pytest.raises(NasError, match="this checkpoint's model is"):
        finetune(make_model(tmp_path / "other", seed=1), "joint", config(steps=2), tmp_path / "out")
    with pytest.raises(NasError, match="--out is the model itself"):
        finetune(model, "joint", config(), model)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(NasError, match="is not empty and holds no fine-tuning"):
        finetune(model, "joint", config(), tmp_path / "mine")


def test_what_cannot_be_fine_tuned_is_one_line(model: Path, tmp_path: Path) -> None:
    with pytest.raises(
        NasError, match="data.buckets: 4x9x8: height must be a multiple of 2 for this model, but is 9; the near"
    ):
        finetune(model, "joint", config(data={"buckets": ["4x9x8"]}), tmp_path / "out")
    with pytest.raises(NasError, match="there is no feature 2, only 0 to 1"):
        finetune(model, "adversarial", config(head_stages=(2,)), tmp_path / "out")
    with pytest.raises(NasError, match="unknown recipe 'both'.*Known recipes: adversarial, .*joint"):
        finetune(model, "both", config(), tmp_path / "out")
    with pytest.raises(NasError, match="13 tokens, the text encoder takes 12: .*shorten it"):
        finetune(model, "joint", config(data={"max_objects": 2}), tmp_path / "out")


def test_settings_say_what_is_wrong_with_them(model: Path) -> None:
    with pytest.raises(NasError, match="adversarial.head: unknown key. Did you mean 'heads'?"):
        resolve_finetune(model, None, ["adversarial.head=unified"])
    with pytest.raises(NasError, match="adversarial.text_rate: unknown key"):  # it trains no text encoder
        resolve_finetune(model, None, ["adversarial.text_rate=0.1"])
    with pytest.raises(NasError, match="adversarial.levels: .*must start at 1 and fall"):
        resolve_finetune(model, None, ["adversarial.levels=[0.9, 0.5]"])


def test_models_may_be_the_folder_one_stands_in(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    finetune(model, "joint", config(steps=1, checkpoint_every=1), Path("."))
    assert load_pipeline(tmp_path / "out").sampling["clips"] == [[4, 8, 8]]
    store(RunConfig(space="tiny", data=config().data), tmp_path / "run")
    (tmp_path / "run" / "model").mkdir()
    monkeypatch.chdir(tmp_path / "run" / "model")
    assert resolve_finetune(Path(".")).data == config().data != FinetuneConfig().data


def test_a_cache_without_stills_names_the_key_of_whoever_trains() -> None:
    with pytest.raises(NasError, match="--set train.images=0, joint.images=0 or adversarial.images=0"):
        _NoStills(Path("latents"))[0]


@pytest.mark.parametrize("stage", ["joint", "adversarial"])
def test_a_device_that_is_not_there_is_named_with_the_stage_s_key(stage: str, model: Path, tmp_path: Path) -> None:
    with pytest.raises(NasError, match=f"^{stage}.device: 'gpu' cannot be used here"):
        finetune(model, stage, config(device="gpu"), tmp_path / "out")


def test_the_data_of_the_model_before_is_the_default(model: Path, tmp_path: Path) -> None:
    finetune(model, "joint", config(steps=1), tmp_path / "out")
    assert resolve_finetune(tmp_path / "out").data == config().data
    assert resolve_finetune(model).data == FinetuneConfig().data
    assert AdversarialConfig().levels[0] == 1.0
