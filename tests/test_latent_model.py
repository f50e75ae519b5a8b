"""From a cache to a model folder: what was trained in latents, or on noise, is built, sampled and seen as pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from decoder_fixtures import save_space
from latent_fixtures import save_allegro, save_text, small_space, video_folder
from training_fixtures import short

from nas.cli import main
from nas.config import DataConfig, QualityConfig, RunConfig, SamplesConfig, store
from nas.data import open_data
from nas.data.caching import CacheConfig, build_cache
from nas.decoder.config import DistilSettings
from nas.decoder.distil import distil_decoder
from nas.errors import NasError
from nas.model.build import build_anew, build_model
from nas.model.network import VideoUNet
from nas.model.pipeline import load_pipeline
from nas.model.showcase import write_samples
from nas.supernet.quality import Quality
from nas.supernet.stage import train
from nas.supernet.trained import load_supernet
from search_spaces.families import build_backbone


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
    if prediction == "velocity":
        _sample_through_a_distilled_decoder(run, models.autoencoder, tmp_path)


def _sample_through_a_distilled_decoder(run: Path, autoencoder: str, folder: Path) -> None:
    """It stands in the model folder in place of the one it was distilled from; another encoder's is refused."""
    few = {"steps": 1, "clips": 1, "checkpoint_every": 1, "validate_every": 0}
    settings = DistilSettings.model_validate({"data": {"source": "moving_shapes"}, "distil": few})
    decoder = folder / "decoder"
    distil_decoder(autoencoder, save_space(folder), decoder, settings)
    build_model(run, folder / "with", str(decoder))
    pipeline = load_pipeline(folder / "with")
    assert type(pipeline.vae).__name__ == "SearchedAutoencoder"
    frames = pipeline("a red ball falls", num_inference_steps=1, generator=torch.Generator().manual_seed(0)).frames
    assert frames.shape == (1, 8, 32, 32, 3)
    with pytest.raises(NasError, match="decodes latents of encoder .*, but the run was trained on those of"):
        build_model(run, folder / "other", save_allegro(folder / "stranger", seed=1))


def test_a_model_is_built_without_a_run_over_an_image_unet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Temporal layers start as the identity, so a video's frames are what the image UNet makes of each."""
    space = small_space(tmp_path)
    arrangement = space.arrange({"down.0.0": ["SelfAttention1D(heads=2)"], "up.1.1": ["Conv1D(kernel_size=3)"]})
    arrangement.save(tmp_path / "arrangement.yaml")
    backbone: Any = build_backbone(space.backbone)
    backbone.save_pretrained(str(tmp_path / "unet"))
    words = [
        "build",
        "--space",
        str(tmp_path / "small_latents.yaml"),
        "--arrangement",
        str(tmp_path / "arrangement.yaml"),
    ]
    words += ["--text", save_text(tmp_path / "text"), "--autoencoder", save_allegro(tmp_path / "vae")]
    words += ["--init", str(tmp_path / "unet"), "--out", str(tmp_path / "model")]
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 0 and "100%" in capsys.readouterr().out
    pipeline = load_pipeline(tmp_path / "model")
    assert pipeline.unet.arrangement == arrangement and pipeline.vae is not None
    video, context = torch.randn(1, 4, 2, 4, 4), torch.randn(1, 8, 16)
    with torch.no_grad():
        found = pipeline.unet(video, 300.0, context).sample
        frames = backbone.eval()(video[0].transpose(0, 1), torch.tensor(300.0), context.expand(2, -1, -1)).sample
    assert torch.allclose(found[0].transpose(0, 1), frames, atol=1e-5)
    output = pipeline("a red ball", num_inference_steps=2, generator=torch.Generator().manual_seed(0))
    assert output.frames.shape == (1, 8, 32, 32, 3)

    def refused(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stop:
            main(["build", *arguments])
        assert stop.value.code == 2
        return capsys.readouterr().err

    told = [*words[:-1], str(tmp_path / "noise"), "--prediction", "epsilon"]  # as Stable Diffusion's weights answer
    with pytest.raises(SystemExit) as stop:
        main(told)
    assert stop.value.code == 0
    of_noise = load_pipeline(tmp_path / "noise").unet
    assert of_noise.config["prediction"] == "epsilon" and pipeline.unet.config["prediction"] == "velocity"
    with torch.no_grad():
        wanted = of_noise.diffusion.as_velocity(
            video,
            torch.tensor([0.3]),
            lambda x, t: backbone(x[0].transpose(0, 1), t, context.expand(2, -1, -1)).sample.transpose(0, 1)[None],
        )
        assert torch.allclose(of_noise(video, 300.0, context).sample, wanted, atol=1e-4)
    capsys.readouterr()
    assert "--prediction noise: must be one of velocity, epsilon, v" in refused(*told[1:-1], "noise")
    assert "leave --prediction out" in refused(str(tmp_path), "--prediction", "v")
    assert "add --arrangement, --text, --out" in refused("--space", "tiny")
    assert "leave --init out" in refused(str(tmp_path), "--init", "unet")
    assert "name its autoencoder" in refused(*words[1:7], "--out", str(tmp_path / "other"))
    wide = save_text(tmp_path / "wide", width=32)
    assert "of width 32" in refused(*words[1:5], "--text", wide, *words[7:9], "--out", str(tmp_path / "other"))


def test_large_weights_come_in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = small_space(tmp_path)
    space.empty().save(tmp_path / "arrangement.yaml")
    monkeypatch.setattr("nas.model.pipeline.SHARD", "100KB")
    build_anew(
        space,
        tmp_path / "arrangement.yaml",
        tmp_path / "model",
        text=save_text(tmp_path / "text"),
        autoencoder=save_allegro(tmp_path / "vae"),
        seed=3,
    )
    shards = list((tmp_path / "model" / "unet").glob("*.safetensors"))
    assert (
        len(shards) > 1 and (tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors.index.json").is_file()
    )
    first = load_pipeline(tmp_path / "model").unet.state_dict()
    torch.manual_seed(3)
    again = VideoUNet(space.to_json(), space.empty().to_json()).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in again)
