"""Sampling: any size that divides, several prompts at once, deterministic by seed, and plain words where it cannot."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from test_init import save_unet
from tuning_fixtures import make_model

from nas.cli import main
from nas.errors import NasError
from nas.model.pipeline import load_pipeline
from nas.model.sample import sample_video
from search_spaces.errors import SpaceError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("sample") / "model")


PROMPTS = ["a red circle moving left", "a blue cross moving up"]


def test_the_same_seed_gives_the_same_file_and_another_another(model: Path, tmp_path: Path) -> None:
    files = [
        Path(sample_video(model, PROMPTS[:1], tmp_path / f"{i}.mp4", steps=2, seed=seed)["video"]).read_bytes()
        for i, seed in enumerate((7, 7, 8))
    ]
    assert files[0] == files[1] != files[2]


def test_a_batch_gives_each_prompt_the_video_of_its_place(model: Path, tmp_path: Path) -> None:
    both = sample_video(model, PROMPTS, tmp_path / "both.mp4", steps=2, seed=7)
    alone = sample_video(model, PROMPTS[:1], tmp_path / "one.mp4", steps=2, seed=7)
    assert [Path(made["video"]).name for made in both["videos"]] == ["both-0.mp4", "both-1.mp4"]
    assert [made["prompt"] for made in both["videos"]] == PROMPTS
    first, one = (np.asarray(Image.open(made["contact_sheet"]), int) for made in (both["videos"][0], alone))
    assert np.abs(first - one).max() <= 1  # sums in another order


def test_any_length_and_aspect_that_divides_is_sampled(model: Path, tmp_path: Path) -> None:
    said: list[str] = []
    made = sample_video(
        model, PROMPTS[:1], tmp_path / "wide.mp4", steps=1, frames=5, height=8, width=20, warn=said.append
    )
    with av.open(made["video"]) as container:
        frames = list(container.decode(video=0))
    assert len(frames) == 5 and frames[0].width / frames[0].height == 20 / 8
    assert said == ["5x8x20 is none of the sizes that this model was made for; expect less of it"]
    said.clear()
    sample_video(model, PROMPTS[:1], tmp_path / "a.mp4", steps=1, frames=6, height=8, width=16, warn=said.append)
    assert said == []  # the space's deployment clip


def test_words_that_the_model_never_read_are_named(model: Path, tmp_path: Path) -> None:
    said: list[str] = []
    sample_video(model, ["a purple circle moving left"], tmp_path / "a.mp4", steps=1, warn=said.append)
    assert said == ["the text encoder has no word for 'purple' in 'a purple circle moving left'"]


def test_fresh_noise_between_steps_comes_from_the_seed_too(model: Path) -> None:
    pipeline = load_pipeline(model)
    pipeline.set_sampling(sigmas=[1.0, 0.5], renoise=True)
    made = [
        pipeline(PROMPTS[0], num_inference_steps=2, generator=torch.Generator().manual_seed(seed)).frames
        for seed in (1, 1, 2)
    ]
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"height": 9}, "height must be a multiple of 2 for this model, but is 9; the nearest is 8"),
        ({"width": -2}, "width must be a multiple of 2 for this model, but is -2; the nearest is 2"),
        ({"steps": 0}, "--steps must be 1 or more"),
    ],
)
def test_what_cannot_be_sampled_is_one_line(given: dict[str, int], said: str, model: Path, tmp_path: Path) -> None:
    with pytest.raises((NasError, SpaceError), match=said):
        sample_video(model, PROMPTS[:1], tmp_path / "a.mp4", **given)  # type: ignore[arg-type]


def test_a_prompt_that_is_too_long_is_refused_and_not_cut(model: Path, tmp_path: Path) -> None:
    with pytest.raises(NasError, match="the prompt has 14 tokens, the text encoder takes 12: 'red red .*; shorten it"):
        sample_video(model, [" ".join(["red"] * 12)], tmp_path / "a.mp4")
    with pytest.raises(NasError, match="nothing to sample"):
        sample_video(model, [], tmp_path / "a.mp4")
    assert not list(tmp_path.iterdir())


def test_the_command_samples_several_prompts(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = [part for prompt in PROMPTS for part in ("--prompt", prompt)]
    with pytest.raises(SystemExit) as stop:
        main(["sample", str(model), *prompts, "--steps", "1", "--out", str(tmp_path / "x.mp4"), "--json"])
    assert stop.value.code == 0
    assert [Path(made["video"]).is_file() for made in json.loads(capsys.readouterr().out)["videos"]] == [True, True]


def test_a_model_folder_of_another_version_is_one_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_model(tmp_path / "old")
    config = tmp_path / "old" / "unet" / "config.json"
    told = json.loads(config.read_text())
    told["arrangement"] = {"layers": []}
    config.write_text(json.dumps(told))
    for command in (["sample", "--prompt", "a"], ["evaluate"], ["finetune", "--out", str(tmp_path / "new")]):
        with pytest.raises(SystemExit) as stop:
            main([command[0], str(tmp_path / "old"), *command[1:]])
        assert stop.value.code == 2
        said = capsys.readouterr().err.strip().splitlines()
        assert len(said) == 1 and "of another version of the toolkit" in said[0]


def test_a_pipeline_of_another_network_is_one_line_that_names_the_way(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Stable Diffusion's folder has all the parts by the same names."""
    shutil.copytree(model, tmp_path / "sd")
    shutil.rmtree(tmp_path / "sd" / "unet")
    save_unet(tmp_path / "sd" / "unet", in_channels=3, out_channels=3)
    told = json.loads((tmp_path / "sd" / "model_index.json").read_text())
    told |= {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    told["safety_checker"] = [None, None]
    del told["sampling"]
    (tmp_path / "sd" / "model_index.json").write_text(json.dumps(told))
    for command in (["sample", "--prompt", "a"], ["evaluate"], ["finetune", "--out", str(tmp_path / "new")]):
        with pytest.raises(SystemExit) as stop:
            main([command[0], str(tmp_path / "sd"), *command[1:]])
        assert stop.value.code == 2
        said = capfd.readouterr().err.strip().splitlines()
        assert len(said) == 1 and "is a UNet2DConditionModel, not a VideoUNet" in said[0], said
        assert f"nas build --init {tmp_path / 'sd'}" in said[0]
