"""Pruning of chosen blocks: the least harm within a target, found greedily or at once, stopped and gone on with."""

from __future__ import annotations

import csv
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import LTXVideoTransformer3DModel
from training_fixtures import clips

from nas.cli import main
from nas.errors import NasError
from nas.model.made_with import data_of
from nas.model.network import VideoUNet
from nas.pretrained.text import TextEncoder
from nas.prune import prune_network
from nas.prune.config import PruneSettings
from nas.prune.missed import Missed
from nas.prune.solve import least_harm
from nas.prune.space_cuts import Cuttable, change
from nas.training.checkpoint import list_checkpoints
from search_spaces.arrangement import Arrangement
from search_spaces.planning import load_plan
from search_spaces.space import Space
from search_spaces.variant import Variant


def test_the_least_harm_is_that_of_trying_all() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        harms, costs = ([rng.random(4) for _ in range(5)] for _ in range(2))
        room = float(rng.uniform(1.0, 3.0))
        sums = {
            choice: tuple(sum(part[p][o] for p, o in enumerate(choice)) for part in (harms, costs))
            for choice in itertools.product(range(4), repeat=5)
        }
        fitting = [harm for harm, cost in sums.values() if cost <= room]
        found = least_harm(harms, costs, room)
        if not fitting:
            assert found is None
            continue
        assert found is not None and sums[tuple(found)][1] <= room + 1e-12
        within = 5 / 16_384 * room
        assert sums[tuple(found)][0] <= min(harm for harm, cost in sums.values() if cost <= room - within) + 1e-12


def test_a_step_is_to_the_next_smaller_and_units_are_kept_to() -> None:
    space = Space.load("tiny_dit")
    cuts = [cut for cut, _ in Cuttable(space, ("blocks", "heads", "channels")).smaller(space.baseline())]
    assert [cut for cut in cuts if cut.startswith("block.0")] == [
        "block.0: ffn 256 to 128",
        "block.0: heads 4 to 2",
        "block.0: out",
    ]
    heads = Cuttable(space, ("heads",))
    assert {cut.partition(": ")[2] for cut, _ in heads.smaller(space.baseline())} == {"heads 4 to 2"}
    narrow = (Variant.of("LTXBlock", heads=1, ffn=64, size=16),)
    assert change("block.1", space.baseline().at("block.1"), narrow) == "block.1: heads 4 to 1, ffn 256 to 64"
    with pytest.raises(NasError, match="offers nothing smaller than its baseline"):
        Cuttable(Space.load("tiny"), ("heads",))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A transformer's folder and a text model's, both small and random."""
    folder = tmp_path_factory.mktemp("given")
    torch.manual_seed(0)
    model = LTXVideoTransformer3DModel(
        in_channels=48,
        out_channels=48,
        num_attention_heads=4,
        attention_head_dim=16,
        cross_attention_dim=64,
        num_layers=6,
        caption_channels=32,
    )
    model.save_pretrained(str(folder / "transformer"))
    text = TextEncoder.small(Space.load("tiny_dit"), clips().captions)
    text.model.save_pretrained(folder / "text")  # type: ignore[operator, union-attr]
    text.tokenizer.save_pretrained(folder / "text")
    return str(folder), str(folder / "text")


def pruned(source: tuple[str, str], out: Path, target: float = 250e3, **prune: Any) -> dict[str, Any]:
    torch.set_num_threads(1)
    few = {"steps": 0, "calibration": 2, "batch": 2, "threads": 1, **prune}
    settings = PruneSettings.model_validate({"data": {"source": "moving_shapes"}, "prune": few})
    return prune_network(source[0], "tiny_dit", out, settings, parameters=target, text=source[1])


@pytest.mark.parametrize(
    "how", [{"method": "exact"}, {"method": "greedy"}, {"score": "magnitude"}, {"score": "random"}]
)
def test_what_is_left_meets_the_target_and_is_a_model(
    source: tuple[str, str], tmp_path: Path, how: dict[str, Any]
) -> None:
    told = pruned(source, tmp_path / "out", **how)
    space = Space.load("tiny_dit")
    chosen = Arrangement.load(tmp_path / "out" / "arrangement.yaml")
    model = VideoUNet.from_pretrained(str(tmp_path / "out" / "model" / "unet"))
    assert model.arrangement == chosen
    assert sum(p.numel() for p in model.parameters()) == told["parameters"] == load_plan(space).parameters(chosen)
    assert 0 < told["parameters"] <= 250e3 < told["parameters_before"] and told["missed"] > 0
    assert told["saved"]["blocks"] + told["saved"]["widths"] == told["parameters_before"] - told["parameters"]
    rows = list(csv.DictReader((tmp_path / "out" / "sensitivity.csv").read_text().splitlines()))
    assert len(rows) == told["trials"] and {"arrangement", "cut", "missed", "parameters"} == set(rows[0])
    assert data_of(tmp_path / "out" / "model")["data"]["source"] == "moving_shapes"  # what a fine-tuning goes on with
    # Nothing more fits: the last step gave back what did, as long as less was missed by it.
    assert json.loads((tmp_path / "out" / "cuts.json").read_text())["cuts"] == told["cuts"]
    if how.get("score") == "magnitude":
        larger = Cuttable(space, ("blocks", "heads", "channels")).larger(chosen)
        assert all(load_plan(space).parameters(one) > 250e3 for _, one in larger)


def test_a_pruning_that_was_stopped_goes_on_where_it_was(
    source: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = pruned(source, tmp_path / "straight", method="greedy")
    real, asked = Missed.__call__, []

    def stops(self: Missed, arrangement: Arrangement) -> float:
        asked.append(arrangement.key)
        if len(asked) == 8:
            raise KeyboardInterrupt
        return real(self, arrangement)

    monkeypatch.setattr(Missed, "__call__", stops)
    with pytest.raises(KeyboardInterrupt):
        pruned(source, tmp_path / "stopped", method="greedy")
    trials = tmp_path / "stopped" / "sensitivity.csv"
    trials.write_text(trials.read_text() + "abc,block.0: ou")  # the line that was being written
    again = pruned(source, tmp_path / "stopped", method="greedy")
    assert again["cuts"] == straight["cuts"] and again["missed"] == straight["missed"]
    assert len(asked) == len(set(asked)) + 1 + 1  # the one that was stopped in, and the chosen one for the report
    text = (tmp_path / "straight" / "sensitivity.csv").read_text()
    assert trials.read_text() == text


def test_a_target_under_the_smallest_network_names_that_one(source: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(
        NasError, match="no cut leads to 10,000: the smallest network of space tiny_dit .* takes 58,224"
    ):
        pruned(source, tmp_path / "out", target=10e3)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "more, message",
    [
        ([], "give a target: --parameters, --latency-ms, --memory-mb"),
        (["--parameters", "1e5", "--memory-mb", "3"], "--parameters and --memory-mb are two targets; give one"),
        (["--parameters", "2e5"], "has no text encoder; name one with --text"),
    ],
)
def test_wrong_use_is_one_line(
    source: tuple[str, str], tmp_path: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told = ["prune", source[0], "--space", "tiny_dit", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as caught:
        main([*told, "--set", "data.source=moving_shapes", "--set", "prune.steps=0", *more])
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert caught.value.code == 2 and message in said


def test_what_is_left_recovers_and_goes_on_where_it_was_stopped(source: tuple[str, str], tmp_path: Path) -> None:
    more = {"score": "magnitude", "learning_rate": 3e-3, "images": 2, "ramp_steps": 1, "checkpoint_every": 2}
    told = pruned(source, tmp_path / "out", steps=6, **more)
    assert told["missed"] < told["missed_before_recovery"]
    rows = (tmp_path / "out" / "recovery" / "metrics.jsonl").read_text()
    shutil.rmtree(list_checkpoints(tmp_path / "out" / "recovery")[-1])
    shutil.rmtree(tmp_path / "out" / "model")
    again = pruned(source, tmp_path / "out", steps=6, **more)
    assert again == told and (tmp_path / "out" / "model" / "model_index.json").is_file()
    parts = [{k: v for k, v in json.loads(row).items() if k.startswith(("loss", "step"))} for row in rows.splitlines()]
    lines = (tmp_path / "out" / "recovery" / "metrics.jsonl").read_text().splitlines()
    assert [{name: json.loads(row)[name] for name in part} for row, part in zip(lines, parts, strict=True)] == parts
    assert {"loss_task", "loss_output", "loss_features"} <= set(parts[0])
