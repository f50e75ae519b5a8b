"""A space's YAML, read and checked key by key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from search_spaces.errors import SpaceError, plain_text, unknown
from search_spaces.families import Backbone, family_of
from search_spaces.families.contract import Layout
from search_spaces.parts import APART, SMALL, Autoencoder, Clip, Position, Text, check_sizes
from search_spaces.variant import Variant


def parse_definition(data: Any) -> tuple[dict[str, Any], dict[str, list[Variant]] | None]:
    """The fields of a ``Space``, and what stands where in its baseline, if that is stated.

    Raises:
        SpaceError: naming the first key that is missing, unknown or wrong.
    """
    fields = _mapping(
        data, "", ("name", "backbone", "clips", "positions"), ("text", "description", "autoencoder", "baseline")
    )
    name = fields["name"]
    if not isinstance(name, str) or not name.replace("_", "").isalnum() or len(name) > 100:
        raise SpaceError(f"name must be letters, digits and _ (it becomes part of table keys), but is {name!r}")
    backbone = _parse_backbone(fields["backbone"])
    layout = backbone.layout
    text = _parse_text(fields, layout)
    autoencoder = _mapping(fields.get("autoencoder", {}), "autoencoder", (), ("time", "space", "decoder", "causal"))
    clips = _mapping(fields["clips"], "clips", ("deployment",), ("training",))
    parsed = {key: _parse_clip(value, f"clips.{key}") for key, value in clips.items()}
    made: dict[str, Any] = {
        "name": name,
        "description": plain_text(fields.get("description", ""), "description").strip(),
        "backbone": backbone,
        "positions": _parse_positions(fields["positions"], layout),
        "clips": {"training": parsed.get("training", parsed["deployment"]), "deployment": parsed["deployment"]},
        "text": text,
        "latent_channels": layout.in_channels,
        "autoencoder": Autoencoder(**autoencoder),
    }
    return made, _parse_baseline(fields["baseline"], made["positions"]) if "baseline" in fields else None


def _parse_text(fields: Mapping[str, Any], layout: Layout) -> Text:
    """What the network reads of a prompt: stated where it reads one, and only there."""
    if layout.context_dim and "text" not in fields:
        raise SpaceError("the file lacks text; add it")
    if not layout.context_dim:
        if "text" in fields:
            raise SpaceError("text is stated, but the backbone reads none; leave it out")
        return Text(0, 0)
    text = _mapping(fields["text"], "text", ("tokens",), ("encoder",))
    return Text(text["tokens"], layout.context_dim, text.get("encoder", SMALL))


def _parse_baseline(data: Any, positions: tuple[Position, ...]) -> dict[str, list[Variant]]:
    stated = _mapping(data, "baseline", (), tuple(position.name for position in positions))
    for where, layers in stated.items():
        if not isinstance(layers, list):
            raise SpaceError(f"baseline.{where} must be a list of variants, but is {layers!r:.60}")
    try:
        return {where: [Variant.parse(label) for label in layers] for where, layers in stated.items()}
    except SpaceError as error:
        raise SpaceError(f"baseline: {error}") from None


def _parse_backbone(data: Any) -> Backbone:
    fields = _mapping({"name": data} if isinstance(data, str) else data, "backbone", ("name",), ("config",))
    name = plain_text(fields["name"], "backbone.name")
    try:
        family = family_of(name)
    except SpaceError as error:
        raise SpaceError(f"backbone.name: {error}") from None
    preset = family.presets[name]
    changes = _mapping(fields.get("config") or {}, "backbone.config", (), (*preset.config, *preset.extras))
    backbone = Backbone(name, {**preset.config, **changes})
    try:
        family.layout(backbone.config)
    except SpaceError as error:
        raise SpaceError(f"backbone.config: {error}") from None
    return backbone


def _parse_clip(data: Any, where: str) -> Clip:
    fields = _mapping(data, where, ("frames", "height", "width", "fps"))
    check_sizes(fields, where)
    return Clip(**fields)


def _parse_positions(data: Any, layout: Layout) -> tuple[Position, ...]:
    places = {place.name: place for place in layout.places}
    fields = _mapping(data, "positions", (), tuple(places), kind="position")
    if not fields:
        raise SpaceError(f"positions is empty; name at least one of {', '.join(places)}")
    positions = []
    for place in (place for name, place in places.items() if name in fields):
        where = f"positions.{place.name}"
        entry = dict(fields[place.name]) if isinstance(fields[place.name], Mapping) else fields[place.name]
        if isinstance(entry, dict) and "most" in entry and "max_layers" not in entry:
            entry["max_layers"] = entry.pop("most")
        entry = _mapping(entry, where, ("max_layers", "variants"), ("least", "shelf"))
        if not isinstance(entry["variants"], list):
            raise SpaceError(f"{where}.variants must be a list, but is {entry['variants']!r}")
        variants = []
        for index, label in enumerate(entry["variants"]):
            try:
                variants.append(Variant.parse(label))
            except SpaceError as error:
                raise SpaceError(f"{where}.variants[{index}]: {error}") from None
        positions.append(
            Position(
                place.name,
                place.channels,
                place.space_scale,
                entry["max_layers"],
                tuple(variants),
                entry.get("least", 0),
                place.time_scale,
                entry.get("shelf", APART),
            )
        )
    return tuple(positions)


def _mapping(
    data: Any, where: str, required: tuple[str, ...], optional: tuple[str, ...] = (), kind: str = "key"
) -> dict[str, Any]:
    """The mapping itself, if it has all required keys and no unknown ones."""
    dot, at = (f"{where}.", where) if where else ("", "the file")
    if not isinstance(data, Mapping):
        raise SpaceError(f"{at} must map {', '.join(required + optional)} to values, but is {data!r:.60}")
    for key in data:
        if key not in required + optional:
            raise SpaceError(f"{dot}{key}: {unknown(kind, key, required + optional)}")
    missing = [key for key in required if key not in data]
    if missing:
        raise SpaceError(f"{at} lacks {', '.join(missing)}; add {'it' if len(missing) == 1 else 'them'}")
    return dict(data)
