"""Every command that writes, small enough to be killed hundreds of times: a folder to work in, and a fork that dies.

A process forked from this one is warm: all is imported, and a command takes what it computes. It ends by ``os._exit``
at a file operation of its own, as `kill -9` ends one: no handler runs, nothing is flushed, the kernel's locks go.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from kills import counted

KILLED = 137
LOCKS = (".lock", "search.lock")
CONFIG = """
data: {source: moving_shapes, max_objects: 1, validation_clips: 4}
train: {steps: 1, warmup_steps: 0, clips: 1, images: 0, paths: fair, workers: 0, threads: 1, trackers: [], keep: 1,
  checkpoint_every: 1, validate_every: 1, ramp_steps: 1}
quality: {clips: 2, batch: 2}
search: {trials: 2, rescored: 1, rescore_clips: 2, sampler: random, allow_estimated: true, halving: false}
samples: {clips: 1, steps: 1}
"""
FINETUNE = """
data: {source: moving_shapes, max_objects: 1, validation_clips: 4}
joint: {steps: 1, clips: 1, images: 0, checkpoint_every: 1, ramp_steps: 1}
"""
PRUNE = """
data: {source: moving_shapes}
prune: {steps: 1, calibration: 2, batch: 2, images: 2, checkpoint_every: 1, ramp_steps: 1, threads: 1}
"""
DEVICE = {
    "name": "board",
    "runtime": "roofline",
    "compute_unit": "CPU",
    "precision": "fp32",
    "roofline": {"peak_tflops": 1.0, "bandwidth_gb_s": 10.0, "source": "made up"},
}
TABLE = "run/table/board/roofline.csv"


@dataclass(frozen=True)
class Command:
    """A command that writes.

    Attributes:
        words: what is run, in a copy of the workshop.
        makes: what it leaves, files or folders; removed beforehand unless ``keeps`` is set.
        keeps: what is there before stands, made by an earlier run of the same command, and is replaced.
        kills: at most so many of its places are tried; few where it takes seconds.
        code: of a command that went well.
    """

    name: str
    words: tuple[str, ...]
    makes: tuple[str, ...]
    keeps: bool = False
    kills: int = 56
    code: tuple[int, ...] = (0,)


SET = ("--config", "config.yaml", "--device", "board.yaml")
PROMPT = ("--prompt", "a red circle moving left", "--steps", "1")
PROFILE = ("profile", "mini.yaml", "--device", "board.yaml", "--table", "run/table")
RANK = ("rank", "run", "--arrangements", "6", "--steps", "1")
FOUND = tuple(f"run/{part}" for part in ("front.csv", "study.journal", "arrangement.yaml", "explain.json"))
SAMPLE = ("sample", "run/model", *PROMPT, "--out", "run/a.mp4")
TUNE = ("finetune", "run/model", "--stage", "joint", "--config", "finetune.yaml", "--out", "run/tuned")
JUDGE = (
    "evaluate",
    "run/model",
    *(w for word in ("clips=2", "steps=1", "classifier_steps=1") for w in ("--set", word)),
)
VBENCH = ("evaluate", "run/model", "--set", "steps=1", "--vbench-out", "run/vbench", "--vbench-prompts", "prompts.txt")
CACHE = ("cache", "videos", "--out", "cached", "--autoencoder", "allegro", "--text", "clip", "--space", "latents.yaml")
PRUNE_IT = ("prune", "source", "--out", "pruned", "--space", "pixels.yaml", "--config", "prune.yaml")
# In the order in which each finds what those before it leave.
COMMANDS = (
    Command("run", ("run", "mini.yaml", "--out", "run", *SET), ("run",), kills=8),
    Command("space show", ("space", "show", "mini.yaml"), ("mini.plan.json",)),
    Command(
        "profile", ("profile", "mini.yaml", "--device", "board.yaml", "--table", "run/table"), ("run/table",), kills=12
    ),
    Command("train", ("train", "mini.yaml", "--out", "run", *SET), ("run/supernet",)),
    Command("search", ("search", "run"), FOUND),
    Command("rank", RANK, ("run/rank.csv", "run/rank.json"), code=(0, 1)),
    Command("build", ("build", "run"), ("run/model",)),
    Command("build over a model", ("build", "run"), ("run/model",), keeps=True),
    Command("export", ("export", "run/model", "--out", "run/coreml", "--parts", "network"), ("run/coreml",), kills=8),
    Command("finetune", TUNE, ("run/tuned",)),
    Command("sample", SAMPLE, ("run/a.mp4", "run/a.png")),
    Command("sample over a video", SAMPLE, ("run/a.mp4", "run/a.png"), keeps=True),
    Command("evaluate", JUDGE, ("run/model/metrics.json", "runs")),
    Command("evaluate for VBench", VBENCH, ("run/vbench",)),
    Command("report", ("report", "run"), ("run/report.html",), keeps=True),
    Command("cache", CACHE, ("cached",)),
    Command("prune", PRUNE_IT, ("pruned",), kills=12),
    Command("table report", ("table", "report", TABLE, "--out", "page.html"), ("page.html",), keeps=True),
    Command("table diff", ("table", "diff", TABLE, TABLE, "--html", "diff.html"), ("diff.html",), keeps=True),
    Command("table merge", ("table", "merge", TABLE, TABLE, "--out", "merged/b/r.csv"), ("merged",)),
    Command("table transfer", ("table", "transfer", "full.csv", "few.csv", "--out", "moved/b/r.csv"), ("moved",)),
    Command("table seal", ("table", "seal", TABLE), (TABLE,), keeps=True),
)


def make_workshop(folder: Path) -> Path:
    """A folder in which every command of ``COMMANDS`` has what it needs, and has been run once."""
    from latent_fixtures import SPACE as LATENTS
    from latent_fixtures import save_allegro, save_text, video_folder
    from search_problems import tiny_problem
    from test_init import save_unet
    from test_prune import PIXELS
    from training_fixtures import clips

    from latency_tables.header import Header
    from latency_tables.table import Table
    from nas.pretrained.text import TextEncoder
    from search_spaces.space import Space

    folder.mkdir(parents=True)
    variants = ["Conv1D(kernel_size=3)", "Conv3D(kernel_size=3)", "SelfAttention1D(heads=1)"]
    places = {name: {"max_layers": 1, "variants": variants} for name in ("down.0.0", "up.2.0")}
    for name, space in {"latents": LATENTS, "pixels": PIXELS, "mini": {**PIXELS, "positions": places}}.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(space))
    for name, text in {"config": CONFIG, "finetune": FINETUNE, "prune": PRUNE}.items():
        (folder / f"{name}.yaml").write_text(text)
    (folder / "board.yaml").write_text(yaml.safe_dump(DEVICE))
    (folder / "prompts.txt").write_text("a red circle moving left\n")
    save_allegro(folder / "allegro")
    save_text(folder / "clip")
    video_folder(folder / "videos", count=2, frames=20)
    save_unet(folder / "source" / "unet", in_channels=3, out_channels=3, sample_size=16)
    text = TextEncoder.small(Space.load(str(folder / "pixels.yaml")), clips().captions)
    text.model.save_pretrained(folder / "source" / "text_encoder")
    text.tokenizer.save_pretrained(folder / "source" / "tokenizer")
    rows = list(tiny_problem().costs.rows.values())
    for name, device, some in (("full", "one", rows), ("few", "other", rows[:4])):
        Table(Header(device, "onnxruntime", precision="fp32"), some).save(folder / f"{name}.csv")
    return folder


def forked(folder: Path, words: Sequence[str], log: Path, fatal: int | None = None) -> int:
    """Run a command in a fork of this process, in ``folder``; it dies at its ``fatal``-th place there.

    Returns:
        The exit code; the number of places is written to ``log``'s ``.places`` where it lived.
    """
    return wait(start(folder, words, log, fatal))


def start(folder: Path, words: Sequence[str], log: Path, fatal: int | None = None) -> int:
    """Begin what ``forked`` does; returns the process's id."""
    process = os.fork()
    if process:
        return process
    code = 99
    try:
        code = _child(folder, words, log, fatal)
    finally:
        os._exit(code)


def wait(process: int, limit_s: float = 300.0) -> int:
    """Its exit code; 124 if it hangs."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(process, 9)
    os.waitpid(process, 0)
    return 124


def _child(folder: Path, words: Sequence[str], log: Path, fatal: int | None) -> int:
    from nas.cli import main

    os.setsid()
    os.chdir(folder)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = io.TextIOWrapper(os.fdopen(1, "wb", 0)), io.TextIOWrapper(os.fdopen(2, "wb", 0))
    with counted(folder, fatal, lambda: os._exit(KILLED)) as counter:
        try:
            main(list(words))
        except SystemExit as stop:
            code = int(stop.code or 0)
    Path(f"{log}.places").write_text(str(counter.passed))
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    return code


def digests(folder: Path, parts: Sequence[str]) -> dict[str, str]:
    """What the parts of a folder hold: every file's content, but for locks, which stay and mean nothing."""
    found = {}
    for part in parts:
        path = folder / part
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            name = str(file.relative_to(folder))
            if file.is_file() and file.name not in LOCKS:
                found[name] = hashlib.sha256(_steady(name, file.read_bytes())).hexdigest()
    return found


def _steady(name: str, data: bytes) -> bytes:
    """A file's content without what may differ and mean the same.

    A trial that was killed keeps its number, so that later ones have others; a lowered network says how many seconds it
    took; a package's program holds maps, which protobuf writes in another order in every process.
    """
    if name.endswith("front.csv"):
        return b"\n".join(line.partition(b",")[2] for line in data.splitlines())
    if name.endswith(".mlmodel"):
        return _in_order(data)
    return b"" if "/.cache/" in name else data


def _in_order(program: bytes) -> bytes:
    """A package's program with its maps in the order of their keys; a torn one as it is, which equals no whole one."""
    from coremltools.proto import Model_pb2
    from google.protobuf.message import DecodeError

    model = Model_pb2.Model()
    try:
        model.ParseFromString(program)
    except DecodeError:
        return program
    whole: bytes = model.SerializeToString(deterministic=True)
    return whole


def clear(folder: Path, command: Command) -> None:
    """Take away what a command leaves, so that it has all to do."""
    for part in () if command.keeps else command.makes:
        path = folder / part
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def age(folder: Path) -> None:
    """Have unfinished files be minutes old: nobody takes them for a living neighbour's."""
    for path in folder.rglob(".*"):
        if path.name.endswith((".partial", ".tmp")):
            os.utime(path, (time.time() - 300,) * 2)
