"""What a frame costs: its parameters, or its latency on a device, kept in a table like every other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from nas.errors import NasError
from search_spaces.families.contract import Pruning
from search_spaces.space import Space


class Parameters:
    """Cost: parameters of the frame."""

    name = "parameters"

    def __call__(self, frame: Any) -> float:
        return float(sum(parameter.numel() for parameter in frame.parameters()))

    def tell(self, value: float) -> str:
        return f"{value:,.0f}"


@dataclass
class Latency:
    """Cost: latency of the frame as a backbone of the space, in ms; a row of the device's table, measured once.

    Args:
        space: at whose deployment clip it is measured. device: name or YAML. table: folder of the tables.
        spaces: folder where each frame is kept as a space of its own, for who measures.
    """

    space: Space
    device: str
    table: Path
    spaces: Path
    known: dict[str, float] = field(default_factory=dict)
    name = "latency_ms"

    def __call__(self, frame: Any) -> float:
        """Raises: NasError: if the device could not run it."""
        from device_profiler.profile import profile_backbone

        made = space_with(self.space, frame)
        if made.backbone_id not in self.known:
            self.spaces.mkdir(parents=True, exist_ok=True)
            path = self.spaces / f"{made.backbone_id}.yaml"
            path.write_text(space_text(made))
            row = profile_backbone(path, self.device, self.table)
            if row.latency_ms_median is None:
                raise NasError(f"{self.device} gives no latency for {row.key}: {row.status} ({row.reason})")
            self.known[made.backbone_id] = row.latency_ms_median
        return self.known[made.backbone_id]

    def tell(self, value: float) -> str:
        return f"{value:,.4g} ms"


def space_with(space: Space, frame: Any) -> Space:
    """The space with another frame; what a position offers comes from the nearest one of the old space.

    Raises:
        NasError: if the space's backbone cannot be configured to be that frame.
    """
    usual = space.backbone.preset.config
    config = {key: _plain(frame.config.get(key, usual[key])) for key in usual}
    widths = dict(frame.config.get("widths") or {})
    if widths:
        config["widths"] = widths
    positions = []
    for place in space.backbone.family.layout(config).places:
        twins = [p for p in space.positions if (p.channels, p.space_scale) == (place.channels, place.space_scale)]
        named = [p for p in twins if p.name == place.name]
        if named or twins:
            like = (named or twins)[0]
            positions.append({**like.to_json(), "name": place.name})
    if not positions:
        raise NasError(f"{space.name}: none of its positions is left in the pruned network; give a space of its kind")
    told = space.to_json()
    return Space.from_json(
        {**told, "backbone": {"name": space.backbone.name, "config": config}, "positions": positions}
    )


def _plain(value: Any) -> Any:
    """Tuples as lists, as YAML and the spaces have them; one number where all stages have the same."""
    if isinstance(value, list | tuple):
        return list(value)
    return value


def space_text(space: Space) -> str:
    """A space as the YAML that loads as it."""
    usual, told = space.backbone.preset.config, space.to_json()
    changed = {k: v for k, v in space.backbone.config.items() if k not in usual or usual[k] != v}
    text = {name: value for name, value in told["text"].items() if name != "dim"}
    fields: Mapping[str, Any] = {
        "name": space.name,
        "description": "A backbone that nas prune made.",
        "backbone": {"name": space.backbone.name, "config": changed} if changed else space.backbone.name,
        "autoencoder": told["autoencoder"],
        "text": text,
        "clips": {name: dict(clip) for name, clip in told["clips"].items()},
        "positions": {
            position.name: {
                **({"least": position.least} if position.least else {}),
                "max_layers": position.most,
                "variants": [v.label for v in position.variants],
            }
            for position in space.positions
        },
    }
    return str(yaml.safe_dump(dict(fields), sort_keys=False, width=120))


def check_given(space: Space, pruning: Pruning, given: Any, source: str) -> list[str]:
    """Whether a network can be a frame of the space; gives what the space's frame has otherwise.

    Raises:
        NasError: if it reads other latents or text.
    """
    wrong, notes = pruning.misfits(given.config, space.latent_channels, space.text.dim)
    if wrong:
        raise NasError(f"{source}: does not fit space {space.name}: {', '.join(wrong)}; give a space of its kind")
    return list(notes)
