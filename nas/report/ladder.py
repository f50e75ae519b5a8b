"""A design ladder as one picture: what each change does to the loss and to what a device pays."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nas.search.ladder import Measured

WIDTH, LABEL, TOP, ROW, GAP = 960, 330, 64, 34, 22
INK, FAINT, BETTER, WORSE = "#1a1a1a", "#8a8f98", "#2a9d8f", "#c8553d"
COLUMNS = (("loss", "loss", "{:.4f}"), ("latency_ms", "ms", "{:.3g}"), ("peak_mb", "MB", "{:.4g}"))
COUNTED = ("parameters", "parameters", "{:,}")


def ladder_svg(measured: Measured) -> str:
    """A row a design, a column a figure; a bar's length is the figure, its colour says if the change made it less."""
    columns = [c for c in (*COLUMNS, COUNTED) if any(getattr(rung, c[0]) is not None for rung in measured.rungs)]
    width = (WIDTH - LABEL) // len(columns)
    height = TOP + ROW * len(measured.rungs) + 16
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        f'font-size="12"><title>{escape(_title(measured))}</title><rect width="100%" height="100%" fill="#ffffff"/>',
        f'<text x="12" y="22" font-size="14" font-weight="bold" fill="{INK}">{escape(_title(measured))}</text>',
    ]
    for row, rung in enumerate(measured.rungs):
        y = TOP + ROW * row + ROW / 2
        name = rung.step if len(rung.step) <= 50 else f"{rung.step[:48]}…"
        parts.append(f'<text x="12" y="{y + 4}" fill="{INK}">{row}. {escape(name)}</text>')
    for index, (field, title, form) in enumerate(columns):
        values = [getattr(rung, field) for rung in measured.rungs]
        parts += _column(LABEL + width * index, width - GAP, title, values, form)
    return "".join([*parts, "</svg>"])


def _title(measured: Measured) -> str:
    return f"Ladder {measured.ladder}: {measured.space} on {measured.device} ({measured.source})"


def _column(left: int, width: int, title: str, values: Sequence[float | None], form: str) -> list[str]:
    """One figure of every design; bars of a loss begin below the least one, as differences are what it tells."""
    known = [value for value in values if value is not None]
    low = min(known) - 0.5 * (max(known) - min(known)) if title == "loss" else 0.0
    span = (max(known) - low) or 1.0
    parts = [f'<text x="{left}" y="{TOP - 12}" fill="{FAINT}">{title}</text>']
    before: float | None = None
    for row, value in enumerate(values):
        y = TOP + ROW * row
        if value is None:
            parts.append(f'<text x="{left}" y="{y + 20}" fill="{FAINT}">no number</text>')
            continue
        colour = FAINT if before is None or value == before else BETTER if value < before else WORSE
        share = "" if before is None or title == "loss" or not before else f" {value / before - 1:+.0%}"
        text = form.format(value) + share
        parts.append(
            f'<rect x="{left}" y="{y + 20}" width="{max(1.0, (value - low) / span * width):.1f}" height="6" '
            f'fill="{colour}"/><text x="{left}" y="{y + 15}" fill="{INK}">{escape(text)}</text>'
        )
        before = value
    return parts
