"""The images of a step are of other clips than its videos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from latent_fixtures import save_allegro, save_image_autoencoder, save_text, small_space, video_folder

from nas.config import DataConfig
from nas.data import open_data
from nas.data.caching import CacheConfig, build_cache
from nas.data.clip import images_of
from nas.data.videos import Shape
from nas.training.loader import Loader

STEPS, COUNT = 6, 4


def own_frames(data: Any, seed: int) -> int:
    """How many images of some steps are frames of the same step's clips."""
    videos, images = Loader(data, COUNT, range), Loader(images_of(data, seed), COUNT, range)
    same = 0
    for step in range(STEPS):
        clips = videos(step).video.flatten(0, 1)
        same += sum(any(torch.equal(image[0], frame) for frame in clips) for image in images(step).video)
    return same


@pytest.mark.parametrize("source", ["folder", "moving_shapes"])
def test_of_videos_and_drawn_shapes(tmp_path: Path, source: str) -> None:
    videos = video_folder(tmp_path / "videos", count=3)
    config = DataConfig.model_validate({"source": source, "path": videos, "cache": tmp_path / "frames"})
    data = open_data(config, Shape(4, 16, 16, 8.0))
    assert own_frames(data, 0) == own_frames(data, 1) == 0


@pytest.mark.parametrize("time", [1, 4])
def test_of_a_cache(tmp_path: Path, time: int) -> None:
    """Of latents that divide time by 4 there are stills; where time is left alone, a frame is one."""
    videos = video_folder(tmp_path / "videos", count=3)
    models = save_image_autoencoder(tmp_path / "vae") if time == 1 else save_allegro(tmp_path / "vae")
    config = CacheConfig(models, save_text(tmp_path / "text"), stills=0 if time == 1 else 1)
    space = small_space(tmp_path, time)
    build_cache(DataConfig(source="folder", path=videos), space, config, tmp_path / "cache")
    data = open_data(DataConfig(source="cache", path=tmp_path / "cache"), space.clip("training"))
    if time == 1:
        assert own_frames(data, 0) == 0
        return
    stills = images_of(data, 0)
    parts: Any = (data.parts[0], stills.parts[0])  # type: ignore[attr-defined]
    for step in range(STEPS):
        turns = range(step * COUNT, (step + 1) * COUNT)
        clips, images = ([_number(part, turn) for turn in turns] for part in parts)
        assert not set(clips) & {image - 1 for image in images}  # a still follows its clip


def _number(part: Any, index: int) -> int:
    """The place of an entry in the order in which it was encoded."""
    video = part[index]["video"]
    entries = part.cache.entries
    return next(i for i, e in enumerate(entries) if torch.equal(part.cache.tensor(e.shard, e.name), video))
