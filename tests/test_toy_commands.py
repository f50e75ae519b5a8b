"""A family from another package goes through every command, like one of ours; all tests share one run."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import toy_family

from nas.cli import main
from nas.ranking.agreement import CHANCE
from nas.training.engine import compile_parts

DEVICE = "iphone16_pro_max_roofline"  # estimated: no minutes of timing
TRAIN = "train.steps=3 train.warmup_steps=1 train.clips=2 train.images=2 train.validate_every=0"
SMALL = f"{TRAIN} data.source=moving_shapes quality.clips=4 samples.clips=1 samples.steps=1"
SEARCH = "search.trials=3 search.rescore_clips=4 search.allow_estimated=true"
TUNED = "steps=1 clips=2 images=2 checkpoint_every=1"


def sets(text: str, part: str = "") -> list[str]:
    return [word for setting in text.split() for word in ("--set", part + setting)]


def nas(*words: str | Path) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    return int(stopped.value.code or 0)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the toy's spaces, and its package installed for this process and those that it starts."""
    folder = tmp_path_factory.mktemp("toy")
    here = str(Path(__file__).parent)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(toy_family.write_package(folder)))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), here, os.environ.get("PYTHONPATH", "")]))
        patch.setenv("PYTHONWARNINGS", "ignore")
        patch.setenv("OMP_NUM_THREADS", "1")
        toy_family.write_space(folder)
        toy_family.write_space(folder, plain=True)
        yield folder


@pytest.fixture(scope="module")
def run(place: Path) -> Path:
    """From the space to the page by one command; activations are computed again on the way back."""
    words = ["--device", DEVICE, *sets(f"{SMALL} {SEARCH} train.activation_checkpoints=true")]
    assert nas("run", place / "toy.yaml", "--out", place / "run", *words) == 0
    return place / "run"


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_space_is_shown_and_holds(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert nas("space", "show", place / "toy.yaml") == 0
    told = capsys.readouterr().out
    assert "toy_dit" in told and "1..1" in told and "27" in told
    assert nas("space", "check", place / "toy.yaml") == 0
    assert nas("space", "check", place / "plain.yaml") == 0


def test_the_page_speaks_of_choices(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert "Which block, where, at what cost" in page and "Choose Transformer" in page and "of the baseline" in page
    told = re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.S)
    for word in ("temporal layer", "no layer", "image backbone", "image network", "empty"):
        assert word not in told, word
    assert json.loads((run / "metrics.json").read_text())["baseline"]["layers"] == 3


def test_its_search_is_explained_beside_the_baseline(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert nas("search", run, "--explain", *sets("search.trials=4")) == 0
    told = capsys.readouterr().out
    assert "baseline" in told and "no layers" not in told and "no temporal" not in told


def test_it_is_ranked(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = nas("rank", run, "--arrangements", "6", "--steps", "1", "--json")
    told = json.loads(capsys.readouterr().out)
    assert told["count"] == 6 and code == int(told["chance"] > CHANCE or told["tau"] <= 0)


def test_both_recipes_tune_what_is_built_from_it(run: Path, place: Path) -> None:
    of = sets("data.source=moving_shapes")
    assert nas("build", run, "--out", place / "model") == 0
    joint = sets(f"{TUNED} activation_checkpoints=true", "joint.")
    assert nas("finetune", place / "model", "--stage", "joint", "--out", place / "joint", *of, *joint) == 0
    adversarial = sets(TUNED, "adversarial.")
    words = ["finetune", place / "joint", "--stage", "adversarial", "--out", place / "few", *of, *adversarial]
    assert nas(*words) == 0
    assert nas("sample", place / "few", "--prompt", "a red circle", "--out", place / "a.mp4") == 0
    assert (place / "a.mp4").stat().st_size > 0


@pytest.mark.filterwarnings("ignore")  # torch about its own internals while it compiles
def test_compiled_and_sharded_training_gives_the_losses_of_plain_training(
    run: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Any] = []

    def eagerly(parts: Any) -> None:
        compiled.extend(parts)
        compile_parts(compiled, "eager")

    monkeypatch.setattr("nas.training.engine.compile_parts", eagerly)
    plain = sets(SMALL)
    assert nas("train", place / "toy.yaml", "--out", place / "fast", *plain, *sets("train.compile=true")) == 0
    assert compiled and losses(place / "fast" / "supernet") == pytest.approx(losses(run / "supernet"), rel=1e-4)
    monkeypatch.undo()
    shared = [*plain, *sets("train.shard=true"), "--processes", "2"]
    assert nas("train", place / "toy.yaml", "--out", place / "two", *shared) == 0
    assert losses(place / "two" / "supernet") == pytest.approx(losses(run / "supernet"), rel=1e-3)


def test_a_space_without_text_is_searched_and_what_cannot_be_built_is_one_line(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--device", DEVICE, *sets(f"{SMALL} {SEARCH}")]
    assert nas("run", place / "plain.yaml", "--out", place / "plain", *words) == 2
    assert "space plain reads no text" in capsys.readouterr().err
    assert (place / "plain" / "arrangement.yaml").is_file()
