"""How a staged UNet is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from search_spaces.families.contract import Picture, Row


def staged_picture(names: Sequence[str], skips: Mapping[str, str]) -> Picture:
    """The way down on the left, the way up on the right; a join stands beside the moment whose tensor it reads."""
    right = [name for name in names if name.startswith("up.") or name == "conv_out"]
    left = [name for name in names if name not in right]
    right = right[::-1]
    rows: list[Row] = []
    while left or right:
        source = skips.get(right[0]) if right else None
        if source in left:
            while left[0] != source:
                rows.append(Row(left.pop(0)))
            rows.append(Row(left.pop(0), right.pop(0), True))
        elif right and (skips or not left):
            rows.append(Row(None, right.pop(0)))
        elif left and right and not skips:
            rows.append(Row(left.pop(0)))
        else:
            rows.append(Row(left.pop(0)))
    return Picture(tuple(rows), "noise, text, time", "velocity")
