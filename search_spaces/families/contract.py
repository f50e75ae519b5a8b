"""What a family of networks tells without being loaded: its places, parts and configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Place:
    """Where temporal layers may stand: a name, the channels there, and how far height and width are divided."""

    name: str
    channels: int
    downscale: int


@dataclass(frozen=True)
class Part:
    """A spatial part of a backbone: its name, the channels it reads (skip included), its downscale."""

    name: str
    channels: int
    downscale: int


@dataclass(frozen=True)
class Layout:
    """What a space must know of a backbone: its input, its text, and its places in execution order."""

    in_channels: int
    context_dim: int
    places: tuple[Place, ...]


@dataclass(frozen=True)
class BackboneSpec:
    """What is known of a backbone without loading it.

    Attributes:
        build: ``module:function``, called as ``function(config)`` and returning the module.
        run: ``module:function`` with the signature of ``unet.run_unet``: one evaluation that offers ``temporal`` the
            running tensor at every place.
        config: its arguments; a space may override them, key by key.
        tokens: length of the text that its measured workload reads.
        layout: the torch-free reading of a config.
        extras: further keys that a space's config may have.
        parts: the torch-free reading of a config's spatial parts, in execution order. build_part: ``module:function``,
            called as ``function(backbone, name)`` and returning one as a module of (x, embedding, context).
        summary: one phrase for people.
    """

    build: str
    run: str
    config: Mapping[str, Any]
    tokens: int
    layout: Callable[[Mapping[str, Any]], Layout]
    summary: str
    extras: tuple[str, ...] = ()
    parts: Callable[[Mapping[str, Any]], tuple[Part, ...]] | None = None
    build_part: str = ""
