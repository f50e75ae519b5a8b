"""A search of temporal layers that begins with the network that an image search built, frozen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from image_fixtures import TRANSFORMER, image_space, spatial
from training_fixtures import DATA, short

from nas.data import open_data
from nas.errors import NasError
from nas.model.network import VideoUNet
from nas.model.pipeline import TextToVideoPipeline, save_pipeline
from nas.pretrained.given import check_given
from nas.pretrained.text import TextEncoder
from nas.supernet.stage import begin
from nas.supernet.supernet import Supernet
from search_spaces.arrangement import Arrangement
from search_spaces.errors import SpaceError
from search_spaces.families.unet import FAMILY as UNET
from search_spaces.fixing import fix, write_space
from search_spaces.parts import Position
from search_spaces.space import Space
from search_spaces.variant import Variant

TIME = ("down.0.0.time", "up.1.0.time")


def moving() -> Space:
    """The pictures' space with two places for temporal layers, four frames."""
    space = image_space(4)
    layer = (Variant.of("Conv1D", kernel_size=3), Variant.of("SelfAttention1D", heads=2))
    order = {place.name: place for place in space.backbone.layout.places}
    more = [Position(name, order[name].channels, order[name].space_scale, 1, layer) for name in TIME]
    found = sorted((*space.positions, *more), key=lambda position: list(order).index(position.name))
    return replace(space, positions=tuple(found))


@pytest.fixture(scope="module")
def chosen() -> Arrangement:
    space = image_space()
    kinds = {"down.0.0.0": "FullConv", "down.1.0.0": TRANSFORMER, "up.0.0.0": TRANSFORMER, "up.1.0.0": "FullConv"}
    return space.arrange({name: [kind] for name, kind in kinds.items()})


@pytest.fixture(scope="module")
def model(chosen: Arrangement, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an image search built, with weights of its own."""
    torch.manual_seed(0)
    made = VideoUNet(image_space().to_json(), chosen.to_json()).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    text = TextEncoder.small(image_space(), ["a red circle moving left"])
    path = tmp_path_factory.mktemp("image") / "model"
    save_pipeline(TextToVideoPipeline(made, text.model, text.tokenizer, FlowMatchEulerDiscreteScheduler()), path)
    return path


def test_a_temporal_search_starts_from_the_image_model_and_leaves_it_as_it_was(
    model: Path, chosen: Arrangement, tmp_path: Path
) -> None:
    space = fix(moving(), chosen)
    told: list[str] = []
    config = short(steps=2, warmup_steps=0, spatial_rate=0.0, init=str(model), images=0, image_share=0.0)
    data = open_data(DATA.model_copy(update={"max_objects": 1}), space.clip("training"), "train", 0)
    loop = begin(space, data, config, tmp_path, 0, told.append)
    assert "no word for" in told[0] and "fresh" not in told[1], told
    given = VideoUNet.from_pretrained(model / "unet").eval()
    supernet: Supernet = loop.stage.supernet
    words = loop.stage.text(["a red circle moving left"])
    assert torch.allclose(words, TextEncoder.pretrained(str(model))(["a red circle moving left"]), atol=1e-6)
    path = space.baseline()
    shown = torch.randn(4, 3, 8, 8), torch.tensor([300.0]), torch.randn(1, 12, 16)

    def answers() -> tuple[Any, Any]:
        with torch.no_grad():
            picture = given(shown[0].unsqueeze(0).transpose(1, 2), shown[1], shown[2]).sample
            return supernet.eval()(*shown, 4, path), picture[0].transpose(0, 1)

    mine, theirs = answers()
    assert torch.allclose(mine, theirs, atol=1e-5), "without temporal layers it is the image network"
    before = {name: p.clone() for name, p in supernet.named_parameters()}
    supernet.train()
    loop.run()
    moved = {name for name, p in supernet.named_parameters() if not torch.equal(p, before[name])}
    assert moved and all("_time." in name for name in moved), f"frozen weights moved: {sorted(moved)[:3]}"
    mine, theirs = answers()
    assert torch.allclose(mine, theirs, atol=1e-5)


def test_fixed_positions_are_no_choice_and_the_yaml_reads_back(chosen: Arrangement, tmp_path: Path) -> None:
    space = moving()
    fixed = fix(space, chosen, "frozen")
    assert fixed.size() == 3**2 and space.size() == 3**2 * 2**4
    assert fixed.sample(np.random.default_rng(0)).at("down.1.0.0")[0].label == chosen.at("down.1.0.0")[0].label
    assert Space.load(write_space(fixed, tmp_path / "frozen.yaml")).fingerprint == fixed.fingerprint


def test_what_cannot_be_fixed_is_one_line(chosen: Arrangement) -> None:
    with pytest.raises(SpaceError, match="down.0.0.0: FullConv is not allowed in pictures; allowed: SeparableConv"):
        fix(image_space(positions=spatial(("SeparableConv",))), chosen)
    with pytest.raises(SpaceError, match="unknown position 'down.0.0.0'"):
        fix(Space.load("tiny"), chosen)


def test_a_model_of_another_family_is_named(model: Path) -> None:
    with pytest.raises(NasError, match="a network of family staged_unet, and this space is of unet"):
        check_given(UNET, str(model))
