"""A decoder distilled for an encoder that stays: its folder, its halves, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from decoder_fixtures import SPACE, save_space
from latent_fixtures import save_allegro, save_image_autoencoder

from nas.decoder.config import DistilSettings
from nas.decoder.distil import distil_decoder
from nas.decoder.export import halves
from nas.decoder.folder import load_autoencoder
from nas.errors import NasError
from nas.pretrained.autoencoder import VideoAutoencoder
from nas.pretrained.searched import SearchedAutoencoder


def settings(**distil: Any) -> DistilSettings:
    few = {"steps": 4, "clips": 2, "checkpoint_every": 2, "validate_every": 0, **distil}
    return DistilSettings.model_validate({"data": {"source": "moving_shapes"}, "distil": few})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """The given autoencoder, the space, and a distilled folder."""
    folder = tmp_path_factory.mktemp("distil")
    given, space = save_allegro(folder / "allegro"), save_space(folder)
    told = distil_decoder(given, space, folder / "M", settings())
    assert told["steps"] == 4 and told["main"]
    return given, space, folder / "M"


@torch.no_grad()
def test_encode_is_the_old_one_and_decode_the_new_one(made: tuple[str, Path, Path]) -> None:
    given, _, folder = made
    old, new = VideoAutoencoder.load(given), VideoAutoencoder.load(str(folder))
    assert new.kind == "SearchedAutoencoder" and new.digest == old.digest
    video = torch.rand(8, 3, 16, 16) * 2 - 1
    latents = old.encode(video)
    assert torch.allclose(new.encode(video), latents, atol=1e-5)
    frames = new.decode(latents)
    assert frames.shape == video.shape and not torch.allclose(frames, old.decode(latents), atol=1e-2)


@torch.no_grad()
def test_diffusers_loads_it_and_halves_decode_what_the_whole_decodes(made: tuple[str, Path, Path]) -> None:
    """Frame by frame, and as the two packages that an app would run."""
    model: Any = SearchedAutoencoder.from_pretrained(str(made[2])).eval()
    z = torch.randn(1, 4, 2, 2, 2)
    decoded = model.decode(z).sample
    whole = model.network.run({"x": model.scaled(z)[0].transpose(0, 1), "frames": 2})
    assert torch.allclose(decoded[0].transpose(0, 1), whole, atol=1e-5)
    two = halves(model, (8, 16, 16))
    held = two["temporal"].module(z[0].transpose(0, 1))
    each = torch.cat([two["spatial"].module(frame[None]) for frame in held])
    assert torch.allclose(each, whole, atol=1e-5)


def test_stopped_and_run_again_it_ends_with_the_same_weights(made: tuple[str, Path, Path], tmp_path: Path) -> None:
    given, space, folder = made

    class Stop(Exception):
        pass

    def stop(step: int, row: Any) -> None:
        if step == 3:
            raise Stop

    with pytest.raises(Stop):
        distil_decoder(given, space, tmp_path / "M", settings(), progress=stop)
    assert not (tmp_path / "M" / "config.json").exists()
    distil_decoder(given, space, tmp_path / "M", settings())
    one, other = (load_autoencoder(path).network.state_dict() for path in (folder, tmp_path / "M"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_half_trained_alone_leaves_the_other_as_it_was(made: tuple[str, Path, Path], tmp_path: Path) -> None:
    """From latents drawn at random, where there are no videos to be had."""
    given, space, folder = made
    how = settings(half="spatial", latents="synthetic", steps=1)
    distil_decoder(given, space, tmp_path / "M", how, start=folder)
    before, after = (load_autoencoder(path).network.state_dict() for path in (folder, tmp_path / "M"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    late = {"temporal.stage_3", "temporal.stage_4", "temporal.stage_5", "unet.spaces", "unet.leave"}
    assert changed and all(name.startswith(tuple(late)) for name in changed)


def test_what_does_not_fit_is_refused_in_one_line(made: tuple[str, Path, Path], tmp_path: Path) -> None:
    given, space, folder = made
    images = save_image_autoencoder(tmp_path / "images")
    other = save_allegro(tmp_path / "other", seed=1)
    cases = [
        ((images, space), {}, "divides time by 1 and space by 8 with 4 channels, but space small_decoder wants 4, 8"),
        ((str(folder), space), {}, "its decoder is a searched one already"),
        ((other, space), {"start": folder}, "was distilled for another encoder"),
    ]
    for (source, where), more, words in cases:
        with pytest.raises(NasError, match=words) as caught:
            distil_decoder(source, where, tmp_path / "M", settings(), **more)
        assert "\n" not in str(caught.value)
    (tmp_path / "wide").mkdir()
    held = save_space(tmp_path / "wide", SPACE.replace("frames: 8, height: 16", "frames: 6, height: 16"))
    with pytest.raises(ValueError, match="clips.training.frames must be a multiple of 4"):
        distil_decoder(given, held, tmp_path / "M", settings())
