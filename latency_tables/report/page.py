"""What all pages share: one look, figures that draw themselves, and nothing loaded from anywhere."""

from __future__ import annotations

import base64
import gzip
import os
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from latency_tables.errors import TableError
from latency_tables.files import begins_with, write_atomic

HERE = Path(__file__).parent

# How a page of ours begins; the second is how those of version 0.1 did.
MARKS = (b'<meta name="generator" content="temporal-nas">', b"Temporal NAS</title>")

Figure = dict[str, Any]


def render_page(
    folder: Path,
    template: str,
    figures: Mapping[str, Figure],
    filters: Mapping[str, Callable[..., str]],
    **values: Any,
) -> str:
    """A page as text, from a template of ``folder`` that extends ``page.html.j2``.

    Args:
        figures: name -> plotly's JSON; each is drawn into the element of that id. Colours written ``$name`` are
            variables of the page's style.
        filters: name -> function from a value to text, for the template. values: what the template shows.

    Raises:
        TableError: if jinja2 or plotly is not installed; the table commands themselves need neither.
    """
    try:
        from markupsafe import Markup

        environment = _environment(folder)
        packed = packed_plotly() if figures else ""
    except ModuleNotFoundError as error:
        raise TableError(f"pages need jinja2 and plotly, and {error.name} is not installed; install it") from error
    environment.filters.update(filters)
    return environment.get_template(template).render(
        figures=figures,
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup((HERE / "page.js").read_text(encoding="utf-8")),
        plotly=packed,
        **values,
    )


@cache
def _environment(folder: Path) -> Any:
    """Templates of a folder, compiled once."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader([folder, HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def claim_page(path: Path, overwrite: bool = False) -> None:
    """Refuse to write a page over a file that is no page of ours.

    Raises:
        TableError: naming the file and the remedy.
    """
    try:
        ours = not os.path.lexists(path) or begins_with(path, MARKS)
    except OSError:  # a link, or nothing that can be read
        ours = False
    if path.is_dir() or not (ours or overwrite):
        remedy = "give another name" if path.is_dir() else "give another name, or say --overwrite"
        raise TableError(f"{path}: is there already and is no page of ours; {remedy}")


def write_page(path: Path, page: str, overwrite: bool = False) -> Path:
    """Put the page at ``path``, whole or not at all; only a page of ours is replaced, unless ``overwrite``.

    Raises:
        TableError: if something else is there, or it cannot be written.
    """
    claim_page(path, overwrite)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TableError(f"{path.parent}: cannot be made ({error.strerror or error}); choose another folder") from None
    write_atomic(path, page.encode("utf-8", "replace"))
    return path


@cache
def packed_plotly() -> str:
    """plotly.js, compressed: the page unpacks it, at well under half the size."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode()
