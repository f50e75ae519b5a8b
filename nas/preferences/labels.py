"""Labels in a CSV: which of two clips of a group is better, segment by segment, as people or a judge said it."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nas.errors import NasError
from nas.files import read_text

COLUMNS = ("group", "segment", "first", "second", "preferred")
SIGNS = {"first": 1.0, "second": -1.0, "tie": 0.0}


@dataclass(frozen=True)
class Labels:
    """Labels of a file by group: (segment, a, b) with a < b -> 1 if a is better, -1 if b is, 0 for a tie.

    Attributes:
        left_out: how many of a judge's answers were left out because they did not survive swapping the order.
    """

    path: Path
    by_group: dict[str, dict[tuple[int, int, int], float]]
    left_out: int = 0

    def wins(self, group: str, clips: int, segments: int) -> NDArray[np.float64]:
        """(k, S) win rates of a group's clips; NaN where the file says nothing.

        Raises:
            NasError: if a label names a clip or a segment that the group does not have.
        """
        total, count = np.zeros((clips, segments)), np.zeros((clips, segments))
        for (segment, a, b), sign in self.by_group.get(group, {}).items():
            if max(a, b) >= clips or segment >= segments:
                raise NasError(
                    f"{self.path}: a label of group {group} names segment {segment}, clips {a} and {b}, but it has "
                    f"segments 0 to {segments - 1} and clips 0 to {clips - 1}"
                )
            for clip, won in ((a, 0.5 + sign / 2), (b, 0.5 - sign / 2)):
                total[clip, segment] += won
                count[clip, segment] += 1
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def read_labels(path: Path, judge: bool) -> Labels:
    """The labels of a CSV with the columns ``group, segment, first, second, preferred`` (first, second or tie).

    Args:
        judge: a model's answers. It must have been asked in both orders, and a label stays only if both agree.

    Raises:
        NasError: naming file, line and what is wrong with it.
    """
    rows = csv.DictReader(io.StringIO(read_text(path), newline=""))
    missing = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
    if missing:
        raise NasError(f"{path}: has no column {', '.join(missing)}; labels need {', '.join(COLUMNS)}")
    said: dict[str, dict[tuple[int, int, int], list[tuple[bool, float]]]] = defaultdict(lambda: defaultdict(list))
    for number, row in enumerate(rows, start=2):
        segment, first, second = (_whole(path, number, name, row[name]) for name in ("segment", "first", "second"))
        preferred = (row["preferred"] or "").strip()
        if preferred not in SIGNS or first == second:
            raise NasError(
                f"{path}: line {number}: preferred must be one of {', '.join(SIGNS)}, of two different clips"
            )
        turned = first > second
        sign = -SIGNS[preferred] if turned else SIGNS[preferred]
        said[row["group"]][segment, min(first, second), max(first, second)].append((turned, sign))
    kept: dict[str, dict[tuple[int, int, int], float]] = {}
    left_out = 0
    for group, answers in said.items():
        kept[group] = {}
        for which, votes in answers.items():
            signs = {sign for _, sign in votes}
            if judge and (len(signs) > 1 or len({turned for turned, _ in votes}) < 2):
                left_out += 1
                continue
            kept[group][which] = float(np.sign(sum(sign for _, sign in votes)))
    return Labels(path, kept, left_out)


def _whole(path: Path, line: int, name: str, text: str | None) -> int:
    if text is None or not text.strip().isdecimal():
        what = "no segment" if name == "segment" and not (text or "").strip() else f"{name} {text!r}"
        raise NasError(f"{path}: line {line}: a label with {what}; give each the number of its {name}, counted from 0")
    return int(text)
