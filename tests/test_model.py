"""The built model: the supernet's path as a plain diffusers folder, and the pipeline that samples it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from training_fixtures import clips, tiny

from nas.errors import NasError
from nas.model.build import largest_difference
from nas.model.network import VideoUNet
from nas.model.pipeline import TextToVideoPipeline, load_pipeline
from nas.model.sample import sample_video
from nas.pretrained.loading import no_bars
from nas.pretrained.text import TextEncoder
from nas.supernet.supernet import Supernet
from search_spaces.arrangement import Arrangement

ARRANGEMENT = tiny().sample(np.random.default_rng(2))


@pytest.fixture(scope="module")
def supernet() -> Supernet:
    torch.manual_seed(0)
    made = Supernet(tiny())
    with torch.no_grad():
        for parameter in made.layers.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return made.eval()


@pytest.fixture(scope="module")
def folder(supernet: Supernet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = VideoUNet.of(tiny(), supernet.extract(ARRANGEMENT), ARRANGEMENT)
    text = TextEncoder.small(tiny(), clips().captions).eval()
    path = tmp_path_factory.mktemp("model")
    TextToVideoPipeline(model, text.model, text.tokenizer, FlowMatchEulerDiscreteScheduler()).save_pretrained(path)
    return path


@torch.no_grad()
def evaluate(model: Any, frames: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    video = torch.randn(2, 3, frames, 16, 16, generator=generator)
    return model(video, 300.0, torch.randn(2, 16, 32, generator=generator)).sample


def test_the_model_is_the_supernets_path(supernet: Supernet) -> None:
    model = VideoUNet.of(tiny(), supernet.extract(ARRANGEMENT), ARRANGEMENT)
    assert largest_difference(supernet, model, tiny(), ARRANGEMENT) < 1e-5
    assert largest_difference(supernet, model, tiny(), tiny().empty()) > 1e-3


def test_a_saved_model_is_the_same_model_and_knows_its_arrangement(folder: Path, supernet: Supernet) -> None:
    loaded = VideoUNet.from_pretrained(folder / "unet").eval()
    original = VideoUNet.of(tiny(), supernet.extract(ARRANGEMENT), ARRANGEMENT)
    assert loaded.arrangement == ARRANGEMENT and loaded.space.fingerprint == tiny().fingerprint
    assert torch.allclose(evaluate(loaded), evaluate(original), atol=1e-5)
    assert evaluate(loaded, frames=1).shape == (2, 3, 1, 16, 16)


def test_diffusers_loads_the_folder_in_another_process(folder: Path, supernet: Supernet, tmp_path: Path) -> None:
    """Without the space's YAML: this space has none. And without a word on the terminal."""
    space = replace(tiny(), name="nowhere")
    arrangement = Arrangement("nowhere", ARRANGEMENT.layers)
    model = VideoUNet.of(space, supernet.extract(ARRANGEMENT), arrangement)
    elsewhere = tmp_path / "model"
    shutil.copytree(folder, elsewhere)
    with no_bars():
        model.save_pretrained(elsewhere / "unet")
    code = f"""
import torch
from pathlib import Path
from nas import TextToVideoPipeline
from nas.model.pipeline import load_pipeline
torch.set_num_threads(1)
pipeline = TextToVideoPipeline.from_pretrained({str(elsewhere)!r}, local_files_only=True)
print(pipeline.unet.arrangement.key)
import sys
print("quiet from here", file=sys.stderr)
unet = load_pipeline(Path({str(elsewhere)!r})).unet
generator = torch.Generator().manual_seed(1)
video, text = torch.randn(2, 3, 4, 16, 16, generator=generator), torch.randn(2, 16, 32, generator=generator)
with torch.no_grad():
    torch.save(unet(video, 300.0, text).sample, {str(tmp_path / "out.pt")!r})
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == arrangement.key, done.stderr
    assert torch.allclose(torch.load(tmp_path / "out.pt", weights_only=True), evaluate(model), atol=1e-5)
    assert done.stderr.split("quiet from here")[1].strip() == ""


def test_bars_come_back_after_no_bars() -> None:
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    shown = [library.is_progress_bar_enabled() for library in libraries]
    with pytest.raises(KeyError), no_bars():
        assert not any(library.is_progress_bar_enabled() for library in libraries)
        raise KeyError
    assert [library.is_progress_bar_enabled() for library in libraries] == shown


def test_sampling_is_a_function_of_the_seed(folder: Path) -> None:
    pipeline = load_pipeline(folder)

    def sample(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return pipeline(
            "a red circle moving left", num_inference_steps=2, guidance_scale=2.0, generator=generator
        ).frames

    assert torch.equal(sample(0), sample(0)) and not torch.equal(sample(0), sample(1))
    assert sample(0).shape == (1, 8, 16, 16, 3) and 0 <= float(sample(0).min()) <= float(sample(0).max()) <= 1


@pytest.mark.parametrize(("steps", "levels"), [(4, None), (25, [1.0, 0.75, 0.5, 0.25])])
def test_the_network_is_asked_at_the_noise_levels_that_are_given(
    folder: Path, steps: int, levels: list[float] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left to itself, the scheduler would put the fourth of four steps at a noise level of nearly zero."""
    pipeline = load_pipeline(folder)
    asked: list[float] = []
    real = pipeline.unet.forward

    def watched(sample: Any, timestep: Any, *arguments: Any, **named: Any) -> Any:
        asked.append(float(timestep))
        return real(sample, timestep, *arguments, **named)

    monkeypatch.setattr(pipeline.unet, "forward", watched)
    pipeline("a red circle", num_inference_steps=steps, sigmas=levels)
    assert asked == pytest.approx([1000.0, 750.0, 500.0, 250.0])


def test_a_prompt_that_is_too_long_is_refused(folder: Path) -> None:
    with pytest.raises(NasError, match="the text encoder takes 16"):
        load_pipeline(folder)("a red circle moving left and " * 4)


def test_a_folder_that_is_no_model_is_refused_in_one_line(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(NasError, match="no model_index.json"):
        load_pipeline(tmp_path)
    (tmp_path / "model_index.json").write_text((folder / "model_index.json").read_text())
    with pytest.raises(NasError, match="build it again") as caught:
        load_pipeline(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_video_and_a_contact_sheet_are_written(folder: Path, tmp_path: Path) -> None:
    import av

    found = sample_video(folder, ["a red circle moving left"], tmp_path / "out.mp4", steps=1, seed=3)
    with av.open(found["video"]) as container:
        assert sum(1 for _ in container.decode(video=0)) == found["frames"] == 8
    assert Path(found["contact_sheet"]).stat().st_size > 0
    with pytest.raises(NasError, match="--steps"):
        sample_video(folder, ["a"], tmp_path / "out.mp4", steps=0)
    with pytest.raises(NasError, match="must end in .mp4"):
        sample_video(folder, ["a"], tmp_path / "out.png", steps=1)  # the contact sheet's own name


@pytest.mark.parametrize("name", ["text_encoder/model.safetensors", "unet/diffusion_pytorch_model.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_weights_cut_short_are_one_line(name: str, share: float, folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    file = copy / name
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(NasError, match="build it again") as caught:
        load_pipeline(copy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps must be 1"),
        ({"sigmas": [0.5, 0.75]}, "must fall"),
        ({"sigmas": [1.0, 0.0]}, "must fall"),
        ({"sigmas": [2.0, 1.0]}, "must fall"),
        ({"height": 15}, "multiples of 2"),
    ],
)
def test_sampling_that_makes_no_sense_is_refused(folder: Path, given: dict[str, Any], said: str) -> None:
    with pytest.raises(NasError, match=said):
        load_pipeline(folder)("a red circle", **given)
