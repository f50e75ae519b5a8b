"""Points: exact tracks of turning and approaching shapes, losses that know a rigid body, and the stage."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_finetune import Stop, log, same, stop_at
from tuning_fixtures import DATA, make_model

from nas.data import open_data
from nas.data.clip import Buckets
from nas.data.shapes import MovingShapes, Placed, Shape, render
from nas.data.tracks import point_map, positions, scene_tracks, with_tracks
from nas.errors import NasError
from nas.model.pipeline import load_pipeline
from nas.model.widths import narrow, widened
from nas.recipes import finetune
from nas.recipes.config import MotionConfig, known_settings
from nas.recipes.points import bent, misplaced, seen_at

CLIP = SimpleNamespace(frames=6, height=32, width=32, fps=4.0)
NEEDS = ("tracks", "points")
SPUN = DATA.model_copy(
    update={"boundary": "inside", "rotation": (-0.5, 0.5), "approach": (-0.4, 0.4), "max_objects": 2}
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("points") / "model")


# Data -----------------------------------------------------------------------------------------------------------------


def test_scenes_that_do_not_turn_are_what_they_were() -> None:
    placed = MovingShapes(DATA, CLIP).scene(3)[0]
    assert placed.turn == placed.approach == 0 and "turn" not in repr(placed)
    spun = MovingShapes(SPUN.model_copy(update={"max_objects": 1}), CLIP).scene(3)[0]
    assert spun.turn != 0 != spun.approach


def test_a_turned_cross_is_drawn_turned_and_a_deeper_one_smaller() -> None:
    cross = Shape("cross", "white", "left")
    turning = Placed(cross, 16, 16, 8, 0, turn=np.pi / 4)
    video = render([turning], CLIP, "inside")[:, 0]
    assert video[0, 16, 22] > 0.9 and video[1, 16, 22] < 0.2  # an arm, then the gap between two
    assert np.allclose(video[0], video[2], atol=1e-5) and video[1, 20, 20] > 0.9
    leaving = render([Placed(cross, 16, 16, 8, 0, approach=1.0)], CLIP, "inside")[:, 0]
    lit = (leaving - 0.12).sum((1, 2))
    assert lit[1] == pytest.approx(lit[0] / 4, rel=0.1)  # at twice the depth


def test_tracks_stay_on_their_shape_and_keep_their_distances() -> None:
    scene = (Placed(Shape("cross", "red", "right"), 10, 16, 7, 1.5, turn=0.4, approach=-0.08),)
    tracks = torch.from_numpy(scene_tracks(scene, CLIP, "inside"))
    video = render(scene, CLIP, "inside")
    assert tracks.shape == (16, 6, 4) and bool(tracks[..., 3].all())
    for point in tracks:
        for frame, (x, y, *_) in enumerate(point.tolist()):
            assert video[frame, 0, int(y), int(x)] > 0.3  # red, not background
    places = positions(tracks, 32, 32)
    apart = torch.cdist(places.transpose(0, 1), places.transpose(0, 1))
    assert torch.allclose(apart, apart[:1].expand_as(apart), atol=1e-3)
    drawn = point_map(tracks, 32, 32)
    x, y = (int(value) for value in tracks[-1, 2, :2])
    assert torch.allclose(drawn[2, :, y, x], places[-1, 2]) and bool((drawn != 0).any(1).sum() <= 6 * 16)


def test_points_that_are_covered_or_gone_are_not_seen() -> None:
    below, above = (Placed(Shape("square", colour, "left"), 16, 16, 6, 0) for colour in ("red", "blue"))
    tracks = scene_tracks((below, above), CLIP, "inside")
    assert not tracks[:16, :, 3].any() and tracks[16:, :, 3].all()
    near = Placed(Shape("square", "red", "left"), 8, 16, 8, 0, approach=-0.3)  # grows out of the frame
    seen = scene_tracks((near,), CLIP, "inside")[..., 3]
    assert seen[:, 0].all() and not seen[:, 2].all()


def test_what_has_no_tracks_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(NasError, match="in two places at once; set data.boundary to inside or bounce"):
        with_tracks(open_data(DATA, CLIP), NEEDS)
    with pytest.raises(NasError, match="which only data.source=moving_shapes gives"):
        with_tracks(SimpleNamespace(), NEEDS)  # type: ignore[arg-type]
    with pytest.raises(NasError, match="this stage needs depths beside every clip; no data of ours gives that"):
        with_tracks(open_data(SPUN, CLIP), ["depths"])
    told = open_data(SPUN.model_copy(update={"buckets": ("4x16x32",)}), CLIP)
    buckets = with_tracks(told, NEEDS)
    assert isinstance(buckets, Buckets) and isinstance(told, Buckets)
    turn = buckets.bucket(1)[0]
    assert turn["video"].shape == told.bucket(1)[0]["video"].shape and turn["tracks"].shape[0] == 32  # type: ignore[typeddict-item]


# Losses ---------------------------------------------------------------------------------------------------------------


def test_a_rigid_body_is_not_bent_and_a_stretched_one_is() -> None:
    scene = (Placed(Shape("square", "red", "right"), 10, 16, 7, 1.5, turn=0.4),)
    tracks = torch.from_numpy(scene_tracks(scene, CLIP, "inside"))[None]
    real, seen, told = positions(tracks, 32, 32), tracks[..., 3], torch.ones(1)
    assert float(bent(real, real, seen, told, 8)) < 2e-3 and float(misplaced(real, real, seen, told)) == 0
    centre = real.mean(1, keepdim=True)
    stretch = torch.linspace(1, 2, 6)[None, None, :, None]
    bigger = centre + stretch * (real - centre)
    assert float(bent(bigger, real, seen, told, 8)) > 0.05 and float(misplaced(bigger, real, seen, told)) > 0.01
    hidden = seen.clone()
    hidden[:, :, 1:] = 0
    assert float(bent(bigger, real, hidden, told, 8)) == 0
    assert float(bent(bigger, real, seen, torch.zeros(1), 8)) == 0
    drawn = point_map(tracks[0], 32, 32).transpose(0, 1)[None]
    found = seen_at(drawn, tracks)
    assert (found - real).abs().amax(-1).lt(1e-5).float().mean() > 0.7  # but for points that share a pixel


def test_a_widened_network_computes_what_it_did_and_narrows_back(model: Path) -> None:
    unet = load_pipeline(model).unet
    wide = widened(unet, 2).eval()
    video, context = torch.randn(1, 3, 4, 8, 8), torch.randn(1, 12, 16)
    with torch.no_grad():
        before = unet(video, 300.0, context).sample
        after = wide(torch.cat([video, torch.randn_like(video)], 1), 300.0, context).sample
        assert torch.allclose(after[:, :3], before, atol=1e-6) and not after[:, 3:].any()
        for parameter in wide.parameters():
            parameter.add_(0.01)
        expected = wide(torch.cat([video, torch.zeros_like(video)], 1), 300.0, context).sample
        narrow(wide, unet)
        assert torch.allclose(unet(video, 300.0, context).sample, expected[:, :3], atol=1e-5)


# The stage ------------------------------------------------------------------------------------------------------------


def settings(**changes: Any) -> Any:
    few = {"steps": 4, "clips": 2, "checkpoint_every": 2, "ramp_steps": 1, "learning_rate": 1e-3, "threads": 1}
    data = SPUN.model_copy(update={"max_objects": 1})
    return known_settings()(data=data, motion=MotionConfig(prompts=2, steps=1), points={**few, **changes})


def test_a_stopped_stage_goes_on_and_ends_in_a_plain_model(model: Path, tmp_path: Path) -> None:
    told = finetune(model, "points", settings(workers=1, accumulate=2), tmp_path / "whole")
    with pytest.raises(Stop):
        finetune(model, "points", settings(workers=1, accumulate=2), tmp_path / "parts", progress=stop_at(3))
    finetune(model, "points", settings(workers=1, accumulate=2), tmp_path / "parts")
    assert same(tmp_path / "whole", tmp_path / "parts")
    row = log(tmp_path / "whole")[-1]
    assert {"loss_video", "loss_points", "loss_reconstruction", "loss_rigidity"} <= set(row)
    pipeline = load_pipeline(tmp_path / "whole")
    assert pipeline.unet.space == load_pipeline(model).unet.space and told["improved"]["what"] == "loss_rigidity"
    assert pipeline("a red circle moving left", num_inference_steps=1).frames.shape == (1, 4, 8, 8, 3)


def test_a_shape_that_wraps_is_refused_before_anything_is_written(model: Path, tmp_path: Path) -> None:
    wrapping = settings().model_copy(update={"data": DATA})
    with pytest.raises(NasError, match="set data.boundary to inside or bounce"):
        finetune(model, "points", wrapping, tmp_path / "out")
    assert not (tmp_path / "out").exists()
