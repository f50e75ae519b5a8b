"""The README's story on two cores: one command, then its parts; stopped and started again."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from nas.cli import main
from nas.ranking.agreement import CHANCE

SHORT = "train.steps=6 train.warmup_steps=2 train.clips=2 train.images=2 search.trials=4 search.rescore_clips=8"
SETTINGS = [
    word
    for setting in (*SHORT.split(), "quality.clips=8", "data.source=moving_shapes", "samples.steps=2")
    for word in ("--set", setting)
]


def nas(*words: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    return int(stopped.value.code or 0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run that was killed while it profiled, and finished by the same command."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    command = [sys.executable, "-W", "ignore", "-m", "nas.cli", "run", "tiny", "--out", str(out), *SETTINGS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment, start_new_session=True)
    table = out / "table" / "host_cpu" / "onnxruntime.csv"
    while started.poll() is None and not table.exists():
        time.sleep(0.05)
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    assert table.exists()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert nas("run", "tiny", "--out", str(out), *SETTINGS) == 0
    return out


def test_one_command_leaves_a_table_a_model_a_package_and_a_page(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    chosen = metrics["chosen"]
    assert metrics["source"] == "measured" and chosen["measured_status"] == "ok"
    assert chosen["latency_ms_predicted"] <= metrics["budget"]["latency_ms"]
    assert chosen["latency_ms_measured"] > 0 and chosen["peak_mb_measured"] > 0
    assert (run / "coreml" / "unet.mlpackage").is_dir() and metrics["coreml"]["max_rank"] <= 5
    assert (run / "model" / "model_index.json").is_file() and (run / "samples" / "samples.npz").is_file()
    page = (run / "report.html").read_text()
    assert not re.search(r"""(?:src=|<link[^>]+href=|url\()["']?https?:""", page)  # it opens offline
    with (run / "front.csv").open(newline="") as handle:
        front = list(csv.DictReader(handle))
    assert sum(row["chosen"] == "1" for row in front) == 1
    assert len(front) >= 4


def test_the_second_time_nothing_is_done_again(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = json.loads((run / "metrics.json").read_text())
    assert nas("run", "tiny", "--out", str(run), *SETTINGS) == 0
    said = capsys.readouterr().err
    assert said.count("done before") == 7
    after = json.loads((run / "metrics.json").read_text())
    assert after == before


def test_another_budget_takes_neither_training_nor_measuring(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    wider = metrics["budget"]["latency_ms"] * 1.2
    assert nas("search", str(run), "--latency-ms", str(wider), "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["feasible"] and answer["chosen"]["latency_ms"] <= wider
    assert [row["latency_ms"] for row in answer["front"]] == sorted(row["latency_ms"] for row in answer["front"])


def test_an_answer_comes_with_its_reasons_and_with_what_is_known_of_the_ranking(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert nas("search", str(run), "--explain") == 0
    out = capsys.readouterr().out
    assert "ranking    not checked against arrangements trained alone" in out
    assert "design by hand" in out and "reachable  latency_ms" in out and "latency with a margin of 10.0%" in out
    assert json.loads((run / "explain.json").read_text())["evaluations"] >= 4
    code = nas("rank", str(run), "--arrangements", "6", "--steps", "1", "--json")
    told = json.loads(capsys.readouterr().out)
    assert told["count"] == 6 and code == int(told["chance"] > CHANCE or told["tau"] <= 0)
    assert nas("search", str(run)) == 0
    assert "ranking    within 10% of latency" in capsys.readouterr().out
    assert nas("search", str(run), "--scoring", "one_replaced") == 0
    assert "ranking    not checked" in capsys.readouterr().out  # the evidence is of the other scoring
    assert nas("search", str(run), "--scoring", "guess") == 2 and nas("rank", str(run), "--arrangements", "3") == 2
    said = capsys.readouterr().err
    assert "must be one of path, one_replaced" in said and "--arrangements must be 6 or more" in said
    assert nas("search", str(run)) == 0  # leaves the run as the other tests know it


def test_a_budget_below_the_backbone_is_answered_at_once(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "arrangement.yaml").read_bytes()
    assert nas("search", str(run), "--latency-ms", "0.5") == 1
    out = capsys.readouterr().out
    assert "latency_ms 0.500 ms is missed" in out and "nearest feasible budget" in out
    assert (run / "arrangement.yaml").read_bytes() == before


def test_the_parts_work_alone(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert nas("build", str(run), "--out", str(tmp_path / "model"), "--json") == 0
    assert json.loads(capsys.readouterr().out)["difference"] < 1e-4
    words = ["sample", str(tmp_path / "model"), "--prompt", "a red circle moving left", "--steps", "1"]
    assert nas(*words, "--out", str(tmp_path / "circle.mp4")) == 0
    assert (tmp_path / "circle.mp4").stat().st_size > 0 and (tmp_path / "circle.png").is_file()
    assert nas("report", str(run)) == 0
    assert nas("table", "coverage", "tiny", "--dir", str(run / "table")) == 0
    assert nas("table", "validate", "--dir", str(run / "table")) == 0


def test_a_second_profile_with_nothing_to_do_measures_nothing_and_needs_no_torch(run: Path) -> None:
    code = f"""
import sys
from nas.run.costs import profile_space
from pathlib import Path
found = profile_space("tiny", "host_cpu", Path({str(run / "table")!r}))
assert found["new"] == 0, found
assert "torch" not in sys.modules and "onnxruntime" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
