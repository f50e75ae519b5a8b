"""Captions of videos and images, from a CSV or a JSONL of path and caption, with seconds and place if you like."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nas.data.clip import Skip
from nas.data.media import Media
from nas.errors import NasError
from search_spaces.reading import check_text

SUFFIXES = frozenset(
    ".3gp .asf .avi .flv .gif .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .mxf .ogv .ts .vob .webm .wmv".split()
)
IMAGES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
COLUMNS = ("path", "caption", "start", "end", "x", "y")
ROW_OF_ITS_OWN = re.compile(  # a video and a comma: no line within a caption starts so
    rf'[\r\n]+[^,"\r\n]+({"|".join(map(re.escape, sorted(SUFFIXES | IMAGES)))})"?,', re.IGNORECASE
)


@dataclass(frozen=True)
class Caption:
    """What is seen in ``path`` from ``start`` to ``end`` seconds (``end`` may be infinite: to the end).

    ``x``, ``y``: where in the picture it is seen, 0..1 from the left and the top. Clips are cut out around it.
    ``where``: file and line that say so. ``media``: what is opened, where that is not ``path`` itself.
    """

    path: Path
    text: str
    start: float = 0.0
    end: float = math.inf
    x: float = 0.5
    y: float = 0.5
    where: str = field(default="", compare=False)
    media: Media | None = field(default=None, compare=False)


def read_captions(folder: Path, file: Path | None = None, outside: bool = False) -> list[Caption]:
    """The captions of a folder of videos.

    Args:
        folder: relative paths are relative to it.
        file: the CSV (with a header) or JSONL of `path`, `caption` and, optional, `start`, `end` (seconds), `x`, `y`
            (where the subject is, 0..1); by default ``captions.csv`` or ``captions.jsonl`` in ``folder``.
            A video may have several rows: other words for the same seconds, or other seconds. In JSONL a list of
            captions is several captions of one clip.
        outside: whether a path may lead out of ``folder``, by itself or by a link.

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
    root = os.path.realpath(folder)
    captions = [c for line, row in _rows(file) for c in _captions(row, folder, root, f"{file}:{line}", outside)]
    if not captions:
        raise NasError(f"{file}: holds no captions; write one row a video: path,caption")
    return captions


def uncaptioned(folder: Path, captions: Sequence[Caption]) -> list[Skip]:
    """Videos in the folder (not below it) that no caption names."""
    named = {str(caption.media.file) if caption.media else os.path.realpath(caption.path) for caption in captions}
    root = os.path.realpath(folder)
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if os.path.splitext(entry.name)[1].lower() in SUFFIXES:
                real = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(root, entry.name)
                if real not in named:
                    found.append(folder / entry.name)
    return [Skip(path, "has no caption") for path in sorted(found)]


def texts_of(value: Any, where: str) -> list[str]:
    """The caption, or the captions of a list, as text.

    Raises:
        NasError: if it is anything else, empty, or no Unicode text.

    >>> texts_of(["bars move", " a test pattern "], "here")
    ['bars move', 'a test pattern']
    """
    found = value if isinstance(value, list) else [value]
    if not found or any(text is None or (isinstance(text, str) and not text.strip()) for text in found):
        raise NasError(f"{where}: the caption is empty; fill it in or remove the row")
    for text in found:
        if not isinstance(text, str):
            raise NasError(
                f"{where}: the caption is {_kind(text)}: {str(text)[:60]}; write text, or a list of texts for several "
                "captions of one clip"
            )
        if (wrong := check_text(text)) is not None:  # what a prompt may not hold either
            raise NasError(f"{where}: the caption {wrong} ({text[:60]!r}); write plain text")
    return [text.strip() for text in found]


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "nothing")


def _rows(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Rows by line. A line ends at CR, LF or both, as CSV and JSON say: U+2028, NEL and VT are characters of a text."""
    try:
        content = file.read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise NasError(
            f"{file}: cannot be read ({error.strerror or error}); set data.captions to a CSV or JSONL"
        ) from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise NasError(
            f"{file}:{line}: cannot be read as UTF-8 text ({error.reason}); save it as a UTF-8 CSV or JSONL"
        ) from error
    suffix = file.suffix.lower()
    if suffix == ".json":
        raise NasError(f"{file}: one JSON of everything; write one object a line and call it {file.stem}.jsonl")
    yield from _json_rows(file, text) if suffix in (".jsonl", ".ndjson") else _csv_rows(file, text)


def _json_rows(file: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for line, content in enumerate(io.StringIO(text, newline=""), start=1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except (ValueError, RecursionError) as error:
            problem = getattr(error, "msg", None) or "a number or nesting beyond all use"
            raise NasError(f"{file}:{line}: not JSON ({problem}); write one object a line") from error
        if not isinstance(row, dict):
            raise NasError(f'{file}:{line}: not an object; write {{"path": ..., "caption": ...}}')
        yield line, row


def _csv_rows(file: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise NasError(
                f"{file}:{line}: a quote that opens in this row does not close where its cell ends ({error}); "
                'close it, and write a quote inside a quoted cell twice: ""'
            ) from error
        if cells is None:
            return
        if not any(cell.strip() for cell in cells):  # a spreadsheet's blank rows
            continue
        for cell in cells:
            if ROW_OF_ITS_OWN.search(cell):
                raise NasError(f"{file}:{line}: a quote that opens in this row swallows the next ones; close it")
        if header is None:
            header = [cell.strip() for cell in cells]
            _check_header(header, f"{file}:{line}")
            continue
        if len(cells) > len(header):
            raise NasError(f"{file}:{line}: more cells than columns; put a caption with commas in quotes")
        named = itertools.zip_longest(header, cells, fillvalue="")
        yield line, {name: cell for name, cell in named if name or cell.strip()}


def _check_header(header: Sequence[str], where: str) -> None:
    twice = [name for name in header if name and header.count(name) > 1]
    if twice:
        raise NasError(f"{where}: two columns are called {twice[0]!r}; keep one")
    if not {"path", "caption"} <= set(header):
        raise NasError(
            f"{where}: no path or no caption column in {','.join(header)[:60]!r}; the first line names the columns: "
            "path, caption and, optional, start, end, x, y, with commas between"
        )


def _captions(row: Mapping[str, Any], folder: Path, root: str, where: str, outside: bool) -> list[Caption]:
    """The captions of a row, one or, of a list, several."""
    unknown = sorted(str(key) for key in row if key not in COLUMNS)
    if unknown or "path" not in row or "caption" not in row:
        problem = f"unknown column {unknown[0]!r}" if unknown else "no path or no caption column"
        raise NasError(f"{where}: {problem}; the columns are path, caption and, optional, start, end, x, y")
    name = row["path"]
    if name is not None and not isinstance(name, str):
        raise NasError(f"{where}: the path is {_kind(name)}, not text: {str(name)[:60]}")
    if name is None or not name.strip():
        raise NasError(f"{where}: the path is empty; fill it in or remove the row")
    texts = texts_of(row["caption"], where)
    start, end = _number(row.get("start"), 0.0, where), _number(row.get("end"), math.inf, where)
    if not 0 <= start < end:
        raise NasError(f"{where}: start {start:g} and end {end:g} hold no time; give 0 <= start < end in seconds")
    x, y = _number(row.get("x"), 0.5, where), _number(row.get("y"), 0.5, where)
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise NasError(f"{where}: x {x:g} and y {y:g} lie outside the picture; give 0..1 from the left and the top")
    path = folder / name.strip()
    media = Media(path, _inside(path, root, where, outside))
    return [Caption(path, text, start, end, x, y, where, media) for text in texts]


def _inside(path: Path, root: str, where: str, outside: bool) -> Path:
    """Where a path leads, links followed; refused where that is outside the data's folder."""
    try:
        real = os.path.realpath(path)
    except (OSError, ValueError) as error:
        raise NasError(f"{where}: {str(path)!r} is no path ({error}); give one below the data's folder") from None
    if not outside and os.path.commonpath([real, root]) != root:
        raise NasError(
            f"{where}: {path.name} leads out of the data's folder, to {real}; only files inside it are read, unless "
            "data.outside=true allows others"
        )
    return Path(real)


def _number(value: Any, default: float, where: str) -> float:
    if value is None or value == "":
        return default
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise NasError(f"{where}: {value!r} is no number; start and end are seconds, x and y shares; or leave it empty")
    return number
