"""The review page of a preference set: clips side by side with what every reward says of them."""

from __future__ import annotations

import html
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from nas.files import write_whole
from nas.media import to_uint8
from nas.preferences.folder import PreferenceSet
from nas.report.strips import animated_strip

PAGE = "review.html"
MOST = 60  # groups on the page, evenly chosen

STYLE = """body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem;
 color: #1c1c1c; background: #fff } h1 { font-size: 1.5rem }
 figure { margin: 1.5rem 0; padding-top: 1rem; border-top: 1px solid #ccc }
img { image-rendering: pixelated; width: 100%; max-width: calc(var(--clips) * 11rem); display: block; background: #888 }
table { border-collapse: collapse; margin-top: .5rem } th, td { padding: .1rem .8rem .1rem 0; text-align: right }
th:first-child { text-align: left; font-weight: normal } .best { font-weight: bold; color: #0a6b2d }
.scroll { overflow-x: auto } figcaption { margin-bottom: .4rem } small { color: #555 }
@media (prefers-color-scheme: dark) { body { background: #161616; color: #e8e8e8 } small { color: #aaa }
 .best { color: #6fd08c } figure { border-color: #444 } }"""


def write_page_of(kept: PreferenceSet, frames: Callable[[Any], Any]) -> Path:
    """Write ``review.html`` of a set, whole, and return its path.

    Args:
        frames: decodes clips of latents (k, C, T, h, w) to (k, T, H, W, 3) in 0..1.
    """
    names, header = kept.names(), kept.header
    shown = [names[i] for i in np.linspace(0, len(names) - 1, min(MOST, len(names))).round().astype(int)]
    parts = []
    for name in shown:
        group = kept.read(name)
        strip = animated_strip([to_uint8(clip) for clip in frames(group.clips)], header.fps)
        parts.append(
            f'<figure style="--clips:{header.clips}"><figcaption><strong>{html.escape(group.prompt)}</strong> '
            f"<small>{name}</small></figcaption>"
            f'<img src="{strip}" alt="{header.clips} clips side by side, moving">{_table(kept, name)}</figure>'
        )
    kind = "sampled from noise of their own" if header.kind == "samples" else "from corrupted copies of a real clip"
    in_segments = f"labelled in {header.count} segments" if header.count > 1 else "judged as a whole"
    told = f"{len(names)} groups of {header.clips} clips, {kind}, {in_segments}"
    few = f"; {len(shown)} of them are shown" if len(shown) < len(names) else ""
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="generator" content="temporal-nas">'
        f'<meta name="viewport" content="width=device-width"><title>Preferences</title><style>{STYLE}</style>'
        f"<h1>Preferences</h1><p>{told}{few}. Each number is a win rate: the share of the other clips of the group "
        f"that a clip beats, ties counted half; the best of a row is bold.</p>{''.join(parts)}</html>\n"
    )
    write_whole(kept.folder / PAGE, page)
    return kept.folder / PAGE


def _table(kept: PreferenceSet, name: str) -> str:
    """Win rates: a row a reward and segment, a column a clip, the average last."""
    said, average = kept.said(name), kept.preference(name)
    if average is None:
        return "<p>Not judged yet.</p>"
    rows = [(reward, told["wins"]) for reward, told in said.items()] + [("all, averaged", average)]
    head = "".join(f"<th>clip {i}</th>" for i in range(kept.header.clips))
    body = []
    for reward, wins in rows:
        for segment in range(kept.header.count):
            column = wins[:, segment]
            best = np.nanmax(column) if not np.isnan(column).all() else np.nan
            tied = np.isnan(best) or (column == best).sum() == len(column)
            cells = "".join(
                f'<td class="{"best" if not tied and win == best else ""}">{"" if np.isnan(win) else f"{win:.2f}"}</td>'
                for win in column
            )
            where = f", segment {segment}" if kept.header.count > 1 else ""
            body.append(f"<tr><th>{html.escape(reward)}{where}</th>{cells}</tr>")
    return f'<div class="scroll"><table><tr><th></th>{head}</tr>{"".join(body)}</table></div>'
