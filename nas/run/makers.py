"""What a run makes of its choice, by the task that its networks learnt: a model, its packages, and clips for people."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from nas.errors import NasError


class Makers(NamedTuple):
    """``module:function`` of each: (run, model), (model, packages, clip) and (configuration, run); folders all."""

    build: str
    export: str
    show: str


MAKERS: dict[str, Makers] = {
    "denoise": Makers("nas.model.build:build_model", "nas.export:export_model", "nas.model.showcase:write_samples"),
    "reconstruct": Makers(
        "nas.decoder.build:build_autoencoder",
        "nas.decoder.export:export_decoder",
        "nas.decoder.show:write_reconstructions",
    ),
}


def maker(space: str, what: str) -> Callable[..., dict[str, Any]]:
    """The function that makes ``build``, ``export`` or ``show`` for networks of a space.

    Raises:
        NasError: if networks of its task are only searched, not built.
    """
    from search_spaces.space import Space

    task = Space.load(space).backbone.family.task
    if task not in MAKERS:
        raise NasError(f"{space}: networks that learn {task} are searched here, but not built; stop after nas search")
    module, _, name = getattr(MAKERS[task], what).partition(":")
    found: Callable[..., dict[str, Any]] = getattr(import_module(module), name)
    return found


def build_run(run: Path, out: Path, autoencoder: str | None = None) -> dict[str, Any]:
    """The run's chosen arrangement as a model folder; with another autoencoder for its latents, if that is given."""
    from nas.config import load

    more = {} if autoencoder is None else {"autoencoder": autoencoder}
    return maker(load(run).space, "build")(run, out, **more)
