"""An arrangement: the variants chosen at every position of a space."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from search_spaces.errors import SpaceError, unknown
from search_spaces.reading import UnreadableError, parse_yaml, read_text
from search_spaces.variant import Variant
from search_spaces.writing import write_whole


@dataclass(frozen=True)
class Arrangement:
    """What stands where. Every position of the space is named, in execution order, the empty ones included.

    Layers of one position run in the order given, so ``(Conv1D, Conv3D)`` and ``(Conv3D, Conv1D)`` are two networks.
    """

    space: str
    layers: tuple[tuple[str, tuple[Variant, ...]], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple((name, tuple(variants)) for name, variants in self.layers))
        names = self.positions
        if len(set(names)) < len(names):
            raise SpaceError(f"an arrangement of {self.space} names a position twice: {', '.join(names)}; keep one")

    @property
    def positions(self) -> tuple[str, ...]:
        """Names of all positions, in execution order."""
        return tuple(name for name, _ in self.layers)

    def at(self, position: str) -> tuple[Variant, ...]:
        """The layers of one position, in execution order; empty if there are none."""
        for name, variants in self.layers:
            if name == position:
                return variants
        raise SpaceError(f"arrangement of {self.space}: {unknown('position', position, self.positions)}")

    def replace(self, position: str, variants: Iterable[Variant]) -> "Arrangement":
        """The same arrangement with other layers at one position."""
        self.at(position)
        chosen = tuple(variants)
        return Arrangement(self.space, tuple((name, chosen if name == position else old) for name, old in self.layers))

    @cached_property
    def key(self) -> str:
        """A stable name: 12 hex characters of the SHA-256 over the canonical JSON."""
        canonical = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    @property
    def num_layers(self) -> int:
        """Temporal layers over all positions."""
        return sum(len(variants) for _, variants in self.layers)

    def labels(self) -> dict[str, tuple[str, ...]]:
        """``{position: (variant labels, ...)}``, the form in which tables and front files speak."""
        return {name: tuple(variant.label for variant in variants) for name, variants in self.layers}

    def to_json(self) -> dict[str, Any]:
        """``{"space": ..., "positions": {position: [label, ...]}}``."""
        return {"space": self.space, "positions": {name: list(labels) for name, labels in self.labels().items()}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Arrangement":
        """The inverse of ``to_json``.

        Raises:
            SpaceError: if keys are missing or unknown, or a label cannot be read.
        """
        if not isinstance(data, Mapping) or set(data) != {"space", "positions"}:
            got = ", ".join(map(str, data)) if isinstance(data, Mapping) else type(data).__name__
            raise SpaceError(f"an arrangement has exactly the keys space and positions, but this has {got or 'none'}")
        positions = data["positions"]
        if not isinstance(positions, Mapping):
            raise SpaceError("positions must map each position to a list of variants; [] where there is none")
        layers = []
        for name, labels in positions.items():
            if not isinstance(labels, list):
                raise SpaceError(f"positions.{name} must be a list of variants, but is {labels!r}; write [] for none")
            try:
                layers.append((str(name), tuple(Variant.parse(label) for label in labels)))
            except SpaceError as error:
                raise SpaceError(f"positions.{name}: {error}") from None
        if not isinstance(data["space"], str):
            raise SpaceError(f"space must be the name of one, but is {data['space']!r:.60}")
        return cls(data["space"], tuple(layers))

    def save(self, path: str | Path) -> Path:
        """Write YAML (positions to lists of labels), atomically; returns the path."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, yaml.safe_dump(self.to_json(), sort_keys=False, width=120))
        return path

    @classmethod
    def load(cls, path: str | Path) -> "Arrangement":
        """Read what ``save`` wrote.

        Raises:
            SpaceError: if the file cannot be read or is no arrangement; the message starts with its path.
        """
        try:
            return cls.from_json(parse_yaml(read_text(path)))
        except (SpaceError, UnreadableError) as error:
            raise SpaceError(f"{path}: {error}") from None
