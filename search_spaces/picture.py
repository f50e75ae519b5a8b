"""An arrangement drawn on its network, one screen of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from search_spaces.arrangement import Arrangement
from search_spaces.families.contract import Picture
from search_spaces.space import Position, Space
from search_spaces.variant import Variant

_WIDTH = 36


def picture(space: Space, arrangement: Arrangement, costs: Mapping[str, float | str] | None = None) -> str:
    """Draw which layers stand where.

    Args:
        costs: by position, milliseconds or any short text; shown beside the position's name.

    Returns:
        Lines of at most 100 characters: two columns where the family draws two, else a list in execution order.

    Raises:
        SpaceError: if the arrangement does not lie in the space.
    """
    space.check(arrangement)
    frames, channels, height, width = space.latent_shape()
    layers = f"{arrangement.num_layers} layer{'' if arrangement.num_layers == 1 else 's'}"
    head = f"{space.name} {arrangement.key}: {layers} on {space.backbone_id} at {frames}x{height}x{width}x{channels}"
    cells = {
        position.name: _cell(position, arrangement.at(position.name), (costs or {}).get(position.name))
        for position in space.positions
    }
    drawn = space.backbone.family.picture([position.name for position in space.positions], {})
    if any(row.right for row in drawn.rows):
        return "\n".join([head, "", *_columns(space, drawn, cells)])
    rows = [f"{_shape(space, position):>14}  {line}" for position in space.positions for line in cells[position.name]]
    return "\n".join([head, "", *rows])


def short(variant: Variant) -> str:
    """``Conv3D(kernel_size=3)`` as ``Conv3D k3``."""
    return " ".join([variant.block, *(f"{name[0]}{value}" for name, value in variant.params)])


def _cell(position: Position, layers: Sequence[Variant], cost: float | str | None) -> list[str]:
    shown = "" if cost is None else cost if isinstance(cost, str) else f"{cost:.2f} ms"
    runs = [(short(variant), len(list(same))) for variant, same in groupby(layers)]
    names = [f"  {name}" if count == 1 else f"  {name} ({count}x)" for name, count in runs] or ["  ·"]
    return [f"{position.name}  {shown}".rstrip(), *names]


def _shape(space: Space, position: Position) -> str:
    _, channels, height, width = space.position_shape(position)
    return f"{height}x{width}x{channels}"


def _columns(space: Space, drawn: Picture, cells: Mapping[str, list[str]]) -> list[str]:
    """Stages from the highest resolution to the lowest; on the right, execution climbs from the bottom."""
    stages = sorted({position.space_scale for position in space.positions})
    lefts, rights = ([getattr(row, side) for row in drawn.rows] for side in ("left", "right"))
    enters = drawn.enters.partition(",")[0]
    lines = [f"  {enters:<{_WIDTH}}{'':^16}{drawn.leaves:<{_WIDTH}}".rstrip()]
    for depth, space_scale in enumerate(stages):
        members = {position.name: position for position in space.positions if position.space_scale == space_scale}
        down = [line for name in lefts if name in members for line in cells[name]]
        up = [line for name in rights if name in members for line in cells[name]]
        deepest = depth == len(stages) - 1
        rows = max(len(down), len(up))
        for row in range(rows):
            left = (down[row] if row < len(down) else "").ljust(_WIDTH)
            right = (up[row] if row < len(up) else "").ljust(_WIDTH)
            middle = _shape(space, next(iter(members.values()))) if row == 0 else ""
            joint = "─" if row == 0 else " "
            lines.append(f"  │ {left[: _WIDTH - 2]}{joint}{middle:{joint}^14}{joint}│ {right}".rstrip())
        if deepest:
            lines.append(f"  ╰{'─' * (_WIDTH + 14)}▶─╯")
        else:
            lines.append(f"  ▼ {'':<{_WIDTH - 2}} {'':^14} ▲")
    return [*lines, "", "  Positions run along the arrows; within a position, layers run from top to bottom."]
