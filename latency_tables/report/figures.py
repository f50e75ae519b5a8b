"""The figures of table pages, as plotly's own JSON; a colour written ``$name`` is a variable of the page's style."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from latency_tables.diff import Change, Compared
from latency_tables.record import Record
from latency_tables.report.page import Figure
from latency_tables.validate import UNSTABLE_IQR

COLOURS = {  # of the block families, as the drawing of an arrangement has them
    "Conv1D": "$conv1",
    "Conv3D": "$conv3",
    "SelfAttention1D": "$self1",
    "SelfAttention3D": "$self3",
    "CrossAttention1D": "$cross1",
    "CrossAttention3D": "$cross3",
}
SHADES = ("$accent", "$second", "$cross3", "$strong", "$muted", "$warn")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star")
RATIOS = (0.1, 0.2, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)  # ticks of a change
LINE_PX, ROW_PX, EDGE_PX = 26, 36, 110  # height of a figure with one line a row


def cost_figure(rows: Sequence[Record]) -> Figure:
    """Latency of each variant at each shape, with the range between repeated groups."""
    blocks = [row for row in rows if row.block in COLOURS]
    shapes: dict[str, list[Record]] = {}
    for row in sorted(blocks, key=lambda row: (_size(row), feature_map(row), label(row))):
        shapes.setdefault(feature_map(row), []).append(row)
    data = []
    for index, (text, found) in enumerate(shapes.items()):
        trace = _scatter(text, [_ms(row) for row in found], [label(row) for row in found], found)
        trace["marker"] = {
            "color": SHADES[index % len(SHADES)],
            "symbol": SYMBOLS[index % len(SYMBOLS)],
            "size": 10,
        }
        trace["error_x"] = _range(found, SHADES[index % len(SHADES)])
        data.append(trace)
    return {
        "data": data,
        "layout": {
            "height": EDGE_PX + LINE_PX * len({label(row) for row in blocks}),
            "xaxis": _log("latency, ms", [_ms(row) for row in blocks]),
            "yaxis": _names(categoryorder="category descending"),
        },
    }


def memory_figure(rows: Sequence[Record]) -> Figure:
    """Latency against memory (weights and the most alive at once) of every block."""
    data = []
    for family, colour in COLOURS.items():
        found = [row for row in rows if row.block == family and _memory(row) > 0]
        if found:
            trace = _scatter(family, [_ms(row) for row in found], [_memory(row) for row in found], found)
            trace["marker"] = {"color": colour, "size": 11, "line": {"color": "$ink", "width": 0.6}}
            data.append(trace)
    return {
        "data": data,
        "layout": {
            "xaxis": _log("latency, ms", [_ms(row) for row in rows]),
            "yaxis": _log("weights and activations, MB", [_memory(row) for row in rows]),
            "hovermode": "closest",
        },
    }


def dimension_figure(pairs: Sequence[tuple[str, Record, Record]]) -> Figure:
    """How many times a 3D block's latency is its 1D form's, at each shape."""
    ordered = sorted(pairs, key=lambda pair: _ms(pair[2]) / _ms(pair[1]), reverse=True)
    return {
        "data": [
            {
                "type": "bar",
                "orientation": "h",
                "base": 1.0,  # a logarithmic axis has no zero: bars grow from "as fast"
                "x": [_ms(three) / _ms(one) - 1.0 for _, one, three in ordered],
                "y": [name for name, *_ in ordered],
                "marker": {"color": [COLOURS[three.block] for _, _, three in ordered]},
                "text": [f"{_ms(three) / _ms(one):.2f}×" for _, one, three in ordered],
                "textposition": "outside",
                "cliponaxis": False,
                "hovertext": [f"{_hover(one)}<br>{_hover(three)}" for _, one, three in ordered],
                "hoverinfo": "text",
            }
        ],
        "layout": {
            "height": EDGE_PX + ROW_PX * len(ordered),
            "margin": {"l": 56, "r": 60, "t": 30, "b": 46},
            "xaxis": _log("latency of 3D over 1D", [_ms(three) / _ms(one) for _, one, three in pairs]),
            "yaxis": _names(),
            "shapes": [_line(1.0)],
        },
    }


def placement_figure(rows: Sequence[Record]) -> Figure:
    """Share of each workload's operations on the Neural Engine, the GPU and the CPU."""
    placed = [row for row in rows if row.placement_cpu is not None]
    units = (
        ("Neural Engine", "placement_ane", "$accent"),
        ("GPU", "placement_gpu", "$second"),
        ("CPU", "placement_cpu", "$muted"),
    )
    return {
        "data": [
            {
                "type": "bar",
                "orientation": "h",
                "name": name,
                "x": [100 * (getattr(row, column) or 0.0) for row in placed],
                "y": [full_name(row) for row in placed],
                "marker": {"color": colour},
                "hovertemplate": f"%{{y}}: %{{x:.0f}}%<extra>{name}</extra>",
            }
            for name, column, colour in units
        ]
        if placed
        else [],
        "layout": {
            "barmode": "stack",
            "height": EDGE_PX + ROW_PX * len(placed),
            "xaxis": {"title": {"text": "share of operations, %"}, "range": [0, 100]},
            "yaxis": _names(categoryorder="category descending"),
        },
    }


def spread_figure(rows: Sequence[Record]) -> Figure:
    """Interquartile range of each measured workload's repeats over their median; the widest on top."""
    found = sorted(
        (row for row in rows if row.latency_iqr_ratio is not None), key=lambda row: row.latency_iqr_ratio or 0
    )
    return {
        "data": [
            {
                "type": "bar",
                "orientation": "h",
                "x": [100 * (row.latency_iqr_ratio or 0.0) for row in found],
                "y": [full_name(row) for row in found],
                "marker": {
                    "color": ["$strong" if (row.latency_iqr_ratio or 0) > UNSTABLE_IQR else "$accent" for row in found]
                },
                "hovertext": [_hover(row) for row in found],
                "hoverinfo": "text",
            }
        ]
        if found
        else [],
        "layout": {
            "height": EDGE_PX + ROW_PX * len(found),
            "xaxis": {"title": {"text": "interquartile range over median, %"}, "rangemode": "tozero"},
            "yaxis": _names(),
            "shapes": [_line(100 * UNSTABLE_IQR)],
        },
    }


def networks_figure(samples: Sequence[dict[str, float]]) -> Figure:
    """Whole networks: the sum of their rows against what they took."""
    predicted, measured = ([float(s[name]) for s in samples] for name in ("predicted_ms", "measured_ms"))
    ends = [min([*predicted, *measured], default=1.0) * 0.95, max([*predicted, *measured], default=1.0) * 1.05]
    return {
        "data": [
            _diagonal(ends, 1.0, "equal"),
            {
                "type": "scatter",
                "mode": "markers",
                "x": measured,
                "y": predicted,
                "marker": {"color": "$accent", "size": 9},
                "hovertext": [
                    f"{p:.2f} ms predicted, {m:.2f} ms measured ({p / m - 1:+.1%})"
                    for p, m in zip(predicted, measured, strict=True)
                ],
                "hoverinfo": "text",
                "showlegend": False,
            },
        ]
        if samples
        else [],
        "layout": {
            "xaxis": {"title": {"text": "measured, ms"}},
            "yaxis": {"title": {"text": "sum of rows, ms"}},
            "hovermode": "closest",
        },
    }


def change_figure(compared: Sequence[Compared], changes: Sequence[Change], threshold: float) -> Figure:
    """Latency after over before of every row that both sides know, with both ranges; what changed stands out."""
    kinds = {(c.key, c.lowering, c.method): c for c in changes if c.kind in ("slower", "faster")}
    groups: dict[str, list[Compared]] = {"slower": [], "faster": [], "within the spread": []}
    for row in compared:
        change = kinds.get(row.primary_key)
        groups[change.kind if change else "within the spread"].append(row)
    colours = {"slower": "$strong", "faster": "$cross3", "within the spread": "$muted"}
    order = [_name(row) for row in sorted(compared, key=lambda row: row.ratio)]
    data = []
    for name, rows in groups.items():
        if rows:
            data.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": name,
                    "x": [row.ratio for row in rows],
                    "y": [_name(row) for row in rows],
                    "marker": {"color": colours[name], "size": 9},
                    "error_x": {
                        "type": "data",
                        "symmetric": False,
                        "array": [max(0.0, row.high - row.ratio) for row in rows],
                        "arrayminus": [max(0.0, row.ratio - row.low) for row in rows],
                        "color": colours[name],
                        "thickness": 1.4,
                        "width": 3,
                    },
                    "hovertext": [
                        f"<b>{html.escape(row.after.key)}</b><br>{_ms(row.before):.3f} to {_ms(row.after):.3f} ms, "
                        f"{row.ratio - 1:+.1%} ({row.low - 1:+.1%} to {row.high - 1:+.1%})"
                        for row in rows
                    ],
                    "hoverinfo": "text",
                }
            )
    return {
        "data": data,
        "layout": {
            "height": EDGE_PX + ROW_PX * len(compared),
            "xaxis": {
                **_log("after over before, reference workload divided out", []),
                "tickmode": "array",
                "tickvals": RATIOS,
                "ticktext": [f"{ratio:g}" for ratio in RATIOS],
            },
            "yaxis": _names(categoryorder="array", categoryarray=order),
            "shapes": [_line(1.0), _line(1.0 + threshold, "dot")],
        },
    }


def beside_figure(pairs: Sequence[tuple[Record, Record]], ours: str, theirs: str) -> Figure:
    """Every workload on two devices; the dashed line is the median ratio, on which they would be the same chip."""
    data: list[Figure] = []
    for family, colour in [*COLOURS.items(), ("", "$ink")]:
        found = [pair for pair in pairs if (pair[0].block if pair[0].block in COLOURS else "") == family]
        if not found:
            continue
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": family or "whole parts",
                "x": [_ms(one) for one, _ in found],
                "y": [_ms(two) for _, two in found],
                "marker": {"color": colour, "size": 11, "line": {"color": "$ink", "width": 0.6}},
                "hovertext": [
                    f"<b>{html.escape(f'{label(one)} {shape(one)}')}</b><br>"
                    f"{_ms(one):.3f} ms on {html.escape(ours)}<br>"
                    f"{_ms(two):.3f} ms on {html.escape(theirs)}, {_ms(two) / _ms(one):.2f}×"
                    for one, two in found
                ],
                "hoverinfo": "text",
            }
        )
    if pairs:
        values = [_ms(one) for one, _ in pairs]
        ratios = sorted(_ms(two) / _ms(one) for one, two in pairs)
        middle = ratios[len(ratios) // 2]
        data.insert(0, _diagonal([min(values), max(values)], middle, f"{middle:.2f}×, the median"))
    return {
        "data": data,
        "layout": {
            "xaxis": _log(f"{ours}, ms", [_ms(one) for one, _ in pairs]),
            "yaxis": _log(f"{theirs}, ms", [_ms(two) for _, two in pairs]),
            "hovermode": "closest",
        },
    }


# Texts of a row --------------------------------------------------------------------------------------


def label(row: Record) -> str:
    """``Conv3D(kernel_size=3)``, or what the whole part is called: ``backbone:tiny``."""
    return row.key.partition("/")[0]


def shape(row: Record) -> str:
    """``c320/t30/64x64/b1``: what stands behind the block in the key."""
    return row.key.partition("/")[2].rpartition("@")[0]


def feature_map(row: Record) -> str:
    """``c320 t30 64x64 b1``: the shape without the text that a block reads beside it."""
    return f"c{row.channels} t{row.frames} {row.height}x{row.width} b{row.batch}"


def full_name(row: Record, more: str = "") -> str:
    """Both, in two lines of a figure's axis."""
    below = ", ".join(text for text in (shape(row).replace("/", " "), more) if text)
    return f"{label(row)}<br><span style='font-size:10px'>{below}</span>"


def _name(row: Compared) -> str:
    return full_name(row.after, "" if row.after.lowering in ("plain", "fused") else row.after.lowering)


def _hover(row: Record) -> str:
    low, high = row.latency_low_ms, row.latency_high_ms
    interval = "" if low is None or high is None else f" ({low:.3f} to {high:.3f})"
    told = f"<b>{html.escape(label(row))}</b> {html.escape(shape(row))}<br>{_ms(row):.3f} ms{interval}, {row.source}"
    memory = f"<br>{_memory(row):.2f} MB" if _memory(row) else ""
    return f"{told}<br>{row.lowering}, {row.method}{memory}"


def _ms(row: Record) -> float:
    return row.latency_ms_median or 0.0


def _memory(row: Record) -> float:
    return (row.weights_mb or 0.0) + (row.activation_peak_mb or 0.0)


def _size(row: Record) -> float:
    """Elements of the feature map."""
    sides = (row.channels, row.frames, row.height, row.width, row.batch)
    return math.prod(side or 1 for side in sides)


# Parts of figures ------------------------------------------------------------------------------------


def _scatter(name: str, x: list[float], y: list[float] | list[str], rows: Sequence[Record]) -> Figure:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": x,
        "y": y,
        "hovertext": [_hover(row) for row in rows],
        "hoverinfo": "text",
    }


def _range(rows: Sequence[Record], colour: str) -> Figure:
    def side(row: Record, bound: float | None) -> float:
        return 0.0 if bound is None else abs(_ms(row) - bound)

    return {
        "type": "data",
        "symmetric": False,
        "array": [side(row, row.latency_high_ms) for row in rows],
        "arrayminus": [side(row, row.latency_low_ms) for row in rows],
        "color": colour,
        "thickness": 1.2,
        "width": 3,
    }


def _log(title: str, values: Sequence[float]) -> Figure:
    """A logarithmic axis with ticks at 1, 2 and 5, or at powers of ten alone where they would crowd."""
    known = [value for value in values if value > 0]
    decades = math.log10(max(known) / min(known)) if known else 0.0
    return {"type": "log", "title": {"text": title}, "dtick": "D2" if decades < 2.5 else 1, "exponentformat": "none"}


def _names(**more: str | list[str]) -> Figure:
    """An axis of names, every one of them written."""
    return {"automargin": True, "tickmode": "linear", "dtick": 1, **more}


def _line(at: float, dash: str = "dash") -> Figure:
    return {
        "type": "line",
        "xref": "x",
        "yref": "paper",
        "x0": at,
        "x1": at,
        "y0": 0,
        "y1": 1,
        "line": {"color": "$faint", "width": 1.2, "dash": dash},
    }


def _diagonal(ends: list[float], ratio: float, name: str) -> Figure:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": ends,
        "y": [ratio * end for end in ends],
        "line": {"color": "$faint", "width": 1.4, "dash": "dash"},
        "hoverinfo": "skip",
    }
