"""The discriminator: a frozen encoder, and heads whose kind decides what they can see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from tuning_fixtures import make_model

from nas.errors import NasError
from nas.model.pipeline import load_pipeline
from nas.recipes.discriminator import Encoder, Heads
from search_spaces.families.unet import UNet


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_pipeline(make_model(tmp_path_factory.mktemp("disc") / "model")).unet


def inputs(frames: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return (
        torch.randn(2, 3, frames, 8, 8, generator=g),
        torch.tensor([0.2, 0.7]),
        torch.randn(2, 12, 16, generator=g),
        torch.randn(2, 16, generator=g),
    )


def heads(kind: Any, stages: tuple[int, ...] = ()) -> Heads:
    torch.manual_seed(0)
    return Heads([8, 16], stages, kind, text=16, width=16)


def test_the_encoder_sees_what_the_network_sees_on_its_way_down(unet: Any) -> None:
    video, level, context, _ = inputs()
    seen: dict[str, Tensor] = {}
    unet.network.unet.down_blocks[1].downsamplers  # noqa: B018 - the lowest stage has none
    hook = unet.network.temporal["down_1_0"][0].register_forward_hook(
        lambda module, args, out: seen.__setitem__("low", out)
    )
    unet(video, 1000 * level, context)
    hook.remove()
    features = Encoder(unet)(video, level, context)
    assert [tuple(f.shape) for f in features] == [(8, 8, 8, 8), (8, 16, 4, 4)]
    assert torch.equal(features[1], seen["low"])


def test_the_encoder_is_frozen_and_lets_gradients_through_to_its_input(unet: Any) -> None:
    encoder = Encoder(unet).train()
    assert not encoder.training and not any(p.requires_grad for p in encoder.parameters())
    assert len(list(unet.network.unet.up_blocks)) == 2  # the model itself keeps its way up
    video, level, context, _ = inputs()
    video.requires_grad_(True)
    sum(f.sum() for f in encoder(video, level, context)).backward()  # type: ignore[union-attr]
    assert video.grad is not None and bool(video.grad.any())


@pytest.mark.parametrize(("kind", "count"), [("unified", 2), ("separate", 4), ("spatial", 2), ("temporal", 2)])
@pytest.mark.parametrize("frames", [1, 4])
def test_every_kind_answers_for_every_place_and_frame(kind: str, count: int, frames: int, unet: Any) -> None:
    video, level, context, pooled = inputs(frames)
    answers = heads(kind)(Encoder(unet)(video, level, context), frames, pooled)
    assert [tuple(a.shape) for a in answers] == [(2, frames * 64)] * (count // 2) + [(2, frames * 16)] * (count // 2)


@pytest.mark.parametrize(
    ("kind", "across_time", "across_space"),
    [("unified", True, True), ("spatial", False, True), ("temporal", True, False)],
)
def test_a_head_sees_time_or_space_as_its_kind_says(kind: str, across_time: bool, across_space: bool) -> None:
    """What a change at one frame and place does to the raw answers elsewhere, before the norm over the whole map."""
    one = heads(kind, (0,)).heads[f"0-{kind}"]
    one.norm = torch.nn.Identity()
    if kind != "temporal":
        for layer in list(one.enter.body):
            if isinstance(layer, torch.nn.GroupNorm):
                one.enter.body[list(one.enter.body).index(layer)] = torch.nn.Identity()
    feature = torch.randn(4, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    moved = feature.clone()
    moved[1, :, 3, 3] += 1.0
    pooled = torch.randn(1, 16, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        change = (one(moved, 4, pooled) - one(feature, 4, pooled)).reshape(4, 8, 8).abs() > 1e-7
    assert bool(change[1, 3, 3])
    assert bool(change[3, 3, 3]) is across_time
    assert bool(change[1, 3, 4]) is across_space


def test_the_order_of_frames_matters_to_a_head_that_sees_time() -> None:
    feature = torch.randn(4, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    pooled = torch.zeros(1, 16)
    for kind, matters in (("unified", True), ("spatial", False)):
        one = heads(kind, (0,))
        forward, back = (one([f], 4, pooled)[0].sort().values for f in (feature, feature.flip(0)))
        assert torch.allclose(forward, back, atol=1e-5) is not matters


def test_the_text_moves_the_answers(unet: Any) -> None:
    video, level, context, pooled = inputs()
    features = Encoder(unet)(video, level, context)
    one = heads("unified")
    assert not torch.allclose(one(features, 4, pooled)[0], one(features, 4, -pooled)[0])


def test_heads_stand_only_where_asked() -> None:
    assert list(heads("unified", (1,)).heads) == ["1-unified"]
    assert list(heads("separate", ()).heads) == ["0-spatial", "0-temporal", "1-spatial", "1-temporal"]
    with pytest.raises(NasError, match="there is no feature 5, only 0 to 1"):
        heads("unified", (5,))


def test_a_family_without_features_is_refused(unet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UNet, "features", lambda self, frame: {})
    with pytest.raises(NasError, match="family unet names none"):
        Encoder(unet)


def test_the_model_folder_is_not_touched_by_building_an_encoder(unet: Any, tmp_path: Path) -> None:
    before = {name: p.clone() for name, p in unet.state_dict().items()}
    Encoder(unet)
    after = unet.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
