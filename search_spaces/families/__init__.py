"""The spatial backbones by name: their configuration and, without torch, their positions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from search_spaces.errors import SpaceError, unknown
from search_spaces.families.contract import BackboneSpec, Layout
from search_spaces.families.unet.layout import BACKBONES

if TYPE_CHECKING:
    from torch import nn

#: Entry points of this group name a ``BackboneSpec``.
GROUP = "temporal_nas.backbones"


def known_backbones() -> list[str]:
    """Names of our backbones and of those that installed packages add."""
    return sorted({*BACKBONES, *(point.name for point in entry_points(group=GROUP))})


def backbone_spec(name: str) -> BackboneSpec:
    """What is known of a backbone: ours, or one that an installed package adds.

    Raises:
        SpaceError: if nobody knows it, or the package's entry point is no ``BackboneSpec``.
    """
    if name in BACKBONES:
        return BACKBONES[name]
    for point in entry_points(group=GROUP):
        if point.name == name:
            spec = point.load()
            if not isinstance(spec, BackboneSpec):
                raise SpaceError(f"backbone {name!r}: entry point {point.value} must name a BackboneSpec, not {spec!r}")
            return spec
    raise SpaceError(unknown("backbone", name, known_backbones()))


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def build_backbone(backbone: Backbone) -> nn.Module:
    """A backbone, freshly initialised.

    Raises:
        SpaceError: if its own code refuses the configuration.
    """
    build = _load(backbone_spec(backbone.name).build)
    try:
        return build(backbone.config)
    except Exception as error:  # diffusers checks little of it, and says so with errors of any kind
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        reason = kind + " ".join(str(error).split())[:300]
        raise SpaceError(f"backbone.config is refused by {backbone.name}: {reason}") from error


def build_part(backbone: Backbone, name: str) -> nn.Module:
    """One spatial part of a backbone, freshly initialised: a module of (x, embedding, context).

    Raises:
        SpaceError: if the backbone is not known in parts, or has none of that name.
    """
    spec = backbone_spec(backbone.name)
    if not spec.build_part:
        raise SpaceError(f"backbone {backbone.name} is not known in parts; measure it whole")
    return _load(spec.build_part)(build_backbone(backbone), name)


def backbone_forward(backbone: Backbone) -> Callable[..., Any]:
    """The function that evaluates a backbone: ``run_unet`` for ours."""
    return _load(backbone_spec(backbone.name).run)


def run_unet(*args: Any, **kwargs: Any) -> Any:
    """``search_spaces.families.unet.run.run_unet``, imported when called, so that this package stays free of torch."""
    return _load("search_spaces.families.unet.run:run_unet")(*args, **kwargs)


@dataclass(frozen=True)
class Backbone:
    """A backbone's name and its whole configuration."""

    name: str
    config: Mapping[str, Any] = field(hash=False)

    @property
    def layout(self) -> Layout:
        """Its input channels, text width and places."""
        return backbone_spec(self.name).layout(self.config)
