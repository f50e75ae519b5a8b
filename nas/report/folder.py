"""A run folder as it is: every part that is there, and a sentence for every part that is not."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from nas.errors import NasError
from nas.files import read_json, read_text, read_yaml
from search_spaces.arrangement import Arrangement
from search_spaces.plan import Plan
from search_spaces.planning import load_plan
from search_spaces.space import Space
from search_spaces.words import Words

Part = TypeVar("Part")

KINDS = ("real", "noised", "one_step", "sampled", "rebuilt")
NUMBERS = ("loss", "loss_stderr", "latency_ms", "peak_mb", "weights_mb", "parameters")
PART = "_loss"  # ends the column of a part of the loss
SEEN = "clips_seen"  # of a row whose scoring was stopped early
FLAGS = ("feasible", "on_front", "chosen")


@dataclass(frozen=True)
class Row:
    """One evaluated arrangement of ``front.csv``; an unknown number is None."""

    key: str
    origin: str
    layers: tuple[tuple[str, str], ...]
    numbers: Mapping[str, float | None]
    feasible: bool
    on_front: bool
    chosen: bool
    is_baseline: bool = False

    def __getitem__(self, name: str) -> float | None:
        return self.numbers[name]

    @property
    def is_pruned(self) -> bool:
        """Beaten on the first clips, so its loss is an estimate."""
        return self.numbers.get(SEEN) is not None

    @property
    def is_reference(self) -> bool:
        return self.origin.startswith("reference: ")


@dataclass(frozen=True)
class Samples:
    """Clips of each kind, (N, T, H, W, 3) uint8, with their captions."""

    clips: Mapping[str, np.ndarray]
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Sources:
    """Where the table's usable rows come from: how many of each source, and the source of each key."""

    counts: Mapping[str, int]
    by_workload: Mapping[str, str]

    @property
    def word(self) -> str:
        """``measured``, ``estimated`` or ``partly estimated``; empty when there is no table."""
        if not self.counts:
            return ""
        if set(self.counts) == {"measured"}:
            return "measured"
        return "partly estimated" if "measured" in self.counts else "estimated"


@dataclass
class RunFolder:
    """The parts of a run; None where a part is missing, and then ``missing`` says what makes it."""

    path: Path
    metrics: Mapping[str, Any] = field(default_factory=dict)
    front: tuple[Row, ...] = ()
    explained: Mapping[str, Any] = field(default_factory=dict)
    arrangement: Arrangement | None = None
    plan: Plan | None = None
    words: Words = Words()
    fps: float = 8.0
    curves: tuple[Mapping[str, Any], ...] = ()
    headers: tuple[Mapping[str, Any], ...] = ()
    sources: Sources = field(default_factory=lambda: Sources({}, {}))
    samples: Samples | None = None
    missing: dict[str, str] = field(default_factory=dict)


def read_run(path: Path) -> RunFolder:
    """Read a run folder.

    A part that is absent or cannot be read becomes a sentence in ``missing``; a report is never refused for it.

    Raises:
        NasError: if there is no such folder, or nothing of a run in it.
    """
    if not path.is_dir():
        raise NasError(f"{path}: no such run folder; make one with: nas run tiny --out {path}")
    run, absent = RunFolder(path), list[str]()

    def part(name: str, file: str, read: Callable[[Path], Part], stage: str) -> Part | None:
        target = path / file
        if not target.exists():
            absent.append(name)
            run.missing[name] = f"There is no {file} in the run folder yet; it is written by: {stage}"
            return None
        try:
            return read(target)
        except Exception as error:  # whatever a reader makes of damaged bytes: the rest of the page is worth its own
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            run.missing[name] = f"{file} cannot be read ({reason}); write it again with: {stage}"
            return None

    run.metrics = part("metrics", "metrics.json", _metrics, f"nas run ... --out {path}") or {}
    run.front = part("front", "front.csv", _front, f"nas search {path}") or ()
    run.explained = part("explained", "explain.json", _mapping, f"nas search {path}") or {}
    run.arrangement = part("arrangement", "arrangement.yaml", Arrangement.load, f"nas search {path}")
    run.curves = part("curves", "supernet/metrics.jsonl", _jsonl, f"nas train ... --out {path}") or ()
    tables = part("table", "table", _tables, f"nas run ... --out {path}")
    if tables is not None:
        run.headers, run.sources = tables
    run.samples = part("samples", "samples/samples.npz", _samples, f"nas run ... --out {path}")
    if len(absent) == 7:
        raise NasError(f"{path}: holds nothing of a run; make one with: nas run tiny --out {path}")
    name = run.metrics.get("space") or (run.arrangement.space if run.arrangement else None)
    if name:
        try:
            space = Space.load(str(name))
            run.fps = space.clip("training").fps
            run.plan = load_plan(space)
        except Exception as error:  # a space's blocks are anybody's code
            run.missing["plan"] = f"The space {name} cannot be read ({error}), so the network is drawn as a list."
    run.words = (
        Words.of(run.plan) if run.plan else Words(bare=not as_mapping(run.metrics.get("baseline")).get("layers"))
    )
    run.front = tuple(replace(row, is_baseline=_is_baseline(row, run)) for row in run.front)
    return run


def _is_baseline(row: Row, run: RunFolder) -> bool:
    """Whether a row is what the space compares with; where that is not known, whether it has no layers."""
    labels = run.plan.baseline.labels() if run.plan else {}
    return all(text == " + ".join(labels.get(name, ())) for name, text in row.layers)


def _mapping(path: Path) -> Mapping[str, Any]:
    data = read_json(path)
    if not isinstance(data, dict):
        raise ValueError("is no JSON object")
    return data


def _metrics(path: Path) -> Mapping[str, Any]:
    """What a run noted; 0.1 called what it compares with ``empty``."""
    data = dict(_mapping(path))
    return {**data, "baseline": data.get("baseline", data.get("empty", {}))}


def as_mapping(value: Any) -> Mapping[str, Any]:
    """The value, where it is a mapping."""
    return value if isinstance(value, Mapping) else {}


def _number(text: Any) -> float | None:
    """A finite number, or None for what is empty, not a number or infinite."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _front(path: Path) -> tuple[Row, ...]:
    rows = list(csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True))
    if not rows:
        raise ValueError("holds no rows")
    if "key" not in rows[0] or any(None in row or None in row.values() for row in rows):
        raise ValueError("is no table of arrangements: rows and columns do not fit")
    columns = list(rows[0])
    numbers = (*NUMBERS, *(name for name in columns if name.endswith(PART)))
    positions = [name for name in columns if name not in (*numbers, *FLAGS, SEEN, "trial", "origin", "key")]
    return tuple(
        Row(
            key=row["key"],
            origin=row.get("origin") or "",
            layers=tuple((name, row[name] or "") for name in positions),
            numbers={name: _number(row.get(name)) for name in (*numbers, SEEN)},
            **{name: str(row.get(name)).strip().lower() in ("1", "true") for name in FLAGS},
        )
        for row in rows
    )


def _jsonl(path: Path) -> tuple[Mapping[str, Any], ...]:
    """Whole lines alone: the last may be half written while training goes on, and a damaged one costs itself."""
    rows = []
    for line in path.read_bytes().split(b"\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    if not rows:
        raise ValueError("holds no steps")
    return tuple(rows)


def _tables(path: Path) -> tuple[tuple[Mapping[str, Any], ...], Sources]:
    headers, counts, by_workload = [], {"measured": 0, "estimated": 0, "imported": 0}, {}
    for file in sorted(path.glob("*/*.csv")):
        sidecar = file.with_suffix(".yaml")
        header = read_yaml(sidecar) if sidecar.exists() else {}
        headers.append(header if isinstance(header, dict) else {})
        for row in csv.DictReader(io.StringIO(read_text(file), newline=""), strict=True):
            if row.get("status") == "ok" and row.get("source") and row.get("key"):
                counts[row["source"]] = counts.get(row["source"], 0) + 1
                by_workload[row["key"].rpartition("@")[0]] = row["source"]
    if not headers:
        raise ValueError("holds no table")
    return tuple(headers), Sources({name: count for name, count in counts.items() if count}, by_workload)


def _samples(path: Path) -> Samples:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        clips = {kind: arrays[kind] for kind in KINDS if kind in arrays}
    shapes = {clip.shape for clip in clips.values()}
    good = all(clip.ndim == 5 and clip.dtype == np.uint8 and clip.shape[-1] == 3 for clip in clips.values())
    if len(shapes) != 1 or not good or 0 in next(iter(shapes)):
        raise ValueError(f"clips must be uint8 of one shape (N, T, H, W, 3), got {sorted(shapes)}")
    texts = path.with_name("captions.json")
    captions = read_json(texts) if texts.exists() else []
    captions = captions if isinstance(captions, list) else []
    count = next(iter(shapes))[0]
    return Samples(clips, tuple(str(captions[i]) if i < len(captions) else "" for i in range(count)))
