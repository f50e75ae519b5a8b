"""A plan: a space as plain data, with what is alive at each point of execution. Reading one needs no torch."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from search_spaces.arrangement import Arrangement
from search_spaces.errors import MAX_LAYERS, MAX_OPTIONS, SpaceError, unknown
from search_spaces.reading import UnreadableError, parse_json, read_text
from search_spaces.variant import Variant
from search_spaces.writing import write_whole

SCHEMA = 1
SPACES = Path(__file__).with_name("spaces")  # the definitions that ship with the package, each with its plan beside it
MAX_FILE = 16_000_000  # bytes
MAX_COUNT = 2**53  # of parameters or elements: what JSON can hold exactly
MAX_NAME = 1000  # characters


@dataclass(frozen=True)
class PlanLayer:
    """A variant at a position: the workload that costs it (without precision) and its parameters."""

    variant: Variant
    workload: str
    parameters: int

    @property
    def label(self) -> str:
        """What tables, front files and people call the variant."""
        return self.variant.label

    def to_json(self) -> dict[str, Any]:
        """The variant written in both forms, so that a file can be read without taking a label apart."""
        named = {"variant": self.label, **self.variant.to_json()}
        return {**named, "workload": self.workload, "parameters": self.parameters}


@dataclass(frozen=True)
class PlanPosition:
    """A place for ``least`` to ``max_layers`` layers, with the feature map there and every layer that it allows."""

    name: str
    channels: int
    frames: int
    height: int
    width: int
    max_layers: int
    layers: tuple[PlanLayer, ...]
    least: int = 0
    calls: int = 1  # of a layer for one evaluation: more than one where the network runs frame by frame

    @property
    def lengths(self) -> range:
        """How many layers may stand here."""
        return range(self.least, self.max_layers + 1)

    @property
    def size(self) -> int:
        """How many options there are, the empty one included where it is allowed."""
        return sum(len(self.layers) ** length for length in self.lengths)

    @cached_property
    def options(self) -> tuple[tuple[int, ...], ...]:
        """Every option as indices into ``layers``: by length (an empty one is first), then in product order.

        Raises:
            SpaceError: where there are too many to list.
        """
        if self.size > MAX_OPTIONS:
            raise SpaceError(
                f"{self.name} has over {MAX_OPTIONS:,} options ({len(self.layers)} variants, up to {self.max_layers} "
                f"layers); lower max_layers or offer fewer variants there"
            )
        choices = range(len(self.layers))
        return tuple(option for length in self.lengths for option in itertools.product(choices, repeat=length))

    def to_json(self) -> dict[str, Any]:
        """The fields in the order of the file; ``least`` where it is not 0."""
        sizes = {name: getattr(self, name) for name in ("name", "channels", "frames", "height", "width", "max_layers")}
        more = {"least": self.least} if self.least else {}
        more |= {"calls": self.calls} if self.calls > 1 else {}
        return {**sizes, **more, "layers": [layer.to_json() for layer in self.layers]}


@dataclass(frozen=True)
class Point:
    """A moment of execution: the skip tensors (name, elements) alive then, without the running tensor itself."""

    name: str
    kind: str
    skips: tuple[tuple[str, int], ...]

    @property
    def elements(self) -> int:
        """Elements of all skip tensors alive here."""
        return sum(elements for _, elements in self.skips)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"name": self.name, "kind": self.kind, "skips": [list(skip) for skip in self.skips]}


@dataclass(frozen=True)
class PlanPart:
    """A further part of a bare backbone that is never run in one piece.

    Attributes:
        workload: of one call, without precision. parameters: of the part. calls: for one evaluation.
        live: elements of what else is alive then.
    """

    workload: str
    parameters: int
    calls: int
    live: int


@dataclass(frozen=True)
class PlanEnd:
    """An end of the model: the workload of one call (without precision), its parameters, and the calls of one video."""

    workload: str
    parameters: int
    calls: int = 1

    def line(self) -> str:
        """One line for people."""
        times = f", {self.calls} calls a video" if self.calls > 1 else ""
        return f"{self.workload}, {self.parameters:,} parameters{times}"


@dataclass(frozen=True)
class Plan:
    """What a table and a search must know of a space, at its deployment clip and batch 1.

    Attributes:
        space: name of the space.
        fingerprint: of the definition it was computed from.
        clip: ``name``, ``frames``, ``height``, ``width``, ``fps`` and ``latent`` (T, C, H, W).
        backbone_name, backbone_workload, backbone_parameters: the bare backbone.
        backbone_rest: what it costs beside that workload, where it is never run in one piece.
        positions: in execution order.
        points: moments of execution, in order; kind ``position`` is where that position's layers run.
        text_encoder, decoder: what a video costs beside the network; None where the space has none.
        stated_baseline: what the space compares with, where its YAML states it.

    Raises:
        SpaceError: if a position stands twice, has no point of execution, or offers a variant twice.
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
    backbone_rest: tuple[PlanPart, ...] = ()

    def __post_init__(self) -> None:
        points = {point.name for point in self.points if point.kind == "position"}
        seen: set[str] = set()
        for position in self.positions:
            wrong = None
            if position.name in seen:
                wrong = f"position {position.name} stands twice"
            elif position.name not in points:
                wrong = f"position {position.name} has no point of execution"
            elif len({layer.variant for layer in position.layers}) < len(position.layers):
                wrong = f"{position.name} offers a variant twice"
            if wrong is not None:
                raise SpaceError(f"plan of {self.space}: {wrong}; write the plan again")
            seen.add(position.name)

    # Files ------------------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, name_or_path: str | Path) -> Plan:
        """A plan by the name of its space (``tiny``) or by path.

        Raises:
            SpaceError: if there is no such plan, naming those there are, or the file is no plan of this schema.
        """
        path = find_plan(name_or_path)
        try:
            return cls.from_json(parse_json(read_text(path, MAX_FILE)))
        except UnreadableError as error:
            raise SpaceError(f"{path}: is no plan of schema {SCHEMA}: {error}; write the plan again") from None
        except SpaceError as error:
            raise SpaceError(f"{path}: {error}") from None

    @classmethod
    def from_json(cls, data: Any) -> Plan:
        """The inverse of ``to_json``.

        Raises:
            SpaceError: naming the first field that is missing or of another kind.
        """
        try:
            return cls(**_fields(data))
        except _Wrong as error:
            remedy = "run python -m search_spaces.planning, or remove the file"
            raise SpaceError(f"is no plan of schema {SCHEMA} ({error}); {remedy}") from None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, as files hold it."""
        ends = {"text_encoder": self.text_encoder, "decoder": self.decoder}
        return {
            "schema": SCHEMA,
            "space": self.space,
            "fingerprint": self.fingerprint,
            "clip": dict(self.clip),
            "backbone": {
                "name": self.backbone_name,
                "workload": self.backbone_workload,
                "parameters": self.backbone_parameters,
                **({"rest": [vars(part) for part in self.backbone_rest]} if self.backbone_rest else {}),
            },
            **{name: vars(end) for name, end in ends.items() if end is not None},
            **({"baseline": self.stated_baseline.to_json()} if self.stated_baseline is not None else {}),
            "positions": [position.to_json() for position in self.positions],
            "points": [point.to_json() for point in self.points],
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
        return Arrangement(self.space, tuple((p.name, _repeated(p, min, p.least)) for p in self.positions))

    def largest(self) -> Arrangement:
        """The arrangement with most parameters: every position full of its largest variant (the first of equals)."""
        return Arrangement(self.space, tuple((p.name, _repeated(p, max, p.max_layers)) for p in self.positions))

    @property
    def baseline(self) -> Arrangement:
        """What the space compares with: stated, or the least of every position, in its first variant."""
        if self.stated_baseline is not None:
            return self.stated_baseline
        least = ((p.name, tuple(layer.variant for layer in p.layers[:1]) * p.least) for p in self.positions)
        return Arrangement(self.space, tuple(least))

    @property
    def size(self) -> int:
        """How many arrangements the space holds."""
        total = 1
        for position in self.positions:
            total *= position.size
        return total

    @property
    def workloads(self) -> tuple[str, ...]:
        """The distinct workloads (without precision), the backbone first, in execution order."""
        layers = (layer.workload for position in self.positions for layer in position.layers)
        return tuple(dict.fromkeys([*self.backbone_workloads, *layers]))

    @property
    def backbone_workloads(self) -> tuple[str, ...]:
        """Those of the bare backbone: one, or one for each of its parts."""
        return self.backbone_workload, *(part.workload for part in self.backbone_rest)

    def keys(self, precision: str, ends: bool = False) -> tuple[str, ...]:
        """The table keys of all workloads at ``precision``; text encoder and decoder last, with ``ends``."""
        outer = tuple(end.workload for end in (self.text_encoder, self.decoder) if end) if ends else ()
        return tuple(f"{workload}@{precision}" for workload in (*self.workloads, *outer))

    def skip_elements(self, position: str) -> int:
        """Elements of the skip tensors alive while the position's layers run."""
        return next(point.elements for point in self.points if point.kind == "position" and point.name == position)


def list_plans() -> tuple[str, ...]:
    """The spaces whose plans ship with the package, sorted."""
    return tuple(path.name.removesuffix(".plan.json") for path in sorted(SPACES.glob("*.plan.json")))


def find_plan(name_or_path: str | Path) -> Path:
    """Where a plan lies: a path as it is, a name among those that ship with the package.

    Raises:
        SpaceError: naming the plans there are.
    """
    path = Path(name_or_path)
    if path.suffix == ".json" or path.is_file():
        return path
    known = list_plans()
    if str(name_or_path) not in known:
        raise SpaceError(
            f"no plan of a space {str(name_or_path)!r}; known: {', '.join(known) or 'none'}, or give a .plan.json"
        )
    return SPACES / f"{name_or_path}.plan.json"


def _repeated(position: PlanPosition, choose: Any, times: int) -> tuple[Variant, ...]:
    if not times:
        return ()
    return (choose(position.layers, key=lambda layer: layer.parameters).variant,) * times


# The file, as it must be --------------------------------------------------------------------------------------------


class _Wrong(ValueError):
    """A field of a plan's file is missing or of another kind; the message begins with its path."""


class _Field:
    """A value of the file, which knows where it stands."""

    def __init__(self, value: Any, path: str = "") -> None:
        self.value, self.path = value, path

    def _refuse(self, wanted: str) -> _Wrong:
        got = type(self.value).__name__ if isinstance(self.value, dict | list) else f"{self.value!r:.40}"
        return _Wrong(f"{self.path or 'the file'}: must be {wanted}, got {got}")

    def __getitem__(self, name: str) -> _Field:
        """The value of a key; what is not there reads as null."""
        inner = f"{self.path}.{name}" if self.path else name
        return _Field(self.object().get(name), inner)

    def __contains__(self, name: str) -> bool:
        return self.object().get(name) is not None

    def object(self) -> dict[str, Any]:
        if not isinstance(self.value, dict):
            raise self._refuse("an object")
        return self.value

    def items(self) -> list[_Field]:
        if not isinstance(self.value, list):
            raise self._refuse("a list")
        return [_Field(item, f"{self.path}[{index}]") for index, item in enumerate(self.value)]

    def text(self) -> str:
        if not isinstance(self.value, str) or not 0 < len(self.value) <= MAX_NAME:
            raise self._refuse(f"text of 1 to {MAX_NAME} characters")
        return self.value

    def count(self, most: int = MAX_COUNT) -> int:
        if isinstance(self.value, bool) or not isinstance(self.value, int) or not 0 <= self.value <= most:
            raise self._refuse(f"a whole number from 0 to {most:,}")
        return self.value


def _fields(data: Any) -> dict[str, Any]:
    """The arguments of ``Plan``."""
    file = _Field(data)
    if file["schema"].count() != SCHEMA:
        raise _Wrong(f"schema: this is schema {file['schema'].value}, known here is {SCHEMA}")
    backbone, baseline = file["backbone"], file["baseline"]
    try:
        stated = Arrangement.from_json(baseline.object()) if "baseline" in file else None
    except SpaceError as error:
        raise _Wrong(f"baseline: {error}") from None
    return {
        "space": file["space"].text(),
        "fingerprint": file["fingerprint"].text(),
        "clip": file["clip"].object(),
        "backbone_name": backbone["name"].text(),
        "backbone_workload": backbone["workload"].text(),
        "backbone_parameters": backbone["parameters"].count(),
        "backbone_rest": tuple(_part(item) for item in backbone["rest"].items()) if "rest" in backbone else (),
        "positions": tuple(_position(item) for item in file["positions"].items()),
        "points": tuple(_point(item) for item in file["points"].items()),
        **{name: _end(file[name]) for name in ("text_encoder", "decoder") if name in file},
        "stated_baseline": stated,
    }


def _position(item: _Field) -> PlanPosition:
    sizes = {name: item[name].count() for name in ("channels", "frames", "height", "width")}
    most = item["max_layers"].count(MAX_LAYERS)
    least = item["least"].count(most) if "least" in item else 0
    layers = tuple(_layer(layer) for layer in item["layers"].items())
    if most and not layers:
        raise _Wrong(f"{item.path}.layers: must name what the {most} layers there may be, got none")
    calls = item["calls"].count() if "calls" in item else 1
    return PlanPosition(item["name"].text(), **sizes, max_layers=most, layers=layers, least=least, calls=calls)


def _part(item: _Field) -> PlanPart:
    return PlanPart(item["workload"].text(), *(item[name].count() for name in ("parameters", "calls", "live")))


def _layer(item: _Field) -> PlanLayer:
    try:
        variant = Variant.parse(item["variant"].text())
    except SpaceError as error:
        raise _Wrong(f"{item.path}.variant: {error}") from None
    said = {"block": item["block"].text(), "params": item["params"].object()}
    if said != variant.to_json():
        raise _Wrong(f"{item.path}: {variant.label} is not block {said['block']} of {said['params']!r:.80}")
    return PlanLayer(variant, item["workload"].text(), item["parameters"].count())


def _point(item: _Field) -> Point:
    skips = []
    for skip in item["skips"].items():
        parts = skip.items()
        if len(parts) != 2:
            raise skip._refuse("[tensor, elements]")
        skips.append((parts[0].text(), parts[1].count()))
    return Point(item["name"].text(), item["kind"].text(), tuple(skips))


def _end(item: _Field) -> PlanEnd:
    calls = item["calls"].count() if "calls" in item else 1
    return PlanEnd(item["workload"].text(), item["parameters"].count(), calls)


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
