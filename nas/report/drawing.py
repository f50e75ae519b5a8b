"""A network with its layers, drawn as SVG: one column, or down on the left, up on the right, skips straight across."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from nas.report.meters import ROW, Kept, kept, meters
from search_spaces.errors import SpaceError
from search_spaces.families import family_of_id
from search_spaces.families.contract import Picture
from search_spaces.picture import short
from search_spaces.plan import Plan, Point
from search_spaces.variant import Variant

FAMILIES = ("Conv1D", "Conv3D", "SelfAttention1D", "SelfAttention3D", "CrossAttention1D", "CrossAttention3D")

HEAD, CHIP, PAD, PILL, ROW_GAP = 24, 24, 8, 24, 22


@dataclass(frozen=True)
class Node:
    """One point of execution: a position with its layers, or a part of the backbone alone."""

    name: str
    is_position: bool
    layers: tuple[str, ...] = ()
    size: str = ""
    cost: str = ""
    widths: tuple[Kept, ...] = ()  # of each layer that has any

    @property
    def height(self) -> int:
        meters = ROW * sum(len(one) for one in self.widths)
        return HEAD + CHIP * max(1, len(self.layers)) + meters + PAD if self.is_position else PILL


def network_svg(
    plan: Plan | None,
    layers: Sequence[tuple[str, Sequence[str]]],
    costs: Mapping[str, str],
    *,
    width: int,
    title: str,
) -> str:
    """Draw an arrangement.

    Args:
        plan: the space's plan; without it, or for a family that is not installed, positions are drawn in a list.
        layers: variant labels of every position, in execution order.
        costs: short texts by position, such as ``+1.2 ms``.
        width: of the drawing in pixels; 360 for a phone, 860 for a desk.
        title: the text alternative.
    """
    chosen = {name: tuple(labels) for name, labels in layers}
    places = plan.positions if plan else ()
    sizes = {place.name: f"{place.height}×{place.width} · {place.channels} ch" for place in places}
    drawn = _drawn(plan) if plan else None
    names = [point.name for point in plan.points] if plan and drawn else list(chosen)
    widths = {place.name: tuple(kept(label, place) for label in chosen.get(place.name, ())) for place in places}
    nodes = {
        name: Node(
            name,
            name in chosen,
            chosen.get(name, ()),
            sizes.get(name, ""),
            costs.get(name, ""),
            widths.get(name, tuple({} for _ in chosen.get(name, ()))),
        )
        for name in names
    }
    if drawn is None or not any(row.right for row in drawn.rows):
        return _list_svg(list(nodes.values()), width, title)
    rows = [(nodes.get(row.left or ""), nodes.get(row.right or ""), row.joined) for row in drawn.rows]
    return _two_columns_svg(drawn, rows, width, title)


def _drawn(plan: Plan) -> Picture | None:
    """How the family of a plan draws it; None where the family is not installed."""
    try:
        family = family_of_id(plan.backbone_name)
    except SpaceError:
        return None
    return family.picture([point.name for point in plan.points], skips(plan.points))


def skips(points: Sequence[Point]) -> dict[str, str]:
    """Which point's output each point consumes as a skip tensor, from what is alive where.

    A tensor is consumed where it stops being alive; the output of a point before the turn is alive from then on.
    """
    consumed: dict[str, str] = {}
    before: list[str] = []
    for index, point in enumerate(points):
        alive = [name for name, _ in point.skips]
        gone = [name for name in before if name not in alive]
        if gone:
            consumed[point.name] = gone[-1]
        producers = {name for later in points[index + 1 :] for name, _ in later.skips}
        before = [*alive, point.name] if point.name in producers or not consumed else alive
    return consumed


Pair = tuple[Node | None, Node | None, bool]


def _two_columns_svg(drawn: Picture, rows: Sequence[Pair], width: int, title: str) -> str:
    card = min(320, round(width * 0.435))
    left, right = 1, width - card - 1
    parts: list[str] = []
    y = 28
    parts.append(_text(left, 14, f"{drawn.enters} ↓", "note"))
    parts.append(_text(width - 1, 14, f"↑ {drawn.leaves}", "note", anchor="end"))
    last: dict[str, float] = {}
    label = ""
    for down, up, joined in rows:
        height = max(node.height for node in (down, up) if node)
        if joined:
            parts.append(f'<path class="skip" d="M{left + card} {y + 12}H{right - 6}"/>')
            parts.append(f'<path class="tip" d="M{right - 1} {y + 12}l-7 -4v8z"/>')
        size = next((node.size for node in (down, up) if node and node.size), "")
        if size and size != label:
            label = size
            lines = size.split(" · ") if right - left - card < 130 else [size]
            for index, line in enumerate(lines):
                parts.append(_text(width / 2, y + 28 + 13 * index, line, "size", anchor="middle"))
        for node, x, key in ((down, left, "down"), (up, right, "up")):
            if node is None:
                continue
            centre = x + card / 2
            if key in last:
                parts.append(_arrow(centre, last[key], y) if key == "down" else _arrow(centre, y, last[key]))
            parts.append(_node(node, x, y, card))
            last[key] = y + node.height
        y += height + ROW_GAP
    ends = [last["down"], last["up"]]
    bottom = max(ends) + 20
    x0, x1 = left + card / 2, right + card / 2
    parts.append(
        f'<path class="flow" d="M{x0} {ends[0]}V{bottom - 8}q0 8 8 8H{x1 - 8}q8 0 8 -8V{ends[1] + 7}"/>'
        f'<path class="tip flow-tip" d="M{x1} {ends[1] + 1}l-4 7h8z"/>'
    )
    return _wrap(parts, width, bottom + 8, title)


def _list_svg(nodes: Sequence[Node], width: int, title: str) -> str:
    parts, y, card = [], 4, min(width - 2, 420)
    x = (width - card) / 2
    for index, node in enumerate(nodes):
        if index:
            parts.append(_arrow(x + card / 2, y - ROW_GAP, y))
        parts.append(_node(node, x, y, card))
        y += node.height + ROW_GAP
    return _wrap(parts, width, y - ROW_GAP + 4, title)


def _node(node: Node, x: float, y: float, width: float) -> str:
    if not node.is_position:
        text = _text(x + width / 2, y + 16, node.name, "backbone", anchor="middle")
        return f'<rect class="pill" x="{x}" y="{y}" width="{width}" height="{PILL}" rx="12"/>{text}'
    parts = [f'<rect class="card" x="{x}" y="{y}" width="{width}" height="{node.height}" rx="8"/>']
    parts.append(_text(x + 10, y + 17, node.name, "name"))
    if node.cost:
        parts.append(_text(x + width - 10, y + 17, node.cost, "cost", anchor="end"))
    top = y + HEAD
    if not node.layers:
        parts.append(_text(x + 10, top + 15, "no layer", "none"))
    for label, widths in zip(node.layers, node.widths, strict=True):
        family = label.partition("(")[0]
        known = family if family in FAMILIES else "other"
        chip = f'<rect x="{x + 7}" y="{top}" width="{width - 14}" height="{CHIP - 4}" rx="4"/>'
        parts.append(f'<g class="chip {known}">{chip}{_text(x + 15, top + 14, brief(label), "layer")}</g>')
        top += CHIP
        parts.append(meters(widths, x + 15, top - 2, width - 30))
        top += ROW * len(widths)
    return "".join(parts)


def brief(label: str) -> str:
    """``Conv3D(kernel_size=3)`` as ``Conv3D k3``; a label that is no variant stays as it is."""
    try:
        return short(Variant.parse(label))
    except ValueError:
        return label


def _arrow(x: float, start: float, end: float) -> str:
    """A short arrow in the direction of execution, from ``start`` towards ``end``, between two nodes."""
    if start < end:
        return (
            f'<path class="flow" d="M{x} {start}V{end - 7}"/><path class="tip flow-tip" d="M{x} {end - 1}l-4 -7h8z"/>'
        )
    return f'<path class="flow" d="M{x} {start}V{end + 7}"/><path class="tip flow-tip" d="M{x} {end + 1}l-4 7h8z"/>'


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'


def _wrap(parts: Sequence[str], width: float, height: float, title: str) -> str:
    kind = "unet narrow" if width < 500 else "unet"
    head = f'<svg class="{kind}" viewBox="0 0 {width:g} {height:g}" width="{width:g}" role="img"'
    return f'{head} aria-label="{escape(title, quote=True)}">{"".join(parts)}</svg>'
