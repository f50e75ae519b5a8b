"""A given model's weights into the frame of a space: matching blocks are copied, the rest is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from nas.errors import NasError
from nas.pretrained.files import choose_weights
from nas.pretrained.hub import has_part
from nas.pretrained.loading import load_weights, loading, open_part
from search_spaces.errors import SpaceError
from search_spaces.families.contract import Family, Layer, Mapped

if TYPE_CHECKING:
    from nas.pretrained.text import TextEncoder
    from search_spaces.space import Space

#: What diffusers' pipelines call their network.
NETWORKS = ("unet", "transformer")


def check_given(family: Family, source: str) -> None:
    """Whether there is a model with weights that the family can inherit, by its configuration and its files alone.

    Raises:
        NasError: if not.
    """
    load_given(family, source, weights=False)


def load_given(family: Family, source: str, weights: bool = True) -> Any:
    """A model that the family inherits from, by hub id or folder; of a pipeline its network. What this toolkit built of
    the same family comes as ``Built``.

    Raises:
        NasError: if it cannot be loaded.
    """
    from nas.pretrained.built import BUILT, Built, family_of_built

    known = family.givers()
    if not known:
        raise NasError(f"{source}: networks of family {family.name} take no given weights; leave it out")
    with loading(source, "network", "give a hub id or a folder with its config.json and weights"):
        part = next((part for part in NETWORKS if has_part(source, part)), NETWORKS[0])
        folder, config = open_part(source, part)
        kind = str(config.get("_class_name") or "")
        if kind == BUILT:
            if (theirs := family_of_built(config)) != family.name:
                raise NasError(f"{source}: a network of family {theirs}, and this space is of {family.name}")
            return load_weights(Built, folder, source) if weights else choose_weights(folder)
        if kind not in known:
            raise NasError(f"{source}: holds a {kind or 'model of no stated kind'}, not a {' or a '.join(known)}")
        return load_weights(known[kind], folder, source) if weights else choose_weights(folder)


def given_text(source: str, space: Space, captions: Sequence[str], warn: Callable[[str], None]) -> TextEncoder | None:
    """The text encoder of a model that this toolkit built, which its network learnt with; None of any other model.

    Raises:
        NasError: if it cannot be loaded, or does not fit the space.
    """
    from nas.pretrained.built import BUILT
    from nas.pretrained.text import TextEncoder

    with loading(source, "network", "give a hub id or a folder with its config.json and weights"):
        if space.text is None or not has_part(source, "text_encoder"):
            return None
        if open_part(source, "unet")[1].get("_class_name") != BUILT:
            return None
    text = TextEncoder.pretrained(source)
    if (text.max_tokens, text.width) != (space.text.tokens, space.text.dim):
        raise NasError(
            f"{source}: its text encoder gives {text.max_tokens} tokens of width {text.width}, but space {space.name} "
            f"reads {space.text.tokens} of {space.text.dim}; change text.tokens or the frame's width of text"
        )
    mark = text.tokenizer.unk_token_id
    words = sorted({word for caption in captions for word in caption.split()})
    new = [word for word in words if mark in text.tokenizer(word, add_special_tokens=False).input_ids]
    if new:
        warn(f"init: {source} has no word for {', '.join(map(repr, new[:5]))}{' and others' if new[5:] else ''}")
    return text.requires_grad_(True)


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
    from nas.pretrained.built import Built

    given = load_given(family, source)
    try:
        if isinstance(given, Built):
            return replace(family.inherit(frame, given.network.unet), source=source, layers=given.layers())
        return replace(family.inherit(frame, given), source=source)
    except SpaceError as error:
        raise NasError(f"{source}: {error}") from None
