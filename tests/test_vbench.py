"""VBench: the folder that it reads, and its results read back."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
from tuning_fixtures import DATA, make_model

from nas.errors import NasError
from nas.evaluate import EvaluateConfig, vbench_folder, vbench_scores
from nas.evaluate.vbench import QUALITY, SEMANTIC, read_counts, read_results, write_folder


def frame_maker(made: list[tuple[str, int]]) -> object:
    def sample(prompt: str, number: int) -> np.ndarray:
        made.append((prompt, number))
        return np.full((4, 16, 16, 3), 40 * number, np.uint8)

    return sample


def test_five_videos_of_each_prompt_lie_where_vbench_looks(tmp_path: Path) -> None:
    made: list[tuple[str, int]] = []
    told = write_folder(tmp_path, ["a cat", "a red ball, rolling"], frame_maker(made), 8)  # type: ignore[arg-type]
    names = {path.name for path in (tmp_path / "videos").iterdir()}
    assert names == {f"{prompt}-{i}.mp4" for prompt in ("a cat", "a red ball, rolling") for i in range(5)}
    assert told["videos"] == 10 and "--videos_path" in told["command"]
    with av.open(str(tmp_path / "videos" / "a cat-3.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 4


def test_a_stopped_folder_is_continued(tmp_path: Path) -> None:
    made: list[tuple[str, int]] = []
    write_folder(tmp_path, ["a cat"], frame_maker(made), 8, each=2)  # type: ignore[arg-type]
    write_folder(tmp_path, ["a cat", "a dog"], frame_maker(made), 8, each=2)  # type: ignore[arg-type]
    assert made == [("a cat", 0), ("a cat", 1), ("a dog", 0), ("a dog", 1)]


def test_results_are_read_back_from_one_file_or_several(tmp_path: Path) -> None:
    scores = dict.fromkeys(QUALITY + SEMANTIC, 1.0)
    scores |= {"dynamic_degree": 0.0, "scene": 0.4111}
    for name, part in (("a", QUALITY), ("b", SEMANTIC)):
        result = {dimension: [scores[dimension], [{"video_path": "x", "video_results": 1}]] for dimension in part}
        (tmp_path / f"{name}_eval_results.json").write_text(json.dumps(result))
    found = read_results(tmp_path)
    assert found["dimensions"] == scores
    stretched = [(1 - 0.706) / (0.9975 - 0.706) if name == "motion_smoothness" else 1.0 for name in QUALITY]
    assert found["quality"] == pytest.approx((sum(stretched) - 1) / 6.5)  # the dynamic degree counts half, and is 0
    assert found["total"] == pytest.approx((4 * found["quality"] + found["semantic"]) / 5)
    assert read_results(tmp_path / "a_eval_results.json")["semantic"] is None


def test_prompts_are_read_from_vbenchs_own_file_or_from_lines(tmp_path: Path) -> None:
    (tmp_path / "full.json").write_text(json.dumps([{"prompt_en": "a cat", "dimension": ["scene"]}] * 2))
    (tmp_path / "lines.txt").write_text("a cat\n\na dog\n")
    assert list(read_counts(tmp_path / "full.json")) == ["a cat"]
    assert list(read_counts(tmp_path / "lines.txt")) == ["a cat", "a dog"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("p.json", '{"a": 1}', "is no list of prompts with prompt_en"),
        ("p.json", "{", "is no list of prompts"),
        ("p.txt", "\n", "names no prompt"),
        ("p.txt", "either/or", "cannot name a file"),
    ],
)
def test_prompts_that_cannot_be_used_are_one_line(name: str, text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(NasError, match=said):
        read_counts(tmp_path / name)
    with pytest.raises(NasError, match="no such file"):
        read_counts(tmp_path / "none.txt")
    (tmp_path / name).write_bytes(b"caf\xe9")
    with pytest.raises(NasError, match="is not text in UTF-8 .byte 3"):
        read_counts(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "said"), [("{", "is no result of VBench"), ('{"beauty": 1}', "unknown dimension 'beauty'")]
)
def test_damaged_results_are_one_line(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "x_eval_results.json").write_text(text)
    with pytest.raises(NasError, match=said):
        read_results(tmp_path)
    with pytest.raises(NasError, match="no \\*_eval_results.json there"):
        read_results(tmp_path / "nowhere")


def test_a_model_fills_the_folder_and_keeps_the_scores(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("a red circle moving left\n")
    told = vbench_folder(model, tmp_path / "prompts.txt", tmp_path / "vbench", EvaluateConfig(data=DATA, steps=1))
    videos = sorted((tmp_path / "vbench" / "videos").iterdir())
    assert told["vbench"]["videos"] == len(videos) == 5
    assert len({video.read_bytes() for video in videos}) == 5  # five noises
    (tmp_path / "r_eval_results.json").write_text(json.dumps({"scene": [0.5, []]}))
    vbench_scores(model, tmp_path / "r_eval_results.json")
    kept = json.loads((model / "metrics.json").read_text())
    assert kept["evaluation"]["vbench"]["dimensions"] == {"scene": 0.5}
    # Whatever else would make other videos is refused: nobody could tell them apart later.
    (tmp_path / "vbench" / "videos" / videos[0].name).unlink()
    with pytest.raises(NasError, match="made.json: .*steps is 1, now 2.*another --vbench-out"):
        vbench_folder(model, tmp_path / "prompts.txt", tmp_path / "vbench", EvaluateConfig(data=DATA, steps=2))
    other = make_model(tmp_path / "other", seed=1)
    with pytest.raises(NasError, match="weights is "):
        vbench_folder(other, tmp_path / "prompts.txt", tmp_path / "vbench", EvaluateConfig(data=DATA, steps=1))
    vbench_folder(model, tmp_path / "prompts.txt", tmp_path / "vbench", EvaluateConfig(data=DATA, steps=1))
    assert len(list((tmp_path / "vbench" / "videos").iterdir())) == 5
    (tmp_path / "vbench" / "made.json").unlink()
    with pytest.raises(NasError, match="holds videos, but no made.json"):
        vbench_folder(model, tmp_path / "prompts.txt", tmp_path / "vbench", EvaluateConfig(data=DATA, steps=1))
