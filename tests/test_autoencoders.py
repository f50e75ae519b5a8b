"""Every autoencoder of diffusers that is known here: factors, statistics, the first frame, tiles, a cache, sampling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from autoencoder_fixtures import SMALL, small_autoencoder
from latent_fixtures import SPACE, save_text, video_folder

from nas.config import DataConfig
from nas.data import open_data
from nas.data.caching import CacheConfig, build_cache
from nas.errors import NasError
from nas.model.build import build_anew
from nas.model.pipeline import load_pipeline
from nas.model.sample import sample_video
from nas.pretrained.autoencoder import KINDS, VideoAutoencoder
from search_spaces.errors import SpaceError
from search_spaces.space import Space


def clip_of(found: VideoAutoencoder, latents: int, side: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    frames = found.factors.pixel_frames(latents)
    return 2 * torch.rand(frames, 3, side * found.space, side * found.space, generator=generator) - 1


def test_every_known_class_is_tested() -> None:
    assert set(SMALL) == set(KINDS) - {"SearchedAutoencoder"}  # ours is in tests/test_distil_decoder.py


@pytest.mark.parametrize("kind", SMALL)
def test_a_clip_and_an_image_go_in_and_come_out_with_the_stated_factors(kind: str) -> None:
    found = VideoAutoencoder(small_autoencoder(kind), kind)
    assert (found.time, found.space, found.channels) == SMALL[kind][1:]
    for latents in (2, 3):
        video = clip_of(found, latents)
        encoded = found.encode(video)
        assert encoded.shape == (latents, found.channels, 4, 4) and bool(torch.isfinite(encoded).all())
        assert found.decode(encoded).shape == video.shape
    assert found.encode(video[:1]).shape == (1, found.channels, 4, 4)
    with pytest.raises(NasError, match="sides of"):
        found.encode(video[..., :-1])
    if found.time > 1:
        with pytest.raises(NasError, match="frames must be (1 . )?a multiple of"):
            found.encode(video[:-1])


@pytest.mark.parametrize("kind", SMALL)
def test_latents_are_scaled_as_the_class_s_own_statistics_say(kind: str) -> None:
    model = small_autoencoder(kind)
    config = dict(model.config)
    found = VideoAutoencoder(model, kind)
    video = clip_of(found, 2)
    with torch.no_grad():
        raw = found._how.encode(model, video.transpose(0, 1)).transpose(0, 1)
    mean = torch.as_tensor(config.get("latents_mean") or 0.0).reshape(-1, 1, 1)
    std = torch.as_tensor(config.get("latents_std") or 1.0).reshape(-1, 1, 1)
    scale, shift = config.get("scaling_factor") or 1.0, config.get("shift_factor") or 0.0
    assert torch.allclose(found.encode(video), ((raw - mean) / std - shift) * scale, atol=1e-5)


def test_statistics_kept_as_tensors_are_read_too() -> None:
    model = small_autoencoder("AutoencoderKLLTXVideo")
    model.latents_mean += 2.0
    model.latents_std *= 4.0
    found = VideoAutoencoder(model, "ltx")
    assert found.offset.flatten().tolist() == [2.0] * 8 and found.gain.flatten().tolist() == [0.25] * 8
    with pytest.raises(NasError, match="latents_mean has 4 values for 8 channels"):
        model.register_buffer("latents_mean", torch.zeros(4))
        VideoAutoencoder(model, "ltx")


@pytest.mark.parametrize("kind", SMALL)
def test_tiles_cover_all_of_a_clip(kind: str) -> None:
    """Windows meet in ramps; far from the seams of a network without norms over the whole, nothing changes."""
    found = VideoAutoencoder(small_autoencoder(kind), kind)
    video = clip_of(found, 2, side=8)
    found.tile = 1024
    whole = found.encode(video)
    found.tile = 4 * found.space
    encoded = found.encode(video)
    assert encoded.shape == whole.shape and bool(torch.isfinite(encoded).all())
    assert not torch.equal(encoded, whole), "it went in one piece"
    assert bool((encoded.flatten(1).std(1) > 0).all())
    decoded = found.decode(encoded)
    assert decoded.shape == video.shape and bool(torch.isfinite(decoded).all())
    assert bool((decoded.std((1, 2, 3)) > 0).all()), "a frame that no window reached"


@pytest.mark.parametrize("kind", [kind for kind in SMALL if KINDS[kind].causal])
def test_the_first_latent_of_a_causal_one_is_the_first_frame_alone(kind: str) -> None:
    found = VideoAutoencoder(small_autoencoder(kind), kind)
    video = clip_of(found, 3)
    other = torch.cat([video[:1], -video[1:]])
    # Some normalise over time, so what comes later shifts the first latent too, but less than the others; Wan does not.
    change = (found.encode(other) - found.encode(video)).abs().amax((1, 2, 3))
    assert change[0] < (1e-5 if kind == "AutoencoderKLWan" else 0.8) * change[1:].max()


def save_space(folder: Path, found: VideoAutoencoder) -> Path:
    """A space laid out for the autoencoder."""
    frames, side = found.factors.pixel_frames(2), 4 * found.space
    config = {**SPACE["backbone"]["config"], "in_channels": found.channels, "out_channels": found.channels}  # type: ignore[index]
    spec: dict[str, Any] = {
        **SPACE,
        "backbone": {**SPACE["backbone"], "config": config},  # type: ignore[dict-item]
        "autoencoder": {"time": found.time, "space": found.space, **({"causal": True} if found.causal else {})},
        "clips": {"deployment": {"frames": frames, "height": side, "width": side, "fps": 8}},
    }
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


@pytest.mark.parametrize("kind", SMALL)
def test_a_cache_and_a_sampled_video_are_made_with_every_class(kind: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    source, text = tmp_path / "vae", save_text(tmp_path / "text")
    small_autoencoder(kind).save_pretrained(source)
    found = VideoAutoencoder.load(str(source))
    path = save_space(tmp_path, found)
    space = Space.load(str(path))
    data = DataConfig(source="folder", path=video_folder(tmp_path / "videos", count=1, frames=30))
    build_cache(data, space, CacheConfig(str(source), text), tmp_path / "cache")
    items = open_data(DataConfig(source="cache", path=tmp_path / "cache"), space.clip("training"), "train")
    assert items[0]["video"].shape == space.latent_shape("training") == (2, found.channels, 4, 4)
    arrangement = space.sample(np.random.default_rng(0))
    arrangement.save(tmp_path / "arrangement.yaml")
    build_anew(path, tmp_path / "arrangement.yaml", tmp_path / "model", text=text, autoencoder=str(source))
    assert load_pipeline(tmp_path / "model").vae is not None
    told = sample_video(tmp_path / "model", ["a ball"], tmp_path / "x.mp4", steps=1)
    assert told["frames"] == space.clip("training").frames == found.factors.pixel_frames(2)


def test_a_space_for_another_kind_of_first_frame_is_refused(tmp_path: Path) -> None:
    found = VideoAutoencoder(small_autoencoder("AutoencoderKLWan"), "wan")
    path = save_space(tmp_path, found)
    found.check_fits(Space.load(str(path)))
    told = yaml.safe_load(path.read_text())
    for change, said in (
        ({"causal": False}, "frames must be a multiple of 4"),
        ({"causal": "yes"}, "causal must be true or false"),
        ({"decoder": "allegro"}, "leave one of the two out"),
    ):
        path.write_text(yaml.safe_dump({**told, "autoencoder": {**told["autoencoder"], **change}}))
        with pytest.raises(SpaceError, match=said):
            Space.load(str(path))
    told["clips"]["deployment"]["frames"] = 8
    path.write_text(yaml.safe_dump(told))
    with pytest.raises(SpaceError, match="must be 1 . a multiple of 4 .autoencoder.time, causal., but is 8; choose 5"):
        Space.load(str(path))
    told["autoencoder"].pop("causal")
    path.write_text(yaml.safe_dump(told))
    space = Space.load(str(path))
    with pytest.raises(NasError, match="codes the first frame alone, but space small_latents says otherwise"):
        found.check_fits(space)
    assert json.loads(json.dumps(space.to_json()["autoencoder"])) == {"time": 4, "space": 8}
