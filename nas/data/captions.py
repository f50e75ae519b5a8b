"""Captions of videos and images, from a CSV or a JSONL of path and caption, with seconds and place if you like."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas.data.clip import Skip
from nas.errors import NasError

SUFFIXES = frozenset({".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".webm"})
IMAGES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
COLUMNS = ("path", "caption", "start", "end", "x", "y")


@dataclass(frozen=True)
class Caption:
    """What is seen in ``path`` from ``start`` to ``end`` seconds (``end`` may be infinite: to the end).

    ``x``, ``y``: where in the picture it is seen, 0..1 from the left and the top. Clips are cut out around it.
    """

    path: Path
    text: str
    start: float = 0.0
    end: float = math.inf
    x: float = 0.5
    y: float = 0.5


def read_captions(folder: Path, file: Path | None = None) -> list[Caption]:
    """The captions of a folder of videos.

    Args:
        folder: relative paths are relative to it.
        file: the CSV (with a header) or JSONL of `path`, `caption` and, optional, `start`, `end` (seconds), `x`, `y`
            (where the subject is, 0..1); by default ``captions.csv`` or ``captions.jsonl`` in ``folder``.
            A video may have several rows: other words for the same seconds, or other seconds.

    Raises:
        NasError: if the folder or the file is not there, or a row is not understood; it names file and line.
    """
    if not folder.is_dir():
        raise NasError(f"{folder}: no such folder of videos; set data.path to one")
    if file is None:
        candidates = [folder / "captions.csv", folder / "captions.jsonl"]
        file = next((c for c in candidates if c.is_file()), None)
        if file is None:
            raise NasError(f"{folder}: no captions.csv or captions.jsonl; write one row a video: path,caption")
    elif not file.is_file():
        raise NasError(f"{file}: no such captions file; set data.captions to a CSV or JSONL of path and caption")
    captions = [_caption(row, folder, f"{file}:{line}") for line, row in _rows(file)]
    if not captions:
        raise NasError(f"{file}: holds no captions; write one row a video: path,caption")
    return captions


def uncaptioned(folder: Path, captions: Sequence[Caption]) -> list[Skip]:
    """Videos in the folder (not below it) that no caption names."""
    named = {caption.path.resolve() for caption in captions}
    videos = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    return [Skip(path, "has no caption") for path in videos if path.resolve() not in named]


def _rows(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise NasError(f"{file}: cannot be read as UTF-8 text ({error}); save it as a UTF-8 CSV or JSONL") from error
    if file.suffix.lower() in (".jsonl", ".ndjson"):
        for line, content in enumerate(text.splitlines(), start=1):
            if not content.strip():
                continue
            try:
                row = json.loads(content)
            except json.JSONDecodeError as error:
                raise NasError(f"{file}:{line}: not JSON ({error.msg}); write one object a line") from error
            if not isinstance(row, dict):
                raise NasError(f'{file}:{line}: not an object; write {{"path": ..., "caption": ...}}')
            yield line, row
        return
    reader = csv.DictReader(text.splitlines(keepends=True), skipinitialspace=True)
    for row in reader:
        if None in row:
            raise NasError(f"{file}:{reader.line_num}: more cells than columns; put a caption with commas in quotes")
        yield reader.line_num, row


def _caption(row: Mapping[str, Any], folder: Path, where: str) -> Caption:
    unknown = sorted(str(key) for key in row if key not in COLUMNS)
    if unknown or not {"path", "caption"} <= row.keys():
        problem = f"unknown column {unknown[0]!r}" if unknown else "no path or no caption column"
        raise NasError(f"{where}: {problem}; the columns are path, caption and, optional, start, end, x, y")
    path, text = str(row["path"] or "").strip(), str(row["caption"] or "").strip()
    if not path or not text:
        raise NasError(f"{where}: the {'path' if not path else 'caption'} is empty; fill it in or remove the row")
    start, end = _number(row.get("start"), 0.0, where), _number(row.get("end"), math.inf, where)
    if not 0 <= start < end:
        raise NasError(f"{where}: start {start:g} and end {end:g} hold no time; give 0 <= start < end in seconds")
    x, y = _number(row.get("x"), 0.5, where), _number(row.get("y"), 0.5, where)
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise NasError(f"{where}: x {x:g} and y {y:g} lie outside the picture; give 0..1 from the left and the top")
    return Caption(folder / path, text, start, end, x, y)


def _number(value: Any, default: float, where: str) -> float:
    if value is None or value == "":
        return default
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if math.isnan(number):
        raise NasError(f"{where}: {value!r} is no number; start and end are seconds, x and y shares; or leave it empty")
    return number
