"""What the page says of the search: how the front grew, what was tried where, and the reasons for the choice."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from nas.report.drawing import brief
from nas.report.figures import Figure, layers_text
from nas.report.folder import Row

SHOWN = 25  # arrangements in the picture of what stands where: more lines hide each other


def growth_figure(rows: Sequence[Row]) -> Figure:
    """The front's hypervolume over the evaluations, as a share of what it is at the end.

    Hypervolume: the area between the front and the point of the highest loss and the largest feasible
    latency; both axes are minimised.
    """
    usable = [row for row in rows if row.feasible and row["loss"] is not None and row["latency_ms"] is not None]
    if len(usable) < 2:
        return {"data": [], "layout": {}}
    worst = max(row["loss"] or 0.0 for row in usable)
    dearest = max(row["latency_ms"] or 0.0 for row in usable)
    areas = [
        hypervolume([(r["latency_ms"], r["loss"]) for r in usable[:n]], dearest, worst)
        for n in range(1, len(usable) + 1)
    ]
    final = areas[-1] or 1.0
    steps = [n + 1 for n in range(len(usable))]
    shares = [100 * area / final for area in areas]
    grew = [i for i in range(1, len(areas)) if areas[i] > areas[i - 1]]
    texts = [f"evaluation {steps[i]}, {html.escape(usable[i].origin)}<br>{layers_text(usable[i])}" for i in grew]
    return {
        "data": [
            {
                "type": "scatter",
                "mode": "lines",
                "x": steps,
                "y": shares,
                "line": {"color": "$accent", "width": 2, "shape": "hv"},
                "hoverinfo": "skip",
                "showlegend": False,
            },
            {
                "type": "scatter",
                "mode": "markers",
                "x": [steps[i] for i in grew],
                "y": [shares[i] for i in grew],
                "marker": {"color": "$accent", "size": 7},
                "text": texts,
                "hovertemplate": "%{text}<extra></extra>",
                "showlegend": False,
            },
        ],
        "layout": {
            "xaxis": {"title": {"text": "arrangements evaluated within the budget"}, "zeroline": False},
            "yaxis": {"title": {"text": "hypervolume, % of the final"}, "rangemode": "tozero"},
            "hovermode": "closest",
        },
    }


def hypervolume(points: Sequence[tuple[float | None, float | None]], dearest: float, worst: float) -> float:
    """Area between (latency, loss) points and the reference point.

    >>> hypervolume([(1.0, 2.0), (2.0, 1.0)], 3.0, 3.0)
    3.0
    """
    area, lowest = 0.0, worst
    known = sorted((x, y) for x, y in points if x is not None and y is not None)
    for latency, loss in known:
        if latency < dearest and loss < lowest:
            area += (dearest - latency) * (lowest - loss)
            lowest = loss
    return area


def positions_figure(rows: Sequence[Row]) -> Figure:
    """Parallel coordinates: which layers stand at each position in the best arrangements, coloured by loss."""
    usable = [row for row in rows if row.feasible and row["loss"] is not None]
    best = sorted(usable, key=lambda row: row["loss"] or 0.0)[:SHOWN]
    if len(best) < 3:
        return {"data": [], "layout": {}}
    losses = [row["loss"] or 0.0 for row in best]
    blocks = {label.partition("(")[0] for row in best for _, text in row.layers for label in text.split(" + ") if label}
    same = blocks.pop() if len(blocks) == 1 else ""  # need not be said at every tick
    dimensions: list[dict[str, Any]] = []
    for place, (name, _) in enumerate(best[0].layers):
        values = [row.layers[place][1] for row in best]
        # Ordered by how good they are on average, so that lines of good arrangements run along one side.
        means = {
            v: sum(x for x, w in zip(losses, values, strict=True) if w == v) / values.count(v) for v in set(values)
        }
        order = sorted(means, key=lambda value: (-means[value], value))
        dimensions.append(
            {
                "label": name,
                "values": [order.index(value) for value in values],
                "tickvals": list(range(len(order))),
                "ticktext": [short_option(value, same) for value in order],
                "range": [-0.5, max(0.5, len(order) - 0.5)],
            }
        )
    widest = max((len(text) for row in dimensions[:1] for text in row["ticktext"]), default=0)
    left = min(220, max(90, 20 + 6 * widest))  # pixels; the first axis has its labels to the left
    dimensions.append({"label": "loss", "values": losses, "tickformat": ".4f"})
    line = {
        "color": losses,
        "colorscale": [[0.0, "$accent"], [1.0, "$rule"]],
        "cmin": min(losses),
        "cmax": max(losses),
    }
    return {
        "data": [{"type": "parcoords", "dimensions": dimensions, "line": line, "labelside": "top"}],
        "layout": {"margin": {"l": left, "r": 60, "t": 50, "b": 20}},
    }


LETTERS = {"Conv": "C", "SelfAttention": "S", "CrossAttention": "X"}


def short_option(text: str, same: str = "") -> str:
    """``Conv1D(kernel_size=3) + SelfAttention3D(heads=4)`` as ``C1 k3 + S3 h4``; ``none`` if empty.

    Args:
        same: the block that all options are of; left out where its parameters tell them apart.
    """
    parts = (brief(label).removeprefix(f"{same} ") for label in text.split(" + "))
    return " + ".join(map(_letters, parts)) if text else "none"


def _letters(label: str) -> str:
    block, _, rest = label.partition(" ")
    letter = LETTERS.get(block[:-2])
    return label if letter is None else f"{letter}{block[-2]} {rest}".strip()


def reasons(told: Mapping[str, Any]) -> dict[str, Any]:
    """What ``explain.json`` says, ready for the page: sentences, rows of positions, of limits, of designs by hand."""
    if not told:
        return {}
    positions = [dict(row) for row in told.get("positions", ())]
    largest = max((abs(row["loss"]) for row in positions), default=0.0) or 1.0
    for row in positions:
        row["share"] = max(0.0, row["loss"]) / largest
        row["short"] = " + ".join(brief(label) for label in row["layers"].split(" + "))
        row["doubtful"] = abs(row["loss"]) <= 1.645 * row["loss_stderr"]
    distance = (
        f"By an additive model of the {told['evaluations']} evaluations, the best arrangement within the budget is "
        f"{told['regret']:.4f} lower in loss on average, and at most {told['regret_high']:.4f} in 90% of what they "
        "leave possible."
        if told["regret"] is not None
        else f"An additive model of the {told['evaluations']} evaluations cannot tell how far the best arrangement "
        "within the budget is: what it likes best at any latency breaks another limit."
    )
    if told["model_error"] is not None:
        distance += (
            f" On evaluations it had not seen the model is off by {told['model_error']:.4f}, where losses spread by "
            f"{told['loss_spread']:.4f}."
        )
    return {
        "distance": distance,
        "positions": positions,
        "more": list(told.get("more", ())),
        "designs": list(told.get("designs", ())),
    }
