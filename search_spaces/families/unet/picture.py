"""How a UNet is drawn: the way down on the left, the way up on the right, each beside what it reads across."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from search_spaces.families.contract import Picture, Row


def unet_picture(names: Sequence[str], skips: Mapping[str, str]) -> Picture:
    """Moments of the way up stand beside the one whose output they read; without skips, each stands in a row alone."""
    rows = _paired(names, skips) if skips else None
    if rows is None:
        up = [name for name in names if name.startswith("up.")]
        rows = [Row(name) for name in names if name not in up] + [Row(None, name) for name in reversed(up)]
    return Picture(tuple(rows), "noisy clip, text, time", "velocity")


def _paired(names: Sequence[str], skips: Mapping[str, str]) -> list[Row] | None:
    """Rows from top to bottom; None if the moments do not pair up."""
    turn = next(index for index, name in enumerate(names) if name in skips)
    left, right = list(names[:turn]), list(names[turn:])[::-1]
    producers = set(skips.values())
    rows: list[Row] = []
    while left or right:
        if right and right[0] not in skips:
            rows.append(Row(None, right.pop(0)))
        elif left and left[0] not in producers:
            rows.append(Row(left.pop(0)))
        elif left and right and skips[right[0]] == left[0]:
            rows.append(Row(left.pop(0), right.pop(0), True))
        else:
            return None
    return rows
