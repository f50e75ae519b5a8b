"""The families of networks, and their presets: what a space's ``backbone`` may be. No torch until one is built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from search_spaces.errors import SpaceError, unknown
from search_spaces.families.contract import Family, Layout, Preset
from search_spaces.registry import Registry

if TYPE_CHECKING:
    from torch import nn

#: Entry points of this group name a ``Family``; that is how another package adds one.
GROUP = "temporal_nas.families"

FAMILIES = {
    "unet": "search_spaces.families.unet:FAMILY",
    "autoencoder": "search_spaces.families.autoencoder:FAMILY",
    "dit": "search_spaces.families.dit:FAMILY",
    "staged_unet": "search_spaces.families.staged_unet:FAMILY",
}


def families() -> Iterator[Family]:
    """Our families, then those that installed packages add.

    Raises:
        SpaceError: if a package's entry point cannot be loaded, or is no ``Family``.
    """
    yield from Registry("family", GROUP, FAMILIES, Family)


def known_presets() -> list[str]:
    """Names of all presets, of our families and of those that installed packages add."""
    return sorted({name for family in families() for name in family.presets})


def family_of(preset: str) -> Family:
    """The family that a preset belongs to.

    Raises:
        SpaceError: if nobody knows the preset.
    """
    for family in families():
        if preset in family.presets:
            return family
    raise SpaceError(unknown("backbone", preset, known_presets()))


def family_of_id(backbone_id: str) -> Family:
    """The family of a ``Space.backbone_id``: a preset's name, with a hash behind it where a space changes it.

    Raises:
        SpaceError: if nobody knows the preset.
    """
    for family in families():
        if backbone_id in family.presets:
            return family
    return family_of(backbone_id.rpartition("-")[0] or backbone_id)


@dataclass(frozen=True)
class Backbone:
    """The frame of a space: a preset's name and its whole configuration."""

    name: str
    config: Mapping[str, Any] = field(hash=False)

    @property
    def family(self) -> Family:
        """The family that it belongs to."""
        return family_of(self.name)

    @property
    def preset(self) -> Preset:
        """What the preset says before a space changes it."""
        return self.family.presets[self.name]

    @property
    def layout(self) -> Layout:
        """Its inputs, places and parts."""
        return self.family.layout(self.config)


def build_backbone(backbone: Backbone) -> nn.Module:
    """The frame of a backbone, freshly initialised.

    Raises:
        SpaceError: if its own code refuses the configuration.
    """
    family = backbone.family
    try:
        return family.build(backbone.config)
    except Exception as error:  # diffusers checks little of it, and says so with errors of any kind
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        reason = kind + " ".join(str(error).split())[:300]
        raise SpaceError(f"backbone.config is refused by {backbone.name}: {reason}") from error


def build_part(backbone: Backbone, name: str) -> nn.Module:
    """One part of a frame, freshly initialised: a module of (x, embedding, context).

    Raises:
        SpaceError: if the layout has no part of that name.
    """
    known = [part.name for part in backbone.layout.parts]
    if name not in known:
        advice = f"its parts are {', '.join(known)}" if known else "it is known only as a whole"
        raise SpaceError(f"backbone {backbone.name} has no part {name!r}; {advice}")
    return backbone.family.part(build_backbone(backbone), name)
