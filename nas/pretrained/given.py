"""A given model's weights into the frame of a space: matching blocks are copied, the rest is named."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from nas.errors import NasError
from nas.pretrained.files import choose_weights
from nas.pretrained.loading import load_weights, loading, open_part
from search_spaces.errors import SpaceError
from search_spaces.families.contract import Family, Mapped


def check_given(family: Family, source: str) -> None:
    """Whether there is a model with weights that the family can inherit, by its configuration and its files alone.

    Raises:
        NasError: if not.
    """
    load_given(family, source, weights=False)


def load_given(family: Family, source: str, weights: bool = True) -> Any:
    """A model that the family inherits from, by hub id or folder; of a pipeline its ``unet``.

    Raises:
        NasError: if it cannot be loaded.
    """
    known = family.givers()
    if not known:
        raise NasError(f"{source}: networks of family {family.name} take no given weights; leave it out")
    with loading(source, "UNet", "give a hub id or a folder with its config.json and weights"):
        folder, config = open_part(source, "unet")
        kind = str(config.get("_class_name") or "")
        if kind not in known:
            raise NasError(f"{source}: holds a {kind or 'model of no stated kind'}, not a {' or a '.join(known)}")
        return load_weights(known[kind], folder, source) if weights else choose_weights(folder)


def init_frame(family: Family, frame: Any, source: str) -> Mapped:
    """Copy what matches of a given model into ``frame``, in place.

    Raises:
        NasError: if the source cannot be loaded, or nothing matches.
    """
    given = load_given(family, source)
    try:
        return replace(family.inherit(frame, given), source=source)
    except SpaceError as error:
        raise NasError(f"{source}: {error}") from None
