"""Pictures from a folder to a sheet: trained on, built, sampled, judged; and what is no picture is said in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import FlowMatchEulerDiscreteScheduler
from image_fixtures import image_space, write_pictures
from latent_fixtures import SPACE, save_image_autoencoder, save_text
from PIL import Image
from training_fixtures import short

from nas.config import DataConfig, QualityConfig
from nas.data import Dataset, open_data
from nas.data.caching import CacheConfig, build_cache
from nas.data.shapes import Shape
from nas.errors import NasError
from nas.evaluate.classifier import accuracies
from nas.evaluate.pixels import pixel_metrics
from nas.model.network import VideoUNet
from nas.model.pipeline import TextToVideoPipeline, load_pipeline, save_pipeline
from nas.model.sample import sample_video
from nas.supernet.quality import Quality
from nas.supernet.stage import train
from nas.supernet.trained import load_supernet
from search_spaces.space import Space

PROMPTS = ["picture 1", "picture 2", "picture 3"]


def pictures(folder: Path, split: str = "train") -> Dataset:
    config = DataConfig(source="folder", path=folder, cache=folder.parent / "cache", validation_clips=2)
    return open_data(config, image_space().clip("training"), split)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A supernet of pictures after three steps, and the pictures beside it."""
    root = tmp_path_factory.mktemp("images")
    write_pictures(root / "data")
    torch.set_num_threads(1)
    config = short(steps=3, warmup_steps=0, spatial_rate=1.0, images=0, image_share=0.0, paths="sandwich")
    train(image_space(), pictures(root / "data"), config, root / "supernet")
    return root


@pytest.fixture(scope="module")
def model(trained: Path) -> Path:
    space = image_space()
    supernet, text, _ = load_supernet(space, trained / "supernet")
    chosen = space.sample(np.random.default_rng(1))
    made = VideoUNet.of(space, supernet.extract(chosen), chosen)
    save_pipeline(
        TextToVideoPipeline(made, text.model, text.tokenizer, FlowMatchEulerDiscreteScheduler()), trained / "model"
    )
    return trained / "model"


def test_pictures_train_and_score(trained: Path) -> None:
    space = image_space()
    supernet, text, step = load_supernet(space, trained / "supernet")
    assert step == 3
    quality = Quality(supernet, text, pictures(trained / "data", "validation"), QualityConfig(clips=2))
    score = quality.score(space.baseline())
    assert np.isfinite(score.loss)
    other = space.sample(np.random.default_rng(0))
    assert score.loss != quality.score(other).loss


def test_pictures_are_sampled_onto_one_sheet(model: Path, tmp_path: Path) -> None:
    told = sample_video(model, PROMPTS, tmp_path / "sheet.png", steps=2, seed=3)
    assert told["picture"] == str(tmp_path / "sheet.png") and told["frames"] == 1
    with Image.open(told["picture"]) as sheet:
        assert sheet.size == (3 * 256 + 2 * 4, 256)
    assert list(tmp_path.iterdir()) == [tmp_path / "sheet.png"]
    pipeline = load_pipeline(model)
    images = pipeline(PROMPTS[:2], num_inference_steps=2).images
    assert [image.size for image in images] == [(8, 8)] * 2
    with pytest.raises(NasError, match=r"must end in .png, but is"):
        sample_video(model, PROMPTS, tmp_path / "sheet.mp4", steps=2)


def test_a_picture_that_does_not_decode_is_named_and_left_out(tmp_path: Path) -> None:
    write_pictures(tmp_path / "data")
    (tmp_path / "data" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing of the kind")
    data = pictures(tmp_path / "data")
    (skipped,) = data.skipped
    assert str(skipped).startswith("2.png: ") and "\n" not in str(skipped)


def test_pictures_are_cached_as_clips_and_some_held_out(tmp_path: Path) -> None:
    write_pictures(tmp_path / "data")
    definition = {**SPACE, "autoencoder": {"time": 1, "space": 8}, "text": {"tokens": 8}}
    definition["clips"] = {"deployment": {"frames": 1, "height": 32, "width": 32, "fps": 1}}
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(definition))
    models = {"autoencoder": save_image_autoencoder(tmp_path / "vae"), "text": save_text(tmp_path / "text")}
    space, config = Space.load(tmp_path / "space.yaml"), DataConfig(source="folder", path=tmp_path / "data")
    told = build_cache(config, space, CacheConfig(**models), tmp_path / "cache")
    assert told["clips"] == 6 and told["stills"] == 0
    cached = DataConfig(source="cache", path=tmp_path / "cache", validation_clips=8)
    shapes = {
        split: open_data(cached, space.clip("training"), split)[0]["video"].shape for split in ("train", "validation")
    }
    assert set(shapes.values()) == {(1, 4, 4, 4)}


def test_pictures_have_contrast_and_edges_in_place_of_motion() -> None:
    plain = np.full((2, 1, 8, 8, 3), 0.5)
    assert pixel_metrics(plain) == {"contrast": 0.0, "edges": 0.0}
    striped = plain.copy()
    striped[:, :, :, ::2] = 1.0
    found = pixel_metrics(striped)
    assert found["contrast"] == pytest.approx(0.25) and found["edges"] == pytest.approx(0.25)
    with pytest.raises(NasError, match="flicker is measured over three frames"):
        pixel_metrics(np.zeros((2, 2, 8, 8, 3)))


def test_a_picture_is_not_asked_for_its_direction() -> None:
    shown = [frozenset({Shape("circle", "red", "up")})]
    told = accuracies(shown, ["a red circle moving left"], still=True)
    assert told == {"accuracy": 1.0, "colour": 1.0, "kind": 1.0}
    assert accuracies(shown, ["a red circle moving left"])["accuracy"] == 0.0
