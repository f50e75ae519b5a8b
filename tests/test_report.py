"""The report: every part of a run on one page that opens offline, and a sentence for every part that is missing.

The run folder here is synthetic: `write_fake_run` makes numbers up and says so in the folder's name.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nas.errors import NasError
from nas.report import write_report
from nas.report.drawing import brief, network_svg, skips
from nas.report.figures import curve_figure, front_figure, running_mean
from nas.report.folder import read_run
from nas.report.report import verdict
from nas.report.searching import growth_figure, hypervolume, positions_figure, short_option
from nas.report.strips import animated_strip, sheet
from search_spaces.planning import load_plan
from search_spaces.space import Space

CAPTIONS = ["a grey rabbit climbs out of its burrow", 'a <b>bold</b> & "quoted" <script>alert(1)</script> caption']
MS = {"Conv1D": 1.1, "Conv3D": 3.6, "SelfAttention1D": 2.6, "SelfAttention3D": 7.9, "CrossAttention1D": 1.9}
GAIN = {"Conv1D": 0.012, "Conv3D": 0.024, "SelfAttention1D": 0.015, "SelfAttention3D": 0.026, "CrossAttention1D": 0.006}


def write_fake_run(path: Path, trials: int = 140, sources: tuple[str, ...] = ("measured",)) -> Path:
    """A whole run folder of made-up numbers, shaped like a real one."""
    rng = np.random.default_rng(7)
    space = Space.load("tiny")
    plan = load_plan(space).to_json()
    (path / "supernet").mkdir(parents=True)
    (path / "samples").mkdir()
    (path / "table" / "fake_cpu").mkdir(parents=True)
    arrangements = list({a.key: a for a in [space.empty(), *(space.sample(rng) for _ in range(trials))]}.values())

    def cost(labels: tuple[str, ...], scale: float) -> float:
        return sum(scale * MS.get(label.partition("(")[0], 5.2) for label in labels)

    scales = {p["name"]: p["height"] / 24 for p in plan["positions"]}
    rows = []
    for trial, arrangement in enumerate(arrangements):
        latency = 21.4 + sum(cost(labels, scales[name]) for name, labels in arrangement.labels().items())
        gains = [GAIN.get(v.block, 0.011) * rng.uniform(0.8, 1.2) for _, vs in arrangement.layers for v in vs]
        loss = 0.412 - 0.075 * (1 - math.exp(-sum(gains) / 0.05)) + rng.normal(0, 0.0015)
        peak = 24 + 2.4 * arrangement.num_layers + rng.uniform(0, 8)
        rows.append((trial, arrangement, loss, latency, peak, latency <= 60 and peak <= 48))
    front: list[Any] = []
    for row in sorted((r for r in rows if r[5]), key=lambda r: r[3]):
        if not front or row[2] < front[-1][2]:
            front.append(row)
    chosen = front[-2]
    with (path / "front.csv").open("w", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        names = [position.name for position in space.positions]
        losses = ["loss", "loss_stderr", "velocity_loss", "motion_loss"]
        costs = ["latency_ms", "peak_mb", "weights_mb", "parameters"]
        writer.writerow(["trial", "origin", "key", *names, *losses, *costs, "feasible", "on_front", "chosen"])
        for row in rows:
            trial, arrangement, loss, latency, peak, feasible = row
            labels = [" + ".join(found) for found in arrangement.labels().values()]
            origin = "reference: a design made up by hand" if trial in (3, 9, 20) else "search"
            numbers = [f"{loss:.6f}", "0.002100", f"{loss * 0.9:.6f}", f"{loss * 0.1:.6f}"]
            sizes = [f"{latency:.4f}", f"{peak:.4f}", "0.9000", 240000]
            flags = [int(feasible), int(any(row is f for f in front)), int(row is chosen)]
            writer.writerow([trial, origin, arrangement.key, *labels, *numbers, *sizes, *flags])
    best = chosen[1]
    best.save(path / "arrangement.yaml")
    breakdown: list[dict[str, Any]] = [{"position": "backbone", "layers": [], "latency_ms": 21.4, "weights_mb": 0.754}]
    breakdown[0] |= {"live_mb": 0.0, "point_peak_mb": 24.1, "parameters": 188467, "is_peak": False}
    for name, labels in best.labels().items():
        row = {"position": name, "layers": list(labels), "latency_ms": cost(labels, scales[name])}
        row |= {"weights_mb": 0.05 * len(labels), "live_mb": 2.4, "point_peak_mb": 30.2 if labels else 0.0}
        breakdown.append(row | {"parameters": 12000 * len(labels), "is_peak": name == "up.1.0" and bool(labels)})
    positions = [
        {"position": name, "layers": " + ".join(labels), "loss": 0.01 / (i + 1), "loss_stderr": 0.003, "modelled": 0.01}
        | {"modelled_sd": 0.004, "latency_ms": cost(labels, scales[name]), "peak_mb": 0.2, "parameters": 9000}
        for i, (name, labels) in enumerate(best.labels().items())
        if labels
    ]
    design = {"name": "all Conv3D", "loss": 0.4, "difference": 0.02, "difference_stderr": 0.001, "latency_ms": 80.0}
    explained = {
        "evaluations": trials,
        "regret": 0.001,
        "regret_high": 0.003,
        "model_error": 0.002,
        "loss_spread": 0.01,
    }
    explained |= {"positions": positions, "designs": [design | {"peak_mb": 40.0, "feasible": False}]}
    explained |= {"more": [{"what": "50 ms more", "loss": -0.01, "loss_stderr": 0.002, "tried": 3, "layers": "all"}]}
    (path / "explain.json").write_text(json.dumps(explained))
    metrics = {
        "space": "tiny",
        "device": "fake_cpu",
        "seeds": {"train": 0, "search": 1},
        "versions": {"torch": "2.13.0", "onnxruntime": "1.31.1", "optuna": "5.0.0"},
        "commit": "0123abc",
        "machine": {"cpu": "A made-up processor", "cores": 2},
        "budget": {"latency_ms": 60.0, "memory_mb": 48.0},
        "chosen": {
            "key": best.key,
            "loss": chosen[2],
            "loss_stderr": 0.0021,
            "latency_ms_predicted": chosen[3],
            "latency_ms_measured": chosen[3] * 1.012,
            "peak_mb_predicted": chosen[4],
            "peak_mb_measured": chosen[4] * 0.985,
            "parameters": 241_233,
            "backbone_latency_ms": 21.4,
        },
        "empty": {"loss": rows[0][2]},
        "reachable": {"latency_ms": [21.4, 131.0], "peak_mb": [24.8, 61.2]},
        "timings": {"profile": 48.2, "train": 312.0, "search": 71.4, "build": 2.1, "export": 11.8, "sample": 6.0},
        "coreml": {"operations": 412, "fused attention": 3, "weights_mb": 0.48, "max_rank": 5},
        "breakdown": breakdown,
    }
    (path / "metrics.json").write_text(json.dumps(metrics))
    with (path / "supernet" / "metrics.jsonl").open("w") as handle:
        for step in range(0, 1500, 5):
            decay = 0.4 + 0.9 * math.exp(-step / 180)
            losses = {"loss_video": decay + rng.normal(0, 0.05), "loss_image": 0.9 * decay + rng.normal(0, 0.05)}
            rate = 2e-3 * min(1, step / 60) * (0.5 + 0.5 * math.cos(math.pi * step / 1500))
            row = {"step": step, "loss": decay, **losses, "learning_rate": rate, "seconds": 0.2 * step}
            handle.write(json.dumps(row | {"grad_norm": float(rng.lognormal(0, 0.4)), "path": "random"}) + "\n")
        handle.write('{"step": 1500, "los')  # the last line of a run that was stopped
    keys = [plan["backbone"]["workload"]]
    keys += sorted({layer["workload"] for position in plan["positions"] for layer in position["layers"]})
    with (path / "table" / "fake_cpu" / "onnxruntime.csv").open("w", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(["key", "lowering", "method", "source", "status", "latency_ms_median"])
        for index, key in enumerate(keys):
            writer.writerow([f"{key}@fp32", "plain", "alone", sources[index % len(sources)], "ok", 1.0])
    (path / "table" / "fake_cpu" / "onnxruntime.yaml").write_text(
        "device: fake_cpu\nchip: A made-up processor\nos: Linux 6.1\nruntime: onnxruntime\nruntime_version: 1.31.1\n"
        "compute_unit: cpu\nprecision: fp32\nadditivity: {mape: 0.011, kendall_tau: 0.98, networks: 20}\n"
    )
    np.savez(path / "samples" / "samples.npz", **fake_clips(rng))
    (path / "samples" / "captions.json").write_text(json.dumps(CAPTIONS))
    return path


def fake_clips(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A disc over a slope of colours, sliding; the other kinds are the same made worse."""
    count, frames, side = len(CAPTIONS), 8, 16
    rows, columns = np.indices((side, side))
    real = np.zeros((count, frames, side, side, 3))
    for n in range(count):
        for t in range(frames):
            real[n, t] = np.stack([12 * columns, 10 * rows + 40, np.full((side, side), 150 - 60 * n)], axis=-1)
            real[n, t][(columns - 3 - 1.4 * t) ** 2 + (rows - 8 + n) ** 2 < 14] = (230, 90 + 60 * n, 40)
    noise = rng.normal(0, 70, real.shape)
    smooth = (real + np.roll(real, 1, axis=3) + np.roll(real, 1, axis=2)) / 3
    made = {"real": real, "noised": 0.5 * real + 60 + noise, "one_step": smooth, "sampled": smooth + 0.15 * noise}
    return {kind: np.clip(clip, 0, 255).astype(np.uint8) for kind, clip in made.items()}


@pytest.fixture(scope="module")
def fake_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_run(tmp_path_factory.mktemp("runs") / "synthetic")


@pytest.fixture(scope="module")
def page(fake_run: Path) -> str:
    return write_report(fake_run).read_text()


class Outline(HTMLParser):
    """Tags that open and close in order, ids, images, and everything a page would load."""

    VOID = frozenset({"meta", "link", "img", "source", "br", "path", "rect"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.loads += [values[name] or "" for name in ("src", "href", "srcset") if name in values]
        if tag == "img":
            self.images.append(values)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Nothing stays open."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headings.append(data.strip())


def outline(page: str) -> Outline:
    parser = Outline()
    parser.feed(page)
    assert not parser.open
    return parser


def test_the_page_is_whole_and_loads_nothing(page: str) -> None:
    found = outline(page)
    assert found.headings == [
        "Which layers, where, at what cost",
        "Quality against latency",
        "The arrangement",
        "Why this one",
        "Where the milliseconds and megabytes go",
        "Predicted against measured",
        "Training",
        "What it makes",
        "Core ML package",
        "Where this comes from",
    ]
    assert found.loads and all(load.startswith("data:") for load in found.loads)
    assert not re.search(r"https?://", re.sub(r'<script type="text/plain".*?</script>', "", page, flags=re.S))
    assert all(image["alt"] for image in found.images)
    assert len(page) < 4_000_000
    assert 'class="absent"' not in page


def test_the_reasons_stand_on_the_page(page: str) -> None:
    assert "0.0010 lower in loss on average, and at most 0.0030 in 90%" in page
    assert "cannot be told from nothing" in page and "0.0100 ± 0.0030" in page
    assert (
        "all Conv3D (over the budget)" in page
        and "With 50 ms more, the best of 3 arrangements tried changes it by -0.0100" in page
    )


def test_the_front_s_growth_ends_whole_and_never_shrinks(fake_run: Path) -> None:
    line = growth_figure(read_run(fake_run).front)["data"][0]
    assert line["y"] == sorted(line["y"]) and line["y"][-1] == pytest.approx(100.0)
    assert hypervolume([(1.0, 2.0), (2.0, 1.0), (4.0, 0.0)], 3.0, 3.0) == pytest.approx(3.0)


def test_parallel_lines_are_the_best_arrangements(fake_run: Path) -> None:
    rows = read_run(fake_run).front
    found = positions_figure(rows)["data"][0]
    names = [dimension["label"] for dimension in found["dimensions"]]
    assert names == [name for name, _ in rows[0].layers] + ["loss"]
    losses = sorted(row["loss"] or 0.0 for row in rows if row.feasible)[: len(found["line"]["color"])]
    assert found["line"]["color"] == losses
    first = found["dimensions"][0]
    assert set(first["values"]) == set(first["tickvals"]) and len(first["ticktext"]) == len(first["tickvals"])


def test_the_verdict_says_where_what_and_how_much(fake_run: Path) -> None:
    text = verdict(read_run(fake_run))
    assert re.match(r"Put (.* at (down|up)\.\d\.\d)+.*, and nothing elsewhere\. One", text)
    assert re.search(r"One evaluation on fake_cpu takes [\d.]+ ms, 21.4 ms of it the backbone", text)
    assert re.search(r"peaks at [\d.]+ MB \(measured\)", text)
    assert re.search(r"validation loss is 0\.\d{4}, [\d.]+% below the 0\.\d{4} without layers", text)


def test_a_gain_that_may_be_chance_is_called_so(tmp_path: Path) -> None:
    run = write_fake_run(tmp_path / "synthetic", trials=40)
    metrics = json.loads((run / "metrics.json").read_text())
    for gain, chance in ((0.004, True), (0.04, False), (-0.04, False)):
        metrics["empty"] |= {"gain": gain, "gain_stderr": 0.003}
        metrics["search"] = {"sentence": "chosen because it is cheap <b>"}
        (run / "metrics.json").write_text(json.dumps(metrics))
        assert ("too little to tell from chance" in verdict(read_run(run))) == chance
    assert "Chosen because it is cheap &lt;b&gt;." in write_report(run).read_text()


def test_captions_are_escaped(page: str) -> None:
    assert "<script>alert(1)" not in page and "<b>bold</b>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_estimated_costs_are_called_so_everywhere(tmp_path: Path, page: str) -> None:
    assert "estimated" not in page.lower()
    estimated = write_report(write_fake_run(tmp_path / "synthetic", sources=("estimated",))).read_text()
    assert "<strong>Estimated costs.</strong>" in estimated
    assert "latency of one evaluation, ms (estimated)" in estimated
    assert "latency (estimated)" in estimated
    assert estimated.count("<em>estimated</em>") >= 2 and " est.</text>" in estimated
    mixed = write_report(write_fake_run(tmp_path / "mixed", sources=("measured", "estimated"))).read_text()
    assert "ms (partly estimated)" in mixed


def test_predictions_are_not_called_measured(tmp_path: Path) -> None:
    run = write_fake_run(tmp_path / "synthetic", sources=("estimated",))
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["chosen"] |= {"latency_ms_measured": None, "peak_mb_measured": None}
    (run / "metrics.json").write_text(json.dumps(metrics))
    assert "(predicted from estimated rows)" in verdict(read_run(run))
    assert "off by unknown" in write_report(run).read_text()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("front.csv", "There is no front.csv in the run folder yet; it is written by: nas search"),
        ("arrangement.yaml", "There is no arrangement.yaml"),
        ("metrics.json", "There is no metrics.json"),
        (
            "supernet/metrics.jsonl",
            "There is no supernet/metrics.jsonl in the run folder yet; it is written by: nas",
        ),
        ("samples/samples.npz", "There is no samples/samples.npz"),
        ("table", "There is no table"),
    ],
)
def test_a_missing_part_is_a_sentence(tmp_path: Path, name: str, sentence: str) -> None:
    run = write_fake_run(tmp_path / "synthetic", trials=40)
    (run / name).rename(tmp_path / "away")
    text = write_report(run).read_text()
    outline(text)
    assert sentence in text
    (run / name).write_bytes(b"\x00\xff broken") if name != "table" else (run / name).mkdir()
    text = write_report(run).read_text()
    assert f"{name} cannot be read" in text


def test_a_run_that_only_trained_is_reported(tmp_path: Path) -> None:
    run = write_fake_run(tmp_path / "synthetic", trials=40)
    for name in ("front.csv", "arrangement.yaml", "metrics.json", "samples/samples.npz"):
        (run / name).unlink()
    text = write_report(run).read_text()
    assert "No arrangement has been chosen yet." in text and 'id="loss"' in text and 'id="front"' not in text


def test_no_run_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(NasError, match="no such run folder; make one with: nas run"):
        write_report(tmp_path / "nothing")
    with pytest.raises(NasError, match="holds nothing of a run"):
        write_report(tmp_path)


def test_figures_are_plotly_s(fake_run: Path) -> None:
    graph_objects = pytest.importorskip("plotly.graph_objects")
    run = read_run(fake_run)
    front = front_figure(run.front, run.metrics["budget"], {"latency_ms": 1.0}, "measured", run.words)
    curves = curve_figure(run.curves, {"loss_video": "video", "loss_image": "images"}, "loss")
    for figure in (front, curves):
        painted = json.loads(re.sub(r'"\$\w+"', '"#123456"', json.dumps(figure, allow_nan=False)))
        graph_objects.Figure(painted)
    names = [trace["name"] for trace in front["data"]]
    assert {"chosen", "no layers", "on the front", "within budget", "over budget"} <= set(names)
    marks = sum(len(trace["x"]) for trace in front["data"] if trace["mode"] == "markers")
    assert marks == len(run.front)  # every evaluated arrangement, once
    assert running_mean([1.0] * 9, 4) == [1.0] * 9


def test_numbers_that_are_not_finite_do_not_break_the_page(tmp_path: Path) -> None:
    run = write_fake_run(tmp_path / "synthetic", trials=40)
    lines = (run / "front.csv").read_text().splitlines()
    cells = lines[5].split(",")
    lines[5] = ",".join("inf" if re.fullmatch(r"\d+\.\d{4}", cell) else cell for cell in cells)
    (run / "front.csv").write_text("\n".join(lines))
    with (run / "supernet" / "metrics.jsonl").open("a") as handle:
        handle.write('\n{"step": 1505, "loss": NaN, "loss_video": NaN, "loss_image": 0.4}\n')
    text = write_report(run).read_text()
    figures = re.search(r'id="figures">(.*?)</script>', text, flags=re.S)
    assert figures and not re.search(r"\bNaN\b|\bInfinity\b", figures[1])


def test_skips_of_the_tiny_unet() -> None:
    assert skips(load_plan("tiny").points) == {
        "up.0.0": "down.1.0",
        "up.0.1": "down.0.downsample",
        "up.1.0": "down.0.0",
        "up.1.1": "conv_in",
    }


@pytest.mark.parametrize("name", ["tiny", "snapgen_v"])
def test_every_position_and_layer_is_drawn_once(name: str) -> None:
    space = Space.load(name)
    arrangement = load_plan(space).largest()
    layers = [(position, [v.label for v in variants]) for position, variants in arrangement.layers]
    svg = network_svg(load_plan(space), layers, {}, width=860, title='a "title" <here>')
    for position, _ in layers:
        assert svg.count(f">{position}</text>") == 1
    assert svg.count('class="chip') == arrangement.num_layers
    assert svg.count('class="skip"') == len(skips(load_plan(space).points))
    assert "&quot;title&quot; &lt;here&gt;" in svg


def test_a_backbone_that_is_no_unet_is_drawn_as_a_list() -> None:
    svg = network_svg(None, [("stage.0", ["Odd block!"]), ("stage.1", [])], {"stage.0": "+1 ms"}, width=360, title="x")
    assert svg.count('class="card"') == 2 and "no layer" in svg and "+1 ms" in svg
    assert brief("Odd block!") == "Odd block!" and brief("Conv3D(kernel_size=3)") == "Conv3D k3"


def test_strips_hold_the_frames_exactly() -> None:
    clips = fake_clips(np.random.default_rng(0))
    own = [clip[0] for clip in clips.values()]
    strip = Image.open(io.BytesIO(base64.b64decode(animated_strip(own, 8).partition(",")[2])))
    assert strip.format == "WEBP" and getattr(strip, "n_frames", 0) == 8
    strip.seek(5)
    strip.load()
    assert strip.info["duration"] == 125
    pixels = np.asarray(strip.convert("RGBA"))
    assert np.array_equal(pixels[:, :16, :3], own[0][5]) and np.array_equal(pixels[:, -16:, :3], own[3][5])
    assert pixels[0, 16, 3] == 0  # the gap is see-through
    laid_out = Image.open(io.BytesIO(base64.b64decode(sheet(own).partition(",")[2])))
    assert laid_out.size == (8 * 16 + 7, 4 * 16 + 3)


def test_a_machine_whose_speed_changed_is_not_taken_for_an_error_of_the_sum() -> None:
    from types import SimpleNamespace
    from typing import cast

    from nas.report.folder import RunFolder
    from nas.report.report import _drift

    chosen = {
        "latency_ms_predicted": 100.0,
        "latency_ms_measured": 90.0,
        "backbone_latency_ms": 50.0,
        "backbone_latency_ms_measured": 45.0,
    }
    said = _drift(cast(RunFolder, SimpleNamespace(metrics={"chosen": chosen})))
    assert said is not None and "(-10.0%)" in said and "off by +0.0%" in said
    assert _drift(cast(RunFolder, SimpleNamespace(metrics={"chosen": {"latency_ms_predicted": 100.0}}))) is None


def test_a_block_that_every_option_shares_is_not_said_at_every_tick() -> None:
    assert short_option("LTXBlock(ffn=64,heads=1)", "LTXBlock") == "f64 h1"
    assert short_option("FullConv", "FullConv") == "FullConv" and short_option("", "FullConv") == "none"
    assert short_option("Conv1D(kernel_size=3) + SelfAttention3D(heads=4)") == "C1 k3 + S3 h4"
