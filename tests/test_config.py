"""Configuration: typed, with a path in every complaint, stored with the run."""

from __future__ import annotations

from pathlib import Path

import pytest

from nas.config import load, resolve, store
from nas.errors import NasError


def test_file_and_flags_override_the_spaces_defaults(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("train: {steps: 7, clips: 3}\nsearch: {trials: 5}\n")
    config = resolve("tiny", "host_torch", file, ["train.steps=9", "train.learning_rate=1e-4"])
    assert (config.train.steps, config.train.clips, config.search.trials) == (9, 3, 5)
    assert config.train.learning_rate == 1e-4 and config.device == "host_torch"
    assert resolve("tiny").data.source == "sample_clips"


def test_the_papers_recipe_is_there_by_name_and_freezes_and_evolves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = resolve("tiny", None, Path("paper"), ["train.steps=7"])
    assert config.train.spatial_rate == 0.0 and config.search.sampler == "nsga2" and config.train.steps == 7
    assert config.data.source == "sample_clips"  # the space's own defaults stay
    monkeypatch.chdir(tmp_path)
    (tmp_path / "paper").write_text("train: {steps: 3}")  # a file of that name comes first
    assert resolve("tiny", None, Path("paper")).train.steps == 3
    with pytest.raises(NasError, match="no such file"):
        resolve("tiny", None, Path("papers"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("train.stepz=3", "train.stepz: unknown key. Did you mean 'steps'?"),
        ("trian.steps=3", "trian: unknown key. Did you mean 'train'?"),
        ("train.steps=abc", "train.steps: .*'abc'"),
        ("train.steps=0", "train.steps: .*greater than or equal to 1, but is 0"),
        ("train.paths=best", "train.paths: .*'uniform', 'fair', 'sandwich' or 'within_budget'"),
        ("steps", "must be KEY=VALUE"),
        (".steps=1", "must be KEY=VALUE"),
    ],
)
def test_a_wrong_setting_is_named_with_its_path(text: str, says: str) -> None:
    with pytest.raises(NasError, match=says) as caught:
        resolve("tiny", sets=[text])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["[1, 2]", "a: [", "\x00"])
def test_a_file_that_is_no_configuration_is_refused(content: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    with pytest.raises(NasError, match="mine.yaml") as caught:
        resolve("tiny", file=file)
    assert "\n" not in str(caught.value)
    with pytest.raises(NasError, match="no such file"):
        resolve("tiny", file=tmp_path / "nowhere.yaml")


def test_what_shapes_no_loss_may_be_told_otherwise_later(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    store(resolve("tiny"), run)
    for text in ("train.activation_checkpoints=true", "train.device=cuda", "train.shard=true", "search.trials=50"):
        other = resolve("tiny", sets=[text])
        store(other, run)
        assert load(run) == other
    assert capsys.readouterr().err.splitlines()[0] == "config     train.activation_checkpoints is now true, was false"
    with pytest.raises(NasError, match="train.clips is '8' there, '9' here"):
        store(resolve("tiny", sets=["train.clips=9", "train.keep=9"]), run)
    assert load(run) == other


def test_limits_that_draw_the_paths_are_kept(tmp_path: Path) -> None:
    sets = ["train.paths=within_budget", "search.latency_ms=100"]
    store(resolve("tiny", sets=sets), tmp_path)
    store(resolve("tiny", sets=[*sets, "search.trials=7"]), tmp_path)
    with pytest.raises(NasError, match="search.latency_ms is '100.0' there"):
        store(resolve("tiny", sets=[*sets, "search.latency_ms=90"]), tmp_path)


def test_the_stored_configuration_comes_back_and_another_is_refused(tmp_path: Path) -> None:
    config = resolve("tiny", sets=["seed=4"])
    store(config, tmp_path / "run")
    assert load(tmp_path / "run") == config
    store(config, tmp_path / "run")
    with pytest.raises(NasError, match="seed is '4' there, '5' here"):
        store(resolve("tiny", sets=["seed=5"]), tmp_path / "run")
    with pytest.raises(NasError, match="no run folder"):
        load(tmp_path)
