"""What all pages share: one look, figures that draw themselves, and nothing loaded from anywhere."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from latency_tables.errors import TableError
from latency_tables.files import write_atomic

HERE = Path(__file__).parent

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
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
        from markupsafe import Markup

        packed = packed_plotly() if figures else ""
    except ModuleNotFoundError as error:
        raise TableError(f"pages need jinja2 and plotly, and {error.name} is not installed; install it") from error
    environment = Environment(
        loader=FileSystemLoader([folder, HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters)
    return environment.get_template(template).render(
        figures=figures,
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup((HERE / "page.js").read_text(encoding="utf-8")),
        plotly=packed,
        **values,
    )


def write_page(path: Path, page: str) -> Path:
    """Put the page at ``path``, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, page.encode("utf-8", "replace"))  # half a character of a path or a note is no reason to refuse
    return path


@cache
def packed_plotly() -> str:
    """plotly.js, compressed: the page unpacks it, at well under half the size."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode()
