"""From a cache to a model folder: what was trained in latents, or on noise, is built, sampled and seen as pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from latent_fixtures import save_allegro, save_text, small_space, video_folder
from training_fixtures import short

from nas.build import build_model
from nas.cache import CacheConfig, build_cache
from nas.config import DataConfig, QualityConfig, RunConfig, SamplesConfig, store
from nas.data import open_data
from nas.quality import Quality
from nas.sample import load_pipeline
from nas.showcase import write_samples
from nas.trainer import load_supernet, train


@pytest.mark.parametrize("prediction", ["velocity", "epsilon"])
def test_a_supernet_trained_on_a_cache_is_scored_built_and_sampled(prediction: Any, tmp_path: Path) -> None:
    space = small_space(tmp_path)
    models = CacheConfig(save_allegro(tmp_path / "allegro"), save_text(tmp_path / "clip"))
    build_cache(DataConfig(source="folder", path=video_folder(tmp_path / "videos")), space, models, tmp_path / "cache")
    config = RunConfig(
        space=str(tmp_path / "small_latents.yaml"),
        data=DataConfig(source="cache", path=tmp_path / "cache"),
        train=short(steps=4, prediction=prediction),
        samples=SamplesConfig(clips=2, steps=3),
    )
    run = tmp_path / "run"
    store(config, run)
    clip = space.clip("training")
    train(space, open_data(config.data, clip), config.train, run / "supernet")
    supernet, text, _ = load_supernet(space, run / "supernet")
    quality = Quality(supernet, text, open_data(config.data, clip, "validation"), QualityConfig(clips=3))
    arrangement = space.sample(np.random.default_rng(1))
    assert np.isfinite(quality.score(arrangement).loss)
    arrangement.save(run / "arrangement.yaml")
    build_model(run, run / "model")
    pipeline = load_pipeline(run / "model")
    frames = pipeline("a red ball falls", num_inference_steps=2, generator=torch.Generator().manual_seed(0)).frames
    assert frames.shape == (1, 8, 32, 32, 3)
    latents, told, context = torch.randn(1, 4, 2, 4, 4), torch.tensor([300.0]), text(["a red ball falls"])
    with torch.no_grad():
        built = pipeline.unet(latents, told, context).sample[0].transpose(0, 1)
        shared = supernet(latents[0].transpose(0, 1), told, context, 2, arrangement)
    assert torch.allclose(built, shared, atol=1e-4)
    write_samples(config, run)
    shown = np.load(run / "samples" / "samples.npz")
    assert all(shown[name].shape == (2, 8, 32, 32, 3) for name in ("real", "noised", "one_step", "sampled"))
