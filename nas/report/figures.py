"""The interactive figures, as plotly's own JSON; a colour written ``$name`` is a variable of the page's style."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from nas.report.folder import Row
from search_spaces.words import Words

Figure = dict[str, Any]

SMOOTHING = 0.03  # of the steps: the window of the running mean


def front_figure(
    rows: Sequence[Row], budget: Mapping[str, Any], held: Mapping[str, Any], source: str, words: Words
) -> Figure:
    """Loss against latency of every evaluated arrangement; the front, the chosen one and the baseline stand out.

    The line is where predictions are held to: the budget's latency less the margin of the table's evidence.

    There are no error bars: the losses share clips and noise, so their own standard errors say little of differences.
    """
    usable = [row for row in rows if row["latency_ms"] is not None and row["loss"] is not None]
    named = [row for row in usable if row.chosen or row.is_baseline]
    others = [row for row in usable if row not in named]
    searched = [row for row in others if not row.is_reference]
    within = [row for row in searched if row.feasible and not row.on_front]
    front = sorted((row for row in usable if row.on_front), key=lambda row: row["latency_ms"] or 0.0)
    data = [
        _points("over budget", [row for row in searched if not row.feasible], "x-thin", "$faint", 7, line=1.4),
        _points("stopped early", [row for row in within if row.is_pruned], "circle-open", "$muted", 7),
        _points("within budget", [row for row in within if not row.is_pruned], "circle", "$muted", 7),
        _points("hand-made design", [row for row in others if row.is_reference], "square-open", "$ink", 8, line=1.4),
        {
            "type": "scatter",
            "mode": "lines",
            "name": "front",
            "x": [row["latency_ms"] for row in front],
            "y": [row["loss"] for row in front],
            "line": {"color": "$accent", "width": 2, "shape": "hv"},
            "hoverinfo": "skip",
            "showlegend": False,
        },
        _points("on the front", [row for row in searched if row.on_front], "circle", "$accent", 9),
        _points(words.baseline, [row for row in named if not row.chosen], "diamond", "$ink", 11),
        _points("chosen", [row for row in named if row.chosen], "star", "$strong", 18),
    ]
    annotations = [
        _label(row, "chosen" if row.chosen else words.baseline, below=row.chosen)
        for row in named
        if row.chosen or row.is_baseline
    ]
    line, label = _budget_line(budget, held)
    return {
        "data": [trace for trace in data if trace["x"]],
        "layout": {
            "xaxis": {"title": {"text": f"latency of one evaluation, ms{_aside(source)}"}, "zeroline": False},
            "yaxis": {"title": {"text": "validation loss"}, "zeroline": False},
            "annotations": annotations + label,
            "shapes": line,
            "hovermode": "closest",
        },
    }


def _budget_line(budget: Mapping[str, Any], held: Mapping[str, Any]) -> tuple[list[Figure], list[Figure]]:
    """The line of the latency limit and its label; empty without one."""
    asked = budget.get("latency_ms")
    limit = held.get("latency_ms", asked)
    if asked is None or limit is None:
        return [], []
    told = f"budget {asked:.4g} ms" + (f", held to {limit:.4g}" if limit < asked else "")
    line = {"type": "line", "xref": "x", "yref": "paper", "x0": limit, "x1": limit, "y0": 0, "y1": 1}
    label = {"x": limit, "y": 1, "yref": "paper", "text": told, "showarrow": False, "xanchor": "left"}
    return (
        [line | {"line": {"color": "$warn", "width": 1.5, "dash": "dash"}}],
        [label | {"yanchor": "top", "xshift": 4, "font": {"color": "$warn", "size": 12}}],
    )


def curve_figure(rows: Sequence[Mapping[str, Any]], names: Mapping[str, str], title: str) -> Figure:
    """Columns of the training log over steps: faint as they are, strong as a running mean.

    Args:
        names: column -> name in the legend. A column without numbers is left out.
    """
    colours = ("$accent", "$second", "$ink")
    data: list[Figure] = []
    for (column, name), colour in zip(names.items(), colours, strict=False):
        found = ((row["step"], row.get(column)) for row in rows)
        pairs = [(step, value) for step, value in found if isinstance(value, int | float) and math.isfinite(value)]
        if not pairs:
            continue
        steps, values = [pair[0] for pair in pairs], [float(pair[1]) for pair in pairs]
        noisy = len(values) > 30 and column != "learning_rate"
        if noisy:
            raw = {"type": "scatter", "mode": "lines", "x": steps, "y": values, "opacity": 0.22}
            data.append(raw | {"line": {"color": colour, "width": 1}, "hoverinfo": "skip", "showlegend": False})
            values = running_mean(values, max(3, round(SMOOTHING * len(values))))
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": name,
                "x": steps,
                "y": [float(f"{value:.5g}") for value in values],
                "line": {"color": colour, "width": 2},
                "hovertemplate": f"step %{{x}}: %{{y:.4g}}<extra>{html.escape(name)}</extra>",
            }
        )
    return {
        "data": data,
        "layout": {
            "xaxis": {"title": {"text": "step"}, "zeroline": False},
            "yaxis": {"title": {"text": title}, "zeroline": False},
            "showlegend": sum("name" in trace for trace in data) > 1,
            "hovermode": "x unified",
        },
    }


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean over the last ``window`` values.

    >>> running_mean([1.0, 3.0, 5.0], 2)
    [1.0, 2.0, 4.0]
    """
    means, total = [], 0.0
    for index, value in enumerate(values):
        total += value - (values[index - window] if index >= window else 0.0)
        means.append(total / min(window, index + 1))
    return means


def layers_text(row: Row) -> str:
    """Layers by position, one a line, escaped for plotly's small HTML."""
    lines = [f"{html.escape(name)}: {html.escape(text)}" for name, text in row.layers if text]
    return "<br>".join(lines) or "no layers"


def _points(name: str, rows: Sequence[Row], symbol: str, colour: str, size: int, line: float = 0.0) -> Figure:
    trace: Figure = {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [row["latency_ms"] for row in rows],
        "y": [row["loss"] for row in rows],
        "marker": {"symbol": symbol, "color": colour, "size": size, "line": {"color": colour, "width": line}},
        "text": [_hover(row) for row in rows],
        "hovertemplate": "%{text}<extra></extra>",
    }
    return trace


def _hover(row: Row) -> str:
    memory = "" if row["peak_mb"] is None else f", {row['peak_mb']:.1f} MB"
    origin = f"<br><i>{html.escape(row.origin.removeprefix('reference: '))}</i>" if row.origin else ""
    verdict = "<br>estimated: scoring was stopped early" if row.is_pruned else ""
    verdict += "" if row.feasible else "<br>over budget"
    return f"<b>loss {row['loss']:.4f}</b><br>{row['latency_ms']:.2f} ms{memory}{verdict}<br>{layers_text(row)}{origin}"


def _label(row: Row, text: str, below: bool) -> Figure:
    return {
        "x": row["latency_ms"],
        "y": row["loss"],
        "text": f"<b>{text}</b>",
        "showarrow": False,
        "yshift": -20 if below else 16,
        "xshift": 0 if below else -6,
        "xanchor": "center" if below else "left",
        "font": {"size": 13, "color": "$strong" if below else "$ink"},
    }


def _aside(source: str) -> str:
    return f" ({source})" if source and source != "measured" else ""
