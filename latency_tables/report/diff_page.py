"""What changed between two versions of a table, as a page with pictures."""

from __future__ import annotations

from pathlib import Path

from latency_tables.diff import compare, diff
from latency_tables.report.figures import change_figure
from latency_tables.report.page import render_page, write_page
from latency_tables.table import Table

HERE = Path(__file__).parent


def write_diff_page(
    path: Path,
    before: Table,
    after: Table,
    threshold: float = 0.03,
    allow_removed: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write the page of ``diff(before, after)`` to ``path``, one file that opens offline.

    Raises:
        TableError: if another file than a page of ours is there, unless ``overwrite``.
    """
    found = diff(before, after, threshold, allow_removed)
    figure = change_figure(compare(before, after), found.changes, threshold)
    page = render_page(
        HERE,
        "diff.html.j2",
        {"change": figure} if figure["data"] else {},
        {},
        title=f"{found.before} to {found.after}",
        change=found,
    )
    return write_page(path, page, overwrite)
