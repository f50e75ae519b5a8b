"""A video from packages alone is the video of the model, and what does not belong together is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLAllegro, FlowMatchEulerDiscreteScheduler
from evaluator_packages import rewritten
from export_fixtures import SMALL
from latent_fixtures import WORDS, save_allegro, small_space

from nas.cli import main
from nas.errors import NasError
from nas.export import export_model
from nas.model.network import VideoUNet
from nas.model.packages import APP, PREFIX, Packages
from nas.model.pipeline import TextToVideoPipeline, load_pipeline, save_pipeline
from nas.model.sample import Model
from nas.pretrained.text import TextEncoder
from nas.supernet.supernet import Supernet

Exported = tuple[Path, dict[str, Any]]


def psnr(one: torch.Tensor, other: torch.Tensor) -> float:
    """Decibels, of frames in 0..1."""
    return float(-10 * torch.log10((one - other).square().mean()))


def both(model: Path, packages: Path, prompts: list[str], **how: Any) -> tuple[Any, Any]:
    """What the model and its packages sample, with the same seeds."""
    made = []
    for opened in (Model(model), Packages(packages)):
        shape = Packages(packages).shape(None, None, None)[0]
        generators = [torch.Generator().manual_seed(7 + place) for place in range(len(prompts))]
        made.append(
            opened.sample(prompts, shape, generators, how.get("steps"), how.get("guidance"), lambda done, total: None)
        )
    return made[0], made[1]


def test_packages_give_the_model_s_video(exported_model: Path, exported: Exported) -> None:
    for prompts, how in ((["a red circle moving left"], {"steps": 4}), (["a", "blue"], {"steps": 2, "guidance": 2.0})):
        expected, got = both(exported_model, exported[0], prompts, **how)
        assert got.frames.shape == expected.frames.shape and got.sigmas == expected.sigmas
        assert psnr(got.frames, expected.frames) > 40
    assert psnr(got.frames[0], got.frames[1]) < 40  # of two prompts and two seeds


@pytest.fixture(scope="module")
def latent(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model of latents that was made for three steps with fresh noise between, and its packages."""
    folder = tmp_path_factory.mktemp("latent")
    vae = AutoencoderKLAllegro.from_pretrained(save_allegro(folder / "vae")).eval()
    space = small_space(folder)
    torch.manual_seed(0)
    arrangement = space.sample(np.random.default_rng(0))
    unet = VideoUNet.of(space, Supernet(space).eval().extract(arrangement), arrangement)
    text = TextEncoder.small(space, WORDS).eval()
    pipeline = TextToVideoPipeline(unet, text.model, text.tokenizer, FlowMatchEulerDiscreteScheduler(), vae)
    pipeline.set_sampling(sigmas=[1.0, 0.7, 0.3], guidance=1.5, renoise=True)
    save_pipeline(pipeline, folder / "model")
    export_model(folder / "model", folder / "coreml", safe=True)
    return folder / "model", folder / "coreml"


def test_packages_of_latents_give_the_model_s_video_as_it_was_made_to_be_sampled(latent: tuple[Path, Path]) -> None:
    expected, got = both(*latent, ["a red ball falls"])
    assert got.sigmas == pytest.approx([1.0, 0.7, 0.3]) and got.guidance == expected.guidance == 1.5
    assert got.frames.shape == expected.frames.shape == (1, 8, 32, 32, 3)
    assert psnr(got.frames, expected.frames) > 40


def test_token_numbers_are_the_model_s(exported_model: Path, exported: Exported) -> None:
    pipeline, packages = load_pipeline(exported_model), Packages(exported[0])
    for prompt in ("", "a red circle moving left", "zebra red"):
        given = pipeline.tokenizer([prompt], padding="max_length", max_length=16, return_tensors="pt").input_ids
        assert packages._words.numbers(prompt).tolist() == given.tolist()
        assert packages.unknown_words(prompt) == pipeline.unknown_words(prompt)
    with pytest.raises(NasError, match="the prompt has .* tokens, the text encoder takes 16: .*; shorten it"):
        packages._words.numbers("red " * 40)


def test_nas_sample_takes_packages_and_loads_no_model(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr("nas.model.pipeline.load_pipeline")
    out = tmp_path / "x.mp4"
    words = ["sample", str(exported[0]), "--prompt", "a red circle", "--steps", "2", "--out", str(out), "--json"]
    with pytest.raises(SystemExit) as stopped:
        main(words)
    told = json.loads(capsys.readouterr().out)
    assert stopped.value.code == 0 and out.is_file() and [told[k] for k in ("frames", "height", "width")] == [*SMALL]
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--frames", "5"])
    assert stopped.value.code == 2 and "has functions for 4x16x16" in capsys.readouterr().err


def told(folder: Path, part: str, change: Callable[[dict[str, str]], None]) -> None:
    """Change the metadata of a part of packages."""

    def rewrite(spec: Any) -> None:
        facts = dict(spec.description.metadata.userDefined)
        change(facts)
        spec.description.metadata.userDefined.clear()
        spec.description.metadata.userDefined.update(facts)

    rewritten(folder / part, folder / f"new-{part}", rewrite)
    shutil.rmtree(folder / part)
    (folder / f"new-{part}").rename(folder / part)


def test_what_does_not_belong_together_is_one_line(exported: Exported, tmp_path: Path) -> None:
    def other(facts: dict[str, str]) -> None:
        facts[APP] = json.dumps({**json.loads(facts[APP]), "model": "0123456789ab"})

    def damaged(facts: dict[str, str]) -> None:
        facts[APP] = json.dumps({**json.loads(facts[APP]), "length": 0})

    cases: list[tuple[str, Callable[[dict[str, str]], None], str]] = [
        ("text_encoder.mlpackage", other, "text_encoder.mlpackage is of model 0123456789ab, unet.mlpackage of"),
        ("unet.mlpackage", lambda facts: facts.clear(), f"has no {PREFIX}app: made by another tool"),
        ("text_encoder.mlpackage", damaged, r"app is damaged \(length: input should be greater than or equal to 1\)"),
    ]
    for place, (part, change, said) in enumerate(cases):
        folder = shutil.copytree(exported[0], tmp_path / str(place))
        told(folder, part, change)
        with pytest.raises(NasError, match=said) as caught:
            Packages(folder)
        assert "\n" not in str(caught.value)
    folder = shutil.copytree(exported[0], tmp_path / "less")
    shutil.rmtree(folder / "text_encoder.mlpackage")
    with pytest.raises(NasError, match="no text_encoder.mlpackage there; export the model with --parts"):
        Packages(folder)
    (folder / "text_encoder.mlpackage").mkdir()
    with pytest.raises(NasError, match="no Core ML package"):
        Packages(folder)
