"""VBench's protocol by dimension: noise of its own for every video, 25 videos for flickering, and a record of both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tuning_fixtures import DATA, make_model

from nas.errors import NasError
from nas.evaluate import EvaluateConfig, render, vbench_folder, vbench_scores
from nas.evaluate.vbench import EACH, FLICKERING_EACH, read_counts, read_results, seed_of


def test_flickering_wants_25_videos_of_its_prompts_and_the_others_five(tmp_path: Path) -> None:
    entries = [
        {"prompt_en": "a still lake", "dimension": ["temporal_flickering"]},
        {"prompt_en": "a cat", "dimension": ["scene"]},
        {"prompt_en": "a cat", "dimension": ["temporal_flickering", "color"]},
        {"prompt_en": "a dog"},
    ]
    (tmp_path / "full.json").write_text(json.dumps(entries))
    assert read_counts(tmp_path / "full.json") == {"a still lake": 25, "a cat": 25, "a dog": 5}
    for name, count in (("temporal_flickering", FLICKERING_EACH), ("scene", EACH)):
        (tmp_path / f"{name}.txt").write_text("a still lake\n")
        assert read_counts(tmp_path / f"{name}.txt") == {"a still lake": count}
    (tmp_path / "wrong.json").write_text('[{"prompt_en": ["a"]}]')
    with pytest.raises(NasError, match="is no list of prompts"):
        read_counts(tmp_path / "wrong.json")


def test_every_video_has_noise_of_its_own() -> None:
    seeds = {seed_of(seed, prompt, number) for seed in (0, 1) for prompt in ("a", "b") for number in range(25)}
    assert len(seeds) == 100 and all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(0, "a", 3) == seed_of(0, "a", 3)


def test_what_was_done_stands_beside_the_scores(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    (tmp_path / "temporal_flickering.txt").write_text("a red circle\n")
    out = tmp_path / "vbench"
    config = EvaluateConfig(data=DATA, steps=1)
    told = vbench_folder(model, tmp_path / "temporal_flickering.txt", out, config)
    assert told["vbench"]["videos"] == 25 == len(list((out / "videos").iterdir()))
    assert "static_filter.py --videos_path" in told["vbench"]["static_filter"] and "static" in render(told)
    seeds = json.loads((out / "seeds.json").read_text())
    assert seeds == {f"a red circle-{i}.mp4": seed_of(config.seed, "a red circle", i) for i in range(25)}

    def results(folder: str, count: int = 2) -> dict[str, Any]:
        listed = [{"video_path": f"{folder}/a-{i}.mp4", "video_results": 0.5} for i in range(count)]
        (out / "results").mkdir(exist_ok=True)
        (out / "results" / "r_eval_results.json").write_text(json.dumps({"temporal_flickering": [0.5, listed]}))
        return vbench_scores(model, out / "results")

    told = results(str(out / "static" / "filtered_videos"))
    protocol = told["vbench"]["protocol"]
    assert protocol["dimensions"] == {"temporal_flickering": {"videos": 2, "static_filter": "applied"}}
    assert protocol["sampled"]["steps"] == 1 and "25 of temporal_flickering" in protocol["sampled"]["protocol"]
    kept = json.loads((model / "metrics.json").read_text())["evaluation"]["vbench"]
    assert kept["protocol"] == json.loads(json.dumps(protocol))
    assert "static filter not applied" in render(results(str(out / "videos")))
    with pytest.raises(NasError, match="its videos were made with another model"):
        vbench_scores(make_model(tmp_path / "other", seed=1), out / "results")


def test_scores_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    (tmp_path / "r_eval_results.json").write_text('{"scene": [NaN, []]}')
    with pytest.raises(NasError, match="the score of scene: is nan"):
        read_results(tmp_path)
