"""Evaluation: measures that move the right way, a classifier that is checked, and results that are kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from latent_fixtures import save_allegro, save_text, small_space, video_folder
from tuning_fixtures import DATA, make_model, mini

from nas.config import DataConfig, RunConfig, store
from nas.data import open_data
from nas.data.caching import CacheConfig, build_cache
from nas.data.shapes import Cast, MovingShapes, Shape
from nas.errors import NasError
from nas.evaluate import EvaluateConfig, evaluate_model, keep, render, resolve_evaluate
from nas.evaluate.classifier import ShapeClassifier, accuracies, chance, prompts, trained_classifier
from nas.evaluate.frechet import frechet_distance, onnx_features
from nas.evaluate.pixels import pixel_metrics
from nas.model.build import build_anew
from nas.model.pipeline import load_pipeline
from search_spaces.space import Clip

EASY = DataConfig(
    source="moving_shapes",
    max_objects=2,
    kinds=("square", "cross"),
    colours=("red", "blue"),
    directions=("left", "right"),
    radius=(0.24, 0.3),
    speed=(0.5, 0.8),
)
CLIP = Clip(4, 12, 12, 4)


def clips(count: int, config: DataConfig = EASY) -> tuple[np.ndarray, list[str]]:
    data = MovingShapes(config, CLIP, "train", seed=11)
    items = [data[i] for i in range(count)]
    return np.stack([(item["video"].permute(0, 2, 3, 1).numpy() + 1) / 2 for item in items]), [
        i["caption"] for i in items
    ]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("evaluate") / "model")


# Pixels -----------------------------------------------------------------------------------------------------------


def test_a_still_video_has_no_motion_and_no_flicker() -> None:
    still = np.random.default_rng(0).random((2, 1, 6, 6, 3)).repeat(4, axis=1)
    found = pixel_metrics(still)
    assert found["flicker"] == found["motion"] == 0 and found["consistency"] == pytest.approx(1)
    assert pixel_metrics(np.zeros((1, 4, 6, 6, 3)))["consistency"] == 1  # no contrast, but equal frames


def test_flicker_is_brightness_that_comes_and_goes_not_a_steady_change() -> None:
    ramp = np.linspace(0, 1, 5)[None, :, None, None, None] * np.ones((1, 5, 4, 4, 3))
    blink = np.array([0, 0.25, 0, 0.25, 0])[None, :, None, None, None] * np.ones((1, 5, 4, 4, 3))
    assert pixel_metrics(ramp)["motion"] == pytest.approx(pixel_metrics(blink)["motion"]) == pytest.approx(0.25)
    assert pixel_metrics(ramp)["flicker"] == pytest.approx(0, abs=1e-12)
    assert pixel_metrics(blink)["flicker"] == pytest.approx(0.5)


def test_faster_shapes_have_more_motion_and_less_consistency() -> None:
    slow, fast = (
        pixel_metrics(clips(20, EASY.model_copy(update={"speed": speed}))[0]) for speed in ((0.2, 0.2), (0.8, 0.8))
    )
    assert fast["motion"] > 1.5 * slow["motion"] and fast["consistency"] < slow["consistency"]


def test_flicker_needs_three_frames() -> None:
    with pytest.raises(NasError, match="three frames or more, but the videos have 2"):
        pixel_metrics(np.zeros((1, 2, 4, 4, 3)))


# Frechet distance ----------------------------------------------------------------------------------------------------


def test_frechet_distance_of_two_gaussians_is_the_formula() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=(200_000, 2)) @ np.diag([1.0, 2.0])
    b = rng.normal(size=(200_000, 2)) @ np.diag([3.0, 2.0]) + [1.0, -2.0]
    assert frechet_distance(a, b) == pytest.approx(5 + (3 - 1) ** 2, rel=0.02)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))


def test_frechet_distance_survives_fewer_clips_than_features() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 40)), rng.normal(size=(6, 40))
    assert 0 < frechet_distance(a, b) < 1000
    with pytest.raises(NasError, match="two or more equally wide"):
        frechet_distance(a[:1], b)


def test_features_come_from_an_onnx_file(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    def network(name: str, shape: list[Any]) -> Path:
        graph = helper.make_graph(
            [helper.make_node("ReduceMean", ["x"], ["y"], axes=[2, 3, 4], keepdims=0)],
            "mean",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape[:2])],
        )
        path = tmp_path / name
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(path))
        return path

    videos = np.random.default_rng(0).random((3, 4, 6, 5, 3))
    assert onnx_features(network("good.onnx", ["n", 3, "t", "h", "w"]))(videos) == pytest.approx(videos.mean((1, 2, 3)))
    with pytest.raises(NasError, match="refuses clips of"):
        onnx_features(network("fixed.onnx", ["n", 3, 9, 9, 9]))(videos)
    (tmp_path / "not.onnx").write_bytes(b"no network")
    with pytest.raises(NasError, match="is no ONNX network"):
        onnx_features(tmp_path / "not.onnx")
    with pytest.raises(NasError, match="no such file"):
        onnx_features(tmp_path / "none.onnx")


# The classifier -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> tuple[ShapeClassifier, dict[str, float], Path]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("classifiers")
    classifier, held_out = trained_classifier(EASY, CLIP, folder, steps=120)
    return classifier, held_out, folder


def test_the_classifier_reads_real_clips_of_one_and_two_objects(judge: Any) -> None:
    classifier, held_out, _ = judge
    assert held_out["accuracy"] > 0.75 and held_out["accuracy_1"] > 0.9 and held_out["colour"] > 0.98
    videos, captions = clips(100)
    found = classifier.read(torch.from_numpy(videos.transpose(0, 1, 4, 2, 3)).float() * 2 - 1)
    assert accuracies(found, captions)["accuracy"] == pytest.approx(held_out["accuracy"], abs=0.15)
    assert accuracies(found, captions[1:] + captions[:1])["accuracy"] < 0.3  # other clips' captions


def test_the_classifier_is_kept_and_made_again_when_damaged(judge: Any) -> None:
    classifier, held_out, folder = judge
    again, same = trained_classifier(EASY, CLIP, folder, steps=120, progress=lambda *told: pytest.fail("trained again"))
    assert same == held_out
    assert all(torch.equal(p, q) for p, q in zip(classifier.parameters(), again.parameters(), strict=True))
    (kept,) = folder.glob("shapes-*/step-*")
    (kept / "weights.safetensors").write_bytes(b"cut")
    steps: list[int] = []
    trained_classifier(EASY, CLIP, folder, steps=120, progress=lambda done, *more: steps.append(done))
    assert steps == list(range(1, 121))


def test_a_clip_counts_only_when_it_shows_exactly_what_was_asked() -> None:
    red, blue = Shape("cross", "red", "left"), Shape("square", "blue", "right")
    one, two = "a red cross moving left", "a red cross moving left and a blue square moving right"
    found = [frozenset({red}), frozenset({red, blue}), frozenset({red}), frozenset({Shape("cross", "red", "right")})]
    told = accuracies(found, [one, one, two, one])
    assert told["accuracy"] == 0.25  # one object too many, one missing, one the wrong way
    assert told == {"accuracy": 0.25, "colour": 4 / 5, "kind": 4 / 5, "direction": 3 / 5}


def test_chance_is_the_share_of_scenes_that_would_be_right() -> None:
    cast = Cast.of(EASY)
    assert chance(cast, 1) == 1 / 8
    assert chance(cast, 2) == 1 / 16
    assert len(set(prompts(cast, 1, 100))) == 8
    assert len(set(prompts(cast, 2, 100))) == 32  # either colour may be named first
    assert prompts(cast, 1, 8) != prompts(cast, 1, 8, seed=1)
    with pytest.raises(NasError, match="1 or 2 objects"):
        prompts(cast, 3, 4)


# The whole ------------------------------------------------------------------------------------------------------------


def test_a_model_is_evaluated_on_moving_shapes_and_the_result_is_kept(model: Path, tmp_path: Path) -> None:
    config = EvaluateConfig(data=DATA, clips=8, steps=2, classifier_steps=2, classifiers=tmp_path / "classifiers")
    told = evaluate_model(model, config)
    assert json.loads((model / "metrics.json").read_text())["evaluation"] == json.loads(json.dumps(told))
    assert told["model"] == str(model) and told["weights"] == load_pipeline(model).fingerprint()
    assert told["steps"] == 2 and told["guidance"] == 1.0  # what was sampled with, not what was left open
    assert told["prompts"]["1"]["chance"] == 1 / 80 and told["frechet"] > 0
    assert "classifier" in told["features"] and told["pixels_real"]["motion"] > 0
    assert evaluate_model(model, config)["pixels"] == told["pixels"]  # the same noise
    text = render(told)
    assert "guessing 1.25%" in text and "right on" in text and "Frechet distance" in text


def test_without_features_there_is_a_sentence_instead_of_a_distance(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nas.evaluate as evaluate

    found = evaluate.measure(np.random.default_rng(0).random((2, 4, 8, 8, 3)), np.zeros((2, 4, 8, 8, 3)))
    assert "frechet" not in found
    told = {**found, "frechet_missing": "no features: give an ONNX network with --features", "seconds": 0.1}
    assert "give an ONNX network with --features" in render(told)


def test_real_clips_of_a_cache_are_measured_in_pixels(tmp_path: Path) -> None:
    space = small_space(tmp_path)
    vae, text = save_allegro(tmp_path / "vae"), save_text(tmp_path / "text")
    videos = DataConfig(source="folder", path=video_folder(tmp_path / "videos"))
    build_cache(videos, space, CacheConfig(vae, text), tmp_path / "cache")
    space.empty().save(tmp_path / "none.yaml")
    build_anew(
        str(tmp_path / "small_latents.yaml"), tmp_path / "none.yaml", tmp_path / "model", text=text, autoencoder=vae
    )
    data = DataConfig(source="cache", path=tmp_path / "cache")
    told = evaluate_model(tmp_path / "model", EvaluateConfig(data=data, clips=3, steps=1, batch=2))
    cached = open_data(data.model_copy(update={"validation_clips": 3}), space.clip("training"), "validation")
    latents = torch.stack([cached[i]["video"] for i in range(told["real_clips"])]).transpose(1, 2)
    with torch.no_grad():
        real = load_pipeline(tmp_path / "model").decode(latents).numpy()
    assert real.shape[1:] == (8, 32, 32, 3)
    assert told["pixels_real"] == pytest.approx(pixel_metrics(real), rel=1e-3)


def test_too_few_frames_are_refused_before_anything_is_sampled(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nas.evaluate as evaluate

    monkeypatch.setattr(evaluate, "real_clips", lambda *arguments: np.zeros((2, 2, 8, 8, 3)))
    monkeypatch.setattr(evaluate, "sample_many", lambda *arguments: pytest.fail("sampled"))
    with pytest.raises(NasError, match="three frames or more, but the videos have 2"):
        evaluate_model(model, EvaluateConfig(data=DATA, clips=2))


def test_a_run_keeps_the_result_in_its_own_metrics(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "config.yaml").write_text("space: tiny\n")
    (tmp_path / "metrics.json").write_text('{"search": 1}')

    def kept(**told: Any) -> Any:
        keep(tmp_path / "model", told)
        found = json.loads((tmp_path / "metrics.json").read_text())
        assert found.pop("search") == 1
        return found["evaluation"]

    assert kept(weights="one", a=1) == {"weights": "one", "a": 1}
    assert kept(weights="one", vbench=2) == {"weights": "one", "a": 1, "vbench": 2}
    assert kept(weights="one", b=3) == {"weights": "one", "vbench": 2, "b": 3}  # nothing stale of the first evaluation
    assert kept(weights="two", b=4) == {"weights": "two", "b": 4}  # scores of another model
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(NasError, match="damaged"):
        keep(tmp_path / "model", {})


def test_a_model_may_be_the_folder_one_stands_in(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store(RunConfig(space="tiny", data=EASY), tmp_path)
    shutil.copytree(model, tmp_path / "model")
    monkeypatch.chdir(tmp_path / "model")
    assert resolve_evaluate(Path(".")).data == EASY
    assert keep(Path("."), {"weights": "one"}) == tmp_path / "metrics.json"


def test_unknown_settings_are_named(model: Path) -> None:
    with pytest.raises(NasError, match="clip: unknown key. Did you mean 'clips'?"):
        resolve_evaluate(model, None, ["clip=3"])
    assert mini().name == "mini"


def test_the_report_shows_what_was_measured_and_what_to_read_it_beside(model: Path, tmp_path: Path) -> None:
    from nas.report import write_report

    config = EvaluateConfig(data=DATA, clips=4, steps=1, classifier_steps=1, classifiers=tmp_path / "classifiers")
    told = evaluate_model(model, config)
    run = tmp_path / "run"
    run.mkdir()
    scores = {"dimensions": {"dynamic_degree": 0.25}, "quality": None, "semantic": None, "total": None}
    (run / "metrics.json").write_text(json.dumps({"space": "mini", "evaluation": {**told, "vbench": scores}}))
    page = Path(write_report(run)).read_text()
    assert "How good its videos are" in page and "prompts of 1 object shown as asked" in page
    assert "1.25% by guessing" in page and f"{told['frechet']:.3f}" in page
    assert "dynamic degree" in page and "0.2500" in page
    (run / "metrics.json").write_text(json.dumps({"space": "mini", "evaluation": {"pixels": 3, "prompts": [1]}}))
    assert "How good its videos are" not in Path(write_report(run)).read_text()
