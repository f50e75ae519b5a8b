"""A given model's weights into the frame of a space: matching blocks are copied, the rest is named."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Protocol

from nas.errors import NasError
from nas.pretrained.files import choose_weights
from nas.pretrained.hub import has_part
from nas.pretrained.loading import load_weights, loading, open_part
from search_spaces.errors import SpaceError
from search_spaces.families.contract import Family, Layer, Mapped

#: What diffusers' pipelines call their network.
NETWORKS = ("unet", "transformer")


def check_given(family: Family, source: str) -> None:
    """Whether there is a model with weights that the family can inherit, by its configuration and its files alone.

    Raises:
        NasError: if not.
    """
    load_given(family, source, weights=False)


def load_given(family: Family, source: str, weights: bool = True) -> Any:
    """A model that the family inherits from, by hub id or folder; of a pipeline its network.

    Raises:
        NasError: if it cannot be loaded.
    """
    known = family.givers()
    if not known:
        raise NasError(f"{source}: networks of family {family.name} take no given weights; leave it out")
    with loading(source, "network", "give a hub id or a folder with its config.json and weights"):
        part = next((part for part in NETWORKS if has_part(source, part)), NETWORKS[0])
        folder, config = open_part(source, part)
        kind = str(config.get("_class_name") or "")
        if kind not in known:
            raise NasError(f"{source}: holds a {kind or 'model of no stated kind'}, not a {' or a '.join(known)}")
        return load_weights(known[kind], folder, source) if weights else choose_weights(folder)


class Network(Protocol):
    """A frame with layers in it, one of each place or all that may stand there."""

    unet: Any

    def take(self, place: str, given: Layer) -> int: ...

    def parameters(self) -> Iterator[Any]: ...


def init_network(family: Family, network: Network, source: str) -> Mapped:
    """Copy what matches of a given model into a network, in place: into its frame, and into the layers at places that
    are the given model's own blocks.

    Raises:
        NasError: if the source cannot be loaded, or nothing matches.
    """
    found = inherit(family, network.unet, source)
    try:
        taken = {place: network.take(place, layer) for place, layer in found.layers.items()}
    except SpaceError as error:
        raise NasError(f"{source}: {error}") from None
    if not found.layers:
        return found
    blocks = {**found.blocks, **{place: place for place, count in taken.items() if count}}
    copied = found.copied + sum(taken.values())
    total = sum(parameter.numel() for parameter in network.parameters())
    return replace(found, blocks=blocks, copied=copied, total=total)


def inherit(family: Family, frame: Any, source: str) -> Mapped:
    """Copy what matches of a given model into a frame, in place.

    Raises:
        NasError: if the source cannot be loaded, or nothing matches.
    """
    given = load_given(family, source)
    try:
        return replace(family.inherit(frame, given), source=source)
    except SpaceError as error:
        raise NasError(f"{source}: {error}") from None
