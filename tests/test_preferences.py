"""Preference sets: made, stopped, joined and judged without loss, and refused in one line where they are wrong."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tuning_fixtures import DATA, make_model

from nas.errors import NasError
from nas.files import held
from nas.preferences.config import PreferConfig
from nas.preferences.folder import PreferenceSet
from nas.preferences.labels import read_labels
from nas.preferences.making import latent_segments, make_set, segments_of
from nas.preferences.rewards import REWARDS, Judged, averaged, checked, open_reward, wins_of
from nas.settings import settle

PIXELS = ("motion", "flicker", "sharpness")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("preferences") / "model")


def how(**changes: Any) -> PreferConfig:
    return PreferConfig(**{"data": DATA, "prompts": 3, "clips": 3, "steps": 2, "rewards": PIXELS, **changes})


def guided(**changes: Any) -> PreferConfig:
    return how(kind="guided", clips=2, rewards=("fidelity",), segment_s=0.5, **changes)


def clips(kept: PreferenceSet) -> dict[str, torch.Tensor]:
    return {name: kept.read(name).clips for name in kept.names()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


# Making ---------------------------------------------------------------------------------------------------------------


def test_a_stopped_set_goes_on_and_another_seed_adds_to_it(model: Path, tmp_path: Path) -> None:
    make_set(model, how(), tmp_path / "whole")

    def stop(done: int, total: int, told: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_set(model, how(), tmp_path / "parts", progress=stop)
    assert len(PreferenceSet(tmp_path / "parts").names()) == 1
    told = make_set(model, how(), tmp_path / "parts")
    whole, parts = PreferenceSet(tmp_path / "whole"), PreferenceSet(tmp_path / "parts")
    assert told["groups"] == 3 and equal(clips(whole), clips(parts))
    assert whole.fingerprint() == parts.fingerprint()
    make_set(model, how(seed=1, prompts=2), tmp_path / "parts")
    assert [name[:2] for name in parts.names()] == ["s0", "s0", "s0", "s1", "s1"]
    group = parts.read("s1-000000")
    assert not torch.equal(group.noise[0], group.noise[1]) and not torch.equal(group.clips[0], group.clips[1])
    assert sorted(parts.said("s1-000000")) == sorted(PIXELS)
    page = (tmp_path / "parts" / "review.html").read_text()
    assert page.count("<img ") == 5 and "win rate" in page and "http" not in page.replace("http-equiv", "")


def test_a_reward_that_comes_later_judges_what_is_there(model: Path, tmp_path: Path) -> None:
    make_set(model, how(rewards=("motion",)), tmp_path / "set")
    kept = PreferenceSet(tmp_path / "set")
    before = kept.path("s0-000000").stat().st_mtime_ns
    make_set(model, how(rewards=("motion", "sharpness")), tmp_path / "set")
    said = kept.said("s0-000000")
    assert set(said) == {"motion", "sharpness"} and kept.path("s0-000000").stat().st_mtime_ns == before
    both = kept.preference("s0-000000")
    assert both is not None and both == pytest.approx((said["motion"]["wins"] + said["sharpness"]["wins"]) / 2)
    assert kept.preference("s0-000000", ["motion"]) == pytest.approx(said["motion"]["wins"])


def test_guided_pairs_share_their_real_clip_their_noise_s_share_and_their_labels_by_segment(
    model: Path, tmp_path: Path
) -> None:
    make_set(model, guided(), tmp_path / "set")
    kept = PreferenceSet(tmp_path / "set")
    assert kept.header.segments == (0, 0, 1, 1) == kept.header.latent_segments  # four frames a second, half of one each
    group = kept.read("s0-000000")
    assert 0.65 <= group.share <= 0.8 and group.real is not None and group.clips.shape == (2, 3, 4, 8, 8)
    scores = kept.said("s0-000000")["fidelity"]["scores"]
    first = (group.clips[0].clamp(-1, 1) / 2 - group.real / 2)[:, :2].square().mean()
    assert scores.shape == (2, 2) and scores[0, 0] == pytest.approx(-float(first), rel=1e-4)


def test_two_writers_of_one_set_lose_nothing(model: Path, tmp_path: Path) -> None:
    make_set(model, how(prompts=6), tmp_path / "alone")
    script = (
        "import sys; from pathlib import Path; from test_preferences import how; "
        "from nas.preferences.making import make_set; "
        "make_set(Path(sys.argv[1]), how(prompts=6), Path(sys.argv[2]))"
    )
    words = [sys.executable, "-W", "ignore", "-c", script, str(model), str(tmp_path / "both")]
    threads = str(torch.get_num_threads())  # sums of as many parts: equal to the last bit
    env = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    here = {"cwd": str(Path(__file__).parent), "stderr": subprocess.PIPE, "env": env}
    both = [subprocess.Popen(words, **here) for _ in range(2)]  # type: ignore[call-overload]
    errors = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    one, two = PreferenceSet(tmp_path / "alone"), PreferenceSet(tmp_path / "both")
    assert equal(clips(one), clips(two)) and one.fingerprint() == two.fingerprint()


def test_a_group_that_another_writer_is_at_is_left_to_it(model: Path, tmp_path: Path) -> None:
    make_set(model, how(prompts=1), tmp_path / "set")
    kept, done = PreferenceSet(tmp_path / "set"), []

    def told(count: int, total: int, name: str) -> None:
        done.append(name)
        lock.close()  # the other one has ended when the rest is made

    lock = Held(kept.lock("s0-000001"))
    make_set(model, how(prompts=3), tmp_path / "set", progress=told)
    assert done == ["s0-000002", "s0-000001"]


class Held:
    def __init__(self, path: Path) -> None:
        self._held: Any = held(path)
        self._held.__enter__()

    def close(self) -> None:
        if self._held is not None:
            self._held.__exit__(None, None, None)
        self._held = None


def test_sets_join_and_another_making_does_not(model: Path, tmp_path: Path) -> None:
    make_set(model, how(prompts=2), tmp_path / "one")
    make_set(model, how(prompts=1, seed=9), tmp_path / "two")
    told = make_set(model, how(prompts=2), tmp_path / "one", join=[tmp_path / "two"])
    assert told["joined"] == 1 and told["groups"] == 3
    make_set(model, how(prompts=1, clips=2), tmp_path / "pairs")
    with pytest.raises(NasError, match="pairs does not join .*: clips is 2 there, 3 here"):
        make_set(model, how(prompts=2), tmp_path / "one", join=[tmp_path / "pairs"])
    with pytest.raises(NasError, match="holds another preference set: clips is 3 there, 4 here"):
        make_set(model, how(clips=4), tmp_path / "one")


# Rewards and labels ---------------------------------------------------------------------------------------------------


def judged(videos: Any) -> Judged:
    return Judged("s0-000000", "a red circle moving left", np.asarray(videos, dtype=np.float32))


def test_rewards_order_clips_as_they_say() -> None:
    rng = np.random.default_rng(0)
    frame = rng.random((8, 8, 3)) * 0.5
    still = np.stack([frame] * 4)
    moving = np.stack([np.roll(frame, t, axis=1) for t in range(4)])
    flickering = still + 0.4 * np.array([0, 1, 0, 1])[:, None, None, None]
    flat = np.full_like(still, 0.3)
    shown = judged([still, moving, flickering, flat])
    motion, flicker, sharpness = (open_reward(name, how(), None)(shown) for name in PIXELS)
    assert motion[0] == motion[3] == 0 < motion[1]
    assert flicker[2] < flicker[1] < flicker[0] == 0
    assert sharpness[3] == 0 < sharpness[0] == pytest.approx(sharpness[1], rel=0.2)


def test_the_prompt_reward_prefers_what_the_caption_says(tmp_path: Path) -> None:
    from nas.data.shapes import MovingShapes

    clip = SimpleNamespace(frames=4, height=12, width=12, fps=4.0)
    cast = DATA.model_copy(update={"kinds": ("circle",), "colours": ("red", "green"), "directions": ("left", "right")})
    config = how(data=cast, classifier_steps=60, classifiers=tmp_path)
    shapes = MovingShapes(cast, clip)
    items = {shapes[i]["caption"]: shapes[i]["video"] for i in range(24)}
    right, wrong = "a red circle moving left", "a green circle moving right"
    videos = torch.stack([items[right], items[wrong]]).permute(0, 1, 3, 4, 2).numpy() / 2 + 0.5
    scores = open_reward("prompt", config, clip)(Judged("s0-000000", right, videos))
    assert scores[0] > scores[1]


def test_win_rates_count_ties_half_and_average_over_what_was_said() -> None:
    wins = wins_of(np.array([[3.0], [1.0], [1.0], [0.0]]), 0.0)
    assert wins[:, 0].tolist() == pytest.approx([1.0, 0.5, 0.5, 0.0])
    assert wins_of(np.array([[1.0], [1.01]]), 0.02).tolist() == [[0.5], [0.5]]
    said = averaged([np.array([[1.0], [0.0]]), np.array([[np.nan], [np.nan]])])
    assert said.tolist() == [[1.0], [0.0]] and averaged([np.full((2, 1), np.nan)]).tolist() == [[0.5], [0.5]]


def test_a_reward_that_answers_no_number_is_one_line(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for answer, said in (([1.0, np.nan, 2.0], r"\[ 1. nan  2.\]"), ([1.0], r"\[1.\]")):
        with pytest.raises(
            NasError, match=f"reward mine: answers {said} for group s0-000000 .*one finite number for ea"
        ):
            checked(np.array(answer), "mine", judged(np.zeros((3, 2, 4, 4, 3))))
    monkeypatch.setitem(REWARDS, "motion", lambda config, clip: lambda shown: np.full(3, np.inf))  # type: ignore[arg-type]
    with pytest.raises(NasError, match="reward motion: answers"):
        make_set(model, how(), tmp_path / "set")
    assert PreferenceSet(tmp_path / "set").names() == ["s0-000000"]  # what was sampled is kept


def test_unknown_rewards_and_settings_are_one_line(model: Path, tmp_path: Path) -> None:
    with pytest.raises(NasError, match="unknown reward 'sharpnes'. Did you mean 'sharpness'?"):
        open_reward("sharpnes", how(), None)
    with pytest.raises(NasError, match="give an ONNX network"):
        open_reward(str(tmp_path / "none.onnx"), how(), None)
    with pytest.raises(NasError, match="no CLIP model with its processor can be read there"):
        open_reward(f"clip:{tmp_path}", how(), None)
    with pytest.raises(NasError, match="use it with kind=guided"):
        make_set(model, how(rewards=("fidelity",)), tmp_path / "set")
    with pytest.raises(NasError, match="clips: must be 2 or more, or there is nothing to prefer, but is 1"):
        settle(PreferConfig, {}, None, ["clips=1"])
    with pytest.raises(NasError, match="kind=guided makes pairs; set clips=2, not 4"):
        settle(PreferConfig, {}, None, ["kind=guided", "clips=4"])
    with pytest.raises(NasError, match="no set.json there; make a preference set with nas prefer"):
        PreferenceSet(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(NasError, match="is not empty and holds no preference set"):
        make_set(model, how(), tmp_path / "mine")


def test_an_onnx_network_scores_clips(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    mean = helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=0)
    shape = helper.make_node("Reshape", ["y", "shape"], ["score"])
    graph = helper.make_graph(
        [mean, shape],
        "mean",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, "t", "h", "w"])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["n", 1])],
        [
            helper.make_tensor("axes", TensorProto.INT64, [4], [1, 2, 3, 4]),
            helper.make_tensor("shape", TensorProto.INT64, [2], [-1, 1]),
        ],
    )
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), tmp_path / "mean.onnx")
    bright = np.stack([np.full((2, 4, 4, 3), level) for level in (0.25, 0.75)])
    assert open_reward(str(tmp_path / "mean.onnx"), how(), None)(judged(bright)).tolist() == pytest.approx([0.25, 0.75])


def write_labels(path: Path, rows: list[tuple[Any, ...]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("group", "segment", "first", "second", "preferred"), *rows])
    return path


def test_a_judge_s_label_stays_only_where_it_survives_swapping_the_order(tmp_path: Path) -> None:
    rows = [
        ("s0-000000", 0, 0, 1, "first"),
        ("s0-000000", 0, 1, 0, "second"),  # the same answer in the other order
        ("s0-000000", 1, 0, 1, "first"),
        ("s0-000000", 1, 1, 0, "first"),  # whatever comes first
        ("s0-000000", 2, 0, 1, "second"),  # asked in one order alone
    ]
    path = write_labels(tmp_path / "labels.csv", rows)
    judge, people = read_labels(path, judge=True), read_labels(path, judge=False)
    assert judge.left_out == 2 and people.left_out == 0
    assert np.nan_to_num(judge.wins("s0-000000", 2, 3), nan=-1).tolist() == [[1, -1, -1], [0, -1, -1]]
    assert np.nan_to_num(people.wins("s0-000000", 2, 3), nan=-1).tolist() == [[1, 0.5, 0], [0, 0.5, 1]]


def test_labels_that_cannot_be_used_are_one_line(model: Path, tmp_path: Path) -> None:
    path = write_labels(tmp_path / "labels.csv", [("s0-000000", "", 0, 1, "first")])
    with pytest.raises(NasError, match="line 2: a label with no segment; give each the number of its segment"):
        read_labels(path, judge=False)
    with pytest.raises(NasError, match="line 2: preferred must be one of first, second, tie"):
        read_labels(write_labels(path, [("s0-000000", 0, 0, 1, "left")]), judge=False)
    path.write_text("group,first,second,preferred\n")
    with pytest.raises(NasError, match="has no column segment"):
        read_labels(path, judge=False)
    told = guided(prompts=1).model_copy(update={"rewards": (f"labels:{path}",)})
    write_labels(path, [("s0-000000", 5, 0, 1, "first")])
    with pytest.raises(NasError, match="names segment 5, clips 0 and 1, but it has segments 0 to 1 and clips 0 to 1"):
        make_set(model, told, tmp_path / "set")
    write_labels(path, [("s0-000000", 1, 0, 1, "first"), ("s0-000077", 0, 0, 1, "first")])
    with pytest.raises(NasError, match="labels name group 's0-000077', which the set does not hold"):
        make_set(model, told, tmp_path / "set")
    found = PreferenceSet(tmp_path / "set").preference("s0-000000")
    assert found is not None and found.tolist() == [[0.5, 1.0], [0.5, 0.0]]


def test_a_damaged_group_is_one_line(model: Path, tmp_path: Path) -> None:
    make_set(model, how(prompts=1, rewards=("motion",)), tmp_path / "set")
    kept = PreferenceSet(tmp_path / "set")
    whole = kept.path("s0-000000").read_bytes()
    for bad in (b"cut", whole[:-4] + b"\0\0\0\0"):
        kept.path("s0-000000").write_bytes(bad)
        with pytest.raises(NasError, match="s0-000000.safetensors: damaged .*delete it and run nas prefer again"):
            kept.read("s0-000000")
    (scores,) = (tmp_path / "set" / "scores" / "motion").glob("*.json")
    scores.write_text(json.dumps({"reward": "motion", "wins": [[1.0]], "scores": None}))
    with pytest.raises(NasError, match="damaged"):
        kept.said("s0-000000")


def test_frames_of_latents_belong_to_the_segment_of_their_last_frame() -> None:
    assert segments_of(6, 2.0, 1.0) == [0, 0, 1, 1, 2, 2]
    assert latent_segments([0, 0, 1, 1, 2, 2, 3, 3], 2, 4) == [1, 3]
    assert latent_segments([0, 0, 0, 1, 1, 1, 1, 2, 2], 3, 4) == [0, 1, 2]  # causal: the first frame is one alone
