"""Moving shapes: what a caption says is what the clip shows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pytest
import torch

from nas.config import DataConfig
from nas.data import open_data
from nas.data.clip import images_of
from nas.data.shapes import BACKGROUND, DIRECTIONS, KINDS, MovingShapes, Placed, Shape, parse_caption, render
from nas.errors import NasError


@dataclass(frozen=True)
class Clip:
    frames: int = 8
    height: int = 32
    width: int = 32
    fps: float = 8.0


def shapes(split: Literal["train", "validation"] = "train", **changes: object) -> MovingShapes:
    settings = DataConfig.model_validate({"source": "moving_shapes", **changes})
    data = open_data(settings, Clip(), split)
    assert isinstance(data, MovingShapes)
    return data


def centre(frame: np.ndarray) -> tuple[float, float]:
    """x and y of what is not background."""
    weight = np.abs(frame - BACKGROUND).sum(axis=0)
    rows, columns = np.indices(weight.shape) + 0.5
    return float((weight * columns).sum() / weight.sum()), float((weight * rows).sum() / weight.sum())


def test_items_match_their_scene_and_caption() -> None:
    data = shapes()
    counts = set()
    for index in range(40):
        item, scene = data[index], data.scene(index)
        assert item["video"].shape == (8, 3, 32, 32) and item["video"].dtype == torch.float32
        assert item["video"].abs().max() <= 1
        assert parse_caption(item["caption"]) == tuple(placed.shape for placed in scene)
        counts.add(len(scene))
    assert counts == {1, 2}
    assert {len(shapes(max_objects=1).scene(i)) for i in range(20)} == {1}


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_shape_moves_where_its_caption_says_at_its_speed(kind: str, direction: str) -> None:
    video = render([Placed(Shape(kind, "red", direction), 16, 16, 5, 1.25)], Clip())
    path = np.array([centre(frame) for frame in video])
    step = np.array(DIRECTIONS[direction]) * 1.25
    assert np.allclose(np.diff(path, axis=0), step, atol=0.12)  # sub-pixel steps: the edges are anti-aliased


def test_wrapping_keeps_the_area_and_bouncing_keeps_inside() -> None:
    placed = Placed(Shape("circle", "blue", "left"), 5, 16, 4, 4.0)
    area = np.abs(render([placed], Clip()) - BACKGROUND).sum(axis=(1, 2, 3))
    assert np.allclose(area, area[0], rtol=0.02)
    placed = replace(placed, x=9.0)
    bounced = render([placed], Clip(), "bounce")
    across = np.diff([centre(frame)[0] for frame in bounced])
    assert across[0] < 0 < across[-1]
    assert np.allclose(np.abs(bounced - BACKGROUND).sum(axis=(1, 2, 3)), area[0], rtol=0.05)


def test_two_shapes_never_share_a_colour() -> None:
    data = shapes()
    for index in range(60):
        colours = [placed.shape.colour for placed in data.scene(index)]
        assert len(set(colours)) == len(colours)


def test_clips_are_reproducible_and_splits_differ() -> None:
    settings = DataConfig(source="moving_shapes")
    one, same = (open_data(settings, Clip(), seed=4) for _ in range(2))
    assert torch.equal(one[123456]["video"], same[123456]["video"])
    validation = open_data(settings, Clip(), "validation", seed=4)
    assert len(validation) == settings.validation_clips
    assert torch.equal(validation[0]["video"], open_data(settings, Clip(), "validation", seed=5)[0]["video"])
    assert not torch.equal(validation[0]["video"], open_data(settings, Clip(), "train", seed=0)[0]["video"])


def test_captions_hold_every_word() -> None:
    words = {word for caption in shapes().captions for word in caption.split()}
    data = shapes()
    assert words >= {word for i in range(300) for word in data[i]["caption"].split()}


def test_a_scene_may_be_narrowed_by_configuration():
    narrow = shapes(max_objects=1, kinds=("cross", "square"), colours=("red",), directions=("left", "up"))
    seen = {placed.shape for i in range(60) for placed in narrow.scene(i)}
    assert seen == {Shape(k, "red", d) for k in ("square", "cross") for d in ("left", "up")}
    assert {str(shape) for shape in seen} == set(narrow.captions)


def test_a_scene_that_cannot_be_drawn_is_refused():
    with pytest.raises(NasError, match="data.kinds: 'star' is not known; known: circle"):
        shapes(kinds=("star",))
    with pytest.raises(NasError, match="names 1, but a scene has up to 2 objects"):
        shapes(colours=("red",))
    with pytest.raises(NasError, match="data.radius must run from above 0 upwards, but is 0.3 to 0.2"):
        shapes(radius=(0.3, 0.2))


def test_a_way_inside_the_frame_never_touches_its_border():
    data = shapes(boundary="inside", max_objects=1, speed=(0.5, 3.0), radius=(0.2, 0.3))
    for i in range(60):
        (placed,) = data.scene(i)
        step = np.array(DIRECTIONS[placed.shape.direction]) * placed.speed
        for frame in (0, 7):
            where = np.array([placed.x, placed.y]) + step * frame
            assert (where >= placed.radius - 1e-6).all() and (where <= 32 - placed.radius + 1e-6).all()
        assert placed.speed > 0.5


def test_few_videos_come_again_and_their_images_do_not():
    few = shapes(different_videos=3)
    assert [few.scene(i) for i in range(3, 6)] == [few.scene(i) for i in range(3)]
    assert few.scene(0) != few.scene(1)
    endless = shapes()
    images = images_of(few, 9)
    half = len(endless) // 2  # images are of other scenes than the clips of the same step
    assert [images[i]["caption"] for i in range(20)] == [endless[half + i]["caption"] for i in range(20)]
    validation = shapes("validation", different_videos=3)
    assert validation.scene(4) not in [validation.scene(i) for i in range(4)]
