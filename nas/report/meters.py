"""How much of its widths a layer keeps, drawn: a cell for every head, a bar for every channel."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from search_spaces.blocks import block_spec
from search_spaces.errors import SpaceError
from search_spaces.plan import PlanPosition
from search_spaces.variant import Variant

ROW, CELLS, LABEL = 15, 40, 96  # pixels of a row; the most that are drawn one by one; pixels before the drawing

#: Width -> how much a layer has, and how much the largest at its place.
Kept = Mapping[str, tuple[int, int]]


def kept(label: str, place: PlanPosition) -> Kept:
    """What a layer keeps of each of its block's widths; empty for a block without any, or one that nobody knows."""
    try:
        variant = Variant.parse(label)
        widths = block_spec(variant.block).widths
    except SpaceError:
        return {}
    alike = [dict(layer.variant.params) for layer in place.layers if layer.variant.block == variant.block]
    mine = dict(variant.params)
    return {name: (mine[name], max([mine[name], *(params[name] for params in alike)])) for name in sorted(widths)[::-1]}


def meters(widths: Kept, x: float, y: float, width: float) -> str:
    """Rows of ``ROW`` pixels, the first at ``y``."""
    return "".join(_meter(name, *sizes, x, y + row * ROW, width) for row, (name, sizes) in enumerate(widths.items()))


def _meter(name: str, has: int, most: int, x: float, y: float, width: float) -> str:
    text = f'<text class="size" x="{x:g}" y="{y + 10:g}">{escape(name)} {has} of {most}</text>'
    left, room = x + LABEL, width - LABEL
    if most > CELLS:
        return (
            f'{text}<rect class="cut" x="{left:g}" y="{y + 2:g}" width="{room:g}" height="9" rx="2"/>'
            f'<rect class="kept" x="{left:g}" y="{y + 2:g}" width="{room * has / most:g}" height="9" rx="2"/>'
        )
    step = min(14.0, room / most)
    cells = (
        f'<rect class="{"kept" if at < has else "cut"}" x="{left + at * step:g}" y="{y + 2:g}" width="{step - 1.5:g}" '
        'height="9" rx="1.5"/>'
        for at in range(most)
    )
    return text + "".join(cells)
