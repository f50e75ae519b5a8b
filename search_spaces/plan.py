"""A plan: the torch-free JSON of a space, and (with torch) how it is computed from the real backbone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from search_spaces.arrangement import Arrangement
from search_spaces.errors import SpaceError, unknown
from search_spaces.parts import MAX_LAYERS
from search_spaces.reading import UnreadableError, parse_json, read_text
from search_spaces.variant import Variant
from search_spaces.writing import write_whole

SCHEMA = 1
MAX_FILE = 16_000_000  # bytes


@dataclass(frozen=True)
class PlanLayer:
    """A variant at a position: the workload that costs it (without precision) and its parameters."""

    variant: Variant
    workload: str
    parameters: int


@dataclass(frozen=True)
class PlanPosition:
    """A position with the feature map there and every layer that it allows."""

    name: str
    channels: int
    frames: int
    height: int
    width: int
    max_layers: int
    layers: tuple[PlanLayer, ...]
    least: int = 0


@dataclass(frozen=True)
class Point:
    """A moment of execution: the skip tensors (name, elements) alive then, without the running tensor itself."""

    name: str
    kind: str
    skips: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class PlanEnd:
    """An end of the model: the workload of one call (without precision), its parameters, and the calls of one video."""

    workload: str
    parameters: int
    calls: int = 1


@dataclass(frozen=True)
class Plan:
    """What a table and a search must know of a space, at its deployment clip and batch 1. No torch needed to read it.

    Attributes:
        space: name of the space.
        fingerprint: of the definition it was computed from.
        clip: ``name``, ``frames``, ``height``, ``width``, ``fps`` and ``latent`` (T, C, H, W).
        backbone_name, backbone_workload, backbone_parameters: the bare backbone.
        positions: in execution order.
        points: moments of execution, in order; kind ``position`` is where that position's layers run.
        text_encoder, decoder: what a video costs beside the network; None where the space has none.
        stated_baseline: what the space compares with, where its YAML states it.
    """

    space: str
    fingerprint: str
    clip: Mapping[str, Any]
    backbone_name: str
    backbone_workload: str
    backbone_parameters: int
    positions: tuple[PlanPosition, ...]
    points: tuple[Point, ...]
    text_encoder: PlanEnd | None = None
    decoder: PlanEnd | None = None
    stated_baseline: Arrangement | None = None

    @classmethod
    def read(cls, path: str | Path) -> Plan:
        """Read one file.

        Raises:
            SpaceError: if it cannot be read or is no plan of this schema.
        """
        try:
            return cls.from_json(parse_json(read_text(path, MAX_FILE)))
        except UnreadableError as error:
            raise SpaceError(f"{path}: is no plan of schema {SCHEMA}: {error}") from None
        except SpaceError as error:
            raise SpaceError(f"{path}: {error}") from None

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """The inverse of ``to_json``.

        Raises:
            SpaceError: naming the first field that is missing or of another kind.
        """
        try:
            file = _File.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise SpaceError(
                f"is no plan of schema {SCHEMA} ({where}: {first['msg']}); run python -m search_spaces.planning"
            ) from None
        ends = {"text_encoder": file.text_encoder, "decoder": file.decoder}
        return cls(
            space=file.space,
            fingerprint=file.fingerprint,
            clip=file.clip,
            backbone_name=file.backbone.name,
            backbone_workload=file.backbone.workload,
            backbone_parameters=file.backbone.parameters,
            positions=tuple(
                PlanPosition(
                    **{name: getattr(item, name) for name in _POSITION_FIELDS},
                    layers=tuple(
                        PlanLayer(Variant.parse(layer.variant), layer.workload, layer.parameters)
                        for layer in item.layers
                    ),
                    least=item.least,
                )
                for item in file.positions
            ),
            points=tuple(Point(item.name, item.kind, tuple(item.skips)) for item in file.points),
            **{name: PlanEnd(**end.model_dump()) for name, end in ends.items() if end is not None},
            stated_baseline=Arrangement.from_json(file.baseline) if file.baseline is not None else None,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; the schema that ``latency_tables`` reads."""
        return {
            "schema": SCHEMA,
            "space": self.space,
            "fingerprint": self.fingerprint,
            "clip": dict(self.clip),
            "backbone": {
                "name": self.backbone_name,
                "workload": self.backbone_workload,
                "parameters": self.backbone_parameters,
            },
            **{name: vars(end) for name in ("text_encoder", "decoder") if (end := getattr(self, name)) is not None},
            **({"baseline": self.stated_baseline.to_json()} if self.stated_baseline is not None else {}),
            "positions": [
                {
                    **{name: getattr(position, name) for name in _POSITION_FIELDS},
                    **({"least": position.least} if position.least else {}),
                    "layers": [
                        {
                            "variant": layer.variant.label,
                            **layer.variant.to_json(),
                            "workload": layer.workload,
                            "parameters": layer.parameters,
                        }
                        for layer in position.layers
                    ],
                }
                for position in self.positions
            ],
            "points": [
                {"name": point.name, "kind": point.kind, "skips": [list(skip) for skip in point.skips]}
                for point in self.points
            ],
        }

    def save(self, path: str | Path) -> Path:
        """Write JSON, one row of detail a line, atomically; returns the path."""
        path = Path(path)
        write_whole(path, _dump(self.to_json()))
        return path

    # Reading ----------------------------------------------------------------------------------------------------

    @cached_property
    def _layers(self) -> dict[tuple[str, Variant], PlanLayer]:
        return {(position.name, layer.variant): layer for position in self.positions for layer in position.layers}

    def layer(self, position: str, variant: Variant) -> PlanLayer:
        """One allowed layer."""
        try:
            return self._layers[position, variant]
        except KeyError:
            known = [f"{name}: {allowed.label}" for name, allowed in self._layers]
            raise SpaceError(unknown("layer", f"{position}: {variant.label}", known)) from None

    def parameters(self, arrangement: Arrangement) -> int:
        """Parameters of the backbone and of all layers of an arrangement."""
        return self.backbone_parameters + sum(
            self.layer(position, variant).parameters for position, layers in arrangement.layers for variant in layers
        )

    def smallest(self) -> Arrangement:
        """The arrangement with fewest parameters: as few layers as every position may hold, of its smallest variant."""
        return Arrangement(
            self.space, tuple((p.name, (_smallest(p).variant,) * p.least if p.least else ()) for p in self.positions)
        )

    def largest(self) -> Arrangement:
        """The arrangement with most parameters: every position full of its largest variant (the first of equals)."""
        return Arrangement(
            self.space,
            tuple(
                (
                    position.name,
                    (max(position.layers, key=lambda layer: layer.parameters).variant,) * position.max_layers
                    if position.max_layers
                    else (),
                )
                for position in self.positions
            ),
        )

    @property
    def workloads(self) -> tuple[str, ...]:
        """Distinct workloads (without precision), the backbone first."""
        layers = (layer.workload for position in self.positions for layer in position.layers)
        return tuple(dict.fromkeys([self.backbone_workload, *layers]))


# The file, as it must be --------------------------------------------------------------------------------------------

Count = Annotated[int, Field(ge=0, le=2**53)]
Name = Annotated[str, Field(min_length=1, max_length=1000)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True)


class _FileLayer(_Part):
    variant: Name
    workload: Name
    parameters: Count


class _FilePosition(_Part):
    name: Name
    channels: Count
    frames: Count
    height: Count
    width: Count
    max_layers: Annotated[int, Field(ge=0, le=MAX_LAYERS)]
    least: Annotated[int, Field(ge=0, le=MAX_LAYERS)] = 0
    layers: list[_FileLayer]


class _FilePoint(_Part):
    name: Name
    kind: Name
    skips: list[Annotated[tuple[str, Count], Field(strict=False)]]


class _FileEnd(_Part):
    workload: Name
    parameters: Count
    calls: Count = 1


class _FileBackbone(_Part):
    name: Name
    workload: Name
    parameters: Count


class _File(_Part):
    schema_: Annotated[int, Field(alias="schema", ge=SCHEMA, le=SCHEMA)]
    space: Name
    fingerprint: str
    clip: dict[str, Any]
    backbone: _FileBackbone
    positions: list[_FilePosition]
    points: list[_FilePoint]
    text_encoder: _FileEnd | None = None
    decoder: _FileEnd | None = None
    baseline: dict[str, Any] | None = None


_POSITION_FIELDS = ("name", "channels", "frames", "height", "width", "max_layers")


def _smallest(position: PlanPosition) -> PlanLayer:
    return min(position.layers, key=lambda layer: layer.parameters)


def _dump(data: Mapping[str, Any]) -> str:
    """JSON with one line a leaf record, so that a reviewed diff names what changed."""
    lines: list[str] = []
    for key, value in data.items():
        if not isinstance(value, list):
            lines.append(f"{json.dumps(key)}: {json.dumps(value)}")
            continue
        rows = []
        for item in value:
            inner = item.get("layers")
            if inner is None:
                rows.append(f"  {json.dumps(item)}")
                continue
            head = json.dumps({name: part for name, part in item.items() if name != "layers"})[:-1]
            layers = ",\n".join(f"    {json.dumps(layer)}" for layer in inner)
            rows.append(f'  {head}, "layers": [\n{layers}\n  ]}}')
        lines.append(f"{json.dumps(key)}: [\n" + ",\n".join(rows) + "\n]")
    return "{\n" + ",\n".join(lines) + "\n}\n"
