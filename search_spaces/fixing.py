"""A space with some of its choices made: what stands in an arrangement is no choice any more, the rest stays open."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from search_spaces.arrangement import Arrangement
from search_spaces.errors import SpaceError, unknown
from search_spaces.space import Space
from search_spaces.writing import write_whole


def fix(space: Space, arrangement: Arrangement, name: str | None = None) -> Space:
    """The space with one choice left at each position that an arrangement, of this or of another space, names.

    So a search of temporal layers goes on where an image search ended: its blocks stay as they were chosen.

    Raises:
        SpaceError: if a position is not there, does not allow what stands in the arrangement, or holds another number.
    """
    known = {position.name: position for position in space.positions}
    made = dict(known)
    for where, layers in arrangement.layers:
        if where not in known:
            raise SpaceError(f"space {space.name}: {unknown('position', where, known)}")
        position, kinds = known[where], set(layers)
        for variant in layers:
            if variant not in position.variants:
                allowed = ", ".join(other.label for other in position.variants)
                raise SpaceError(f"{where}: {variant.label} is not allowed in {space.name}; allowed: {allowed}")
        if len(kinds) > 1 or len(layers) not in position.lengths:
            raise SpaceError(f"{where}: {len(layers)} layers of {len(kinds)} kinds cannot be fixed; leave it open")
        made[where] = replace(position, least=len(layers), most=len(layers), variants=tuple(kinds))
    called = name or f"{space.name}_fixed"
    stated = None
    if space.stated_baseline is not None:
        fixed = dict(arrangement.layers)
        stated = Arrangement(called, tuple((n, fixed.get(n, vs)) for n, vs in space.stated_baseline.layers))
    return replace(space, name=called, positions=tuple(made.values()), source=None, stated_baseline=stated)


def write_space(space: Space, path: Path) -> Path:
    """The space as a YAML that ``Space.load`` reads to the same definition; written whole or not at all."""
    definition: dict[str, Any] = {
        "name": space.name,
        "description": space.description,
        "backbone": {"name": space.backbone.name, "config": dict(space.backbone.config)},
        "autoencoder": space.autoencoder.to_json(),
        "clips": {name: dict(vars(clip)) for name, clip in space.clips.items()},
        "positions": {p.name: _position(p.to_json()) for p in space.positions},
    }
    if space.text is not None:
        definition["text"] = {"tokens": space.text.tokens, "encoder": space.text.encoder}
    if space.stated_baseline is not None:
        definition["baseline"] = space.stated_baseline.labels()
    plain = yaml.safe_dump(_plain(definition), sort_keys=False, width=120)
    write_whole(path, plain)
    if Space.load(path).fingerprint != space.fingerprint:
        raise SpaceError(f"{path}: does not read back as it was written; write this space by hand")
    return path


def _position(fields: dict[str, Any]) -> dict[str, Any]:
    """What a YAML states of a position: its place says the rest."""
    return {name: fields[name] for name in ("least", "max_layers", "shelf", "variants") if name in fields}


def _plain(value: Any) -> Any:
    """Tuples as lists, all the way down."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value
