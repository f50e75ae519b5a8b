"""A space as plain data: positions in execution order, the workloads offered there, and what is alive at each point."""

from __future__ import annotations

import importlib.util
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

from latency_tables.errors import TableError
from latency_tables.files import read_bytes

SCHEMA = 1
BYTES_PER_ELEMENT = {"fp32": 4, "fp16": 2}
MAX_OPTIONS = 200_000
LARGEST = 10**18  # any count in a plan
_LIMIT_MB = 16.0


@dataclass(frozen=True)
class Layer:
    """One variant that a position offers, with the workload that it is there."""

    variant: str
    block: str
    params: tuple[tuple[str, int], ...]
    workload: str
    parameters: int


@dataclass(frozen=True)
class PlanPosition:
    """A place for ``least`` to ``max_layers`` layers, its tensor's shape and the layers offered."""

    name: str
    channels: int
    frames: int
    height: int
    width: int
    max_layers: int
    layers: tuple[Layer, ...]
    least: int = 0

    @property
    def choices(self) -> int:
        """How many options there are, the empty one included where it is allowed."""
        return sum(len(self.layers) ** length for length in range(self.least, self.max_layers + 1))

    @cached_property
    def options(self) -> tuple[tuple[int, ...], ...]:
        """Every choice as indices into ``layers``: by length (an empty one is first), then in product order."""
        choices = range(len(self.layers))
        return tuple(
            option
            for length in range(self.least, self.max_layers + 1)
            for option in itertools.product(choices, repeat=length)
        )


@dataclass(frozen=True)
class Point:
    """A point of execution with the skip tensors alive there (name, elements), without the running tensor."""

    name: str
    kind: str
    skips: tuple[tuple[str, int], ...]

    @property
    def elements(self) -> int:
        """Elements of all skip tensors alive here."""
        return sum(elements for _, elements in self.skips)


@dataclass(frozen=True)
class End:
    """The text encoder or the decoder: the workload of one call (without precision), and the calls of one video."""

    workload: str
    parameters: int
    calls: int = 1


@dataclass(frozen=True)
class Plan:
    """What the cost model needs to know of a space, read from ``search_spaces/spaces/<name>.plan.json``.

    Raises:
        TableError: on a file that is no such plan, naming the field.
    """

    space: str
    fingerprint: str
    clip: Mapping[str, Any]
    backbone: str
    backbone_workload: str
    backbone_parameters: int
    positions: tuple[PlanPosition, ...]
    points: tuple[Point, ...]
    text_encoder: End | None = None
    decoder: End | None = None
    stated_baseline: Mapping[str, tuple[str, ...]] | None = None

    def __post_init__(self) -> None:
        names = [position.name for position in self.positions]
        points = {point.name for point in self.points if point.kind == "position"}
        for name in names:
            if names.count(name) > 1:
                raise TableError(f"plan of {self.space}: position {name} stands twice; write the plan again")
            if name not in points:
                raise TableError(
                    f"plan of {self.space}: position {name} has no point of execution; write the plan again"
                )
        for position in self.positions:
            if position.max_layers > 8 or position.choices > MAX_OPTIONS:
                raise TableError(
                    f"plan of {self.space}: {position.name} has over {MAX_OPTIONS} choices "
                    f"({len(position.layers)} variants, {position.max_layers} layers); offer fewer variants there"
                )
            variants = [layer.variant for layer in position.layers]
            if len(set(variants)) != len(variants):
                raise TableError(f"plan of {self.space}: {position.name} offers a variant twice; write the plan again")

    @property
    def workloads(self) -> tuple[str, ...]:
        """The distinct workloads without precision, backbone first, in execution order."""
        layers = (layer.workload for position in self.positions for layer in position.layers)
        return tuple(dict.fromkeys((self.backbone_workload, *layers)))

    @property
    def size(self) -> int:
        """How many arrangements the space holds."""
        total = 1
        for position in self.positions:
            total *= position.choices
        return total

    def keys(self, precision: str, ends: bool = False) -> tuple[str, ...]:
        """The table keys of all workloads at ``precision``; text encoder and decoder last, with ``ends``."""
        outer = tuple(end.workload for end in (self.text_encoder, self.decoder) if end) if ends else ()
        return tuple(f"{workload}@{precision}" for workload in (*self.workloads, *outer))

    @property
    def baseline(self) -> dict[str, tuple[str, ...]]:
        """Position -> variant labels of what the space compares with: stated, or the least, of each first variant."""
        if self.stated_baseline is not None:
            return dict(self.stated_baseline)
        return {
            position.name: tuple(layer.variant for layer in position.layers[:1]) * position.least
            for position in self.positions
        }

    def skip_elements(self, position: str) -> int:
        """Elements of the skip tensors alive while the position's layers run."""
        return next(point.elements for point in self.points if point.kind == "position" and point.name == position)

    @classmethod
    def load(cls, name_or_path: str | Path) -> Plan:
        """A plan by the name of its space (``tiny``) or by path.

        Raises:
            TableError: if there is no such plan, naming those there are, or the file is damaged.
        """
        path = find_plan(name_or_path)
        try:
            return cls.from_json(json.loads(read_bytes(path, _LIMIT_MB).decode("utf-8")))
        except TableError as error:
            raise TableError(f"{path}: {error}") from None
        except (ValueError, RecursionError) as error:
            raise TableError(f"{path}: no valid JSON ({error}); write the plan again") from None

    @classmethod
    def from_json(cls, data: Any) -> Plan:
        """A plan from its JSON value.

        Raises:
            TableError: naming the first field that is missing or of the wrong kind.
        """
        top = _object(data, "plan")
        schema = _whole(top, "schema", "plan")
        if schema != SCHEMA:
            raise TableError(
                f"plan: schema {schema}, known here is {SCHEMA}; update temporal-nas or write the plan again"
            )
        backbone = _object(top.get("backbone"), "backbone")
        return cls(
            space=_text(top, "space", "plan"),
            fingerprint=_text(top, "fingerprint", "plan"),
            clip=_object(top.get("clip"), "clip"),
            backbone=_text(backbone, "name", "backbone"),
            backbone_workload=_text(backbone, "workload", "backbone"),
            backbone_parameters=_whole(backbone, "parameters", "backbone"),
            positions=tuple(
                _position(item, f"positions[{i}]") for i, item in enumerate(_list(top.get("positions"), "positions"))
            ),
            points=tuple(_point(item, f"points[{i}]") for i, item in enumerate(_list(top.get("points"), "points"))),
            text_encoder=_end(top, "text_encoder"),
            decoder=_end(top, "decoder"),
            stated_baseline=_baseline(top),
        )


def find_plan(name_or_path: str | Path) -> Path:
    """Where a plan lies: a path as it is, a name beside the installed ``search_spaces`` (which is not imported).

    Raises:
        TableError: naming the plans there are.
    """
    path = Path(name_or_path)
    if path.suffix == ".json" or path.is_file():
        return path
    folder = _plan_folder()
    known = list_plans()
    if str(name_or_path) not in known or folder is None:
        raise TableError(
            f"no plan of a space {str(name_or_path)!r}; known: {', '.join(known) or 'none'}, or give a .plan.json"
        )
    return folder / f"{name_or_path}.plan.json"


def list_plans() -> tuple[str, ...]:
    """The spaces whose plans are installed, sorted."""
    folder = _plan_folder()
    found = sorted(folder.glob("*.plan.json")) if folder else []
    return tuple(path.name.removesuffix(".plan.json") for path in found)


def _plan_folder() -> Path | None:
    spec = importlib.util.find_spec("search_spaces")
    locations = list(spec.submodule_search_locations or ()) if spec else []
    return Path(locations[0]) / "spaces" if locations else None


def _end(top: Mapping[str, Any], name: str) -> End | None:
    if top.get(name) is None:
        return None
    item = _object(top[name], name)
    calls = _whole(item, "calls", name) if "calls" in item else 1
    return End(_text(item, "workload", name), _whole(item, "parameters", name), calls)


def _baseline(top: Mapping[str, Any]) -> dict[str, tuple[str, ...]] | None:
    if top.get("baseline") is None:
        return None
    positions = _object(_object(top["baseline"], "baseline").get("positions"), "baseline.positions")
    return {name: tuple(map(str, _list(labels, f"baseline.{name}"))) for name, labels in positions.items()}


def _position(data: Any, path: str) -> PlanPosition:
    item = _object(data, path)
    sizes = {name: _whole(item, name, path) for name in ("channels", "frames", "height", "width", "max_layers")}
    layers = _list(item.get("layers"), f"{path}.layers")
    return PlanPosition(
        name=_text(item, "name", path),
        **sizes,
        layers=tuple(_layer(layer, f"{path}.layers[{i}]") for i, layer in enumerate(layers)),
        least=_whole(item, "least", path) if "least" in item else 0,
    )


def _layer(data: Any, path: str) -> Layer:
    item = _object(data, path)
    params = _object(item.get("params", {}), f"{path}.params")
    return Layer(
        variant=_text(item, "variant", path),
        block=_text(item, "block", path),
        params=tuple((name, _whole(params, name, f"{path}.params")) for name in params),
        workload=_text(item, "workload", path),
        parameters=_whole(item, "parameters", path),
    )


def _point(data: Any, path: str) -> Point:
    item = _object(data, path)
    skips = []
    for i, skip in enumerate(_list(item.get("skips"), f"{path}.skips")):
        name, elements = skip if isinstance(skip, list) and len(skip) == 2 else (None, None)
        if not isinstance(name, str) or not isinstance(elements, int) or not _is_whole(elements):
            raise TableError(f"{path}.skips[{i}]: must be [tensor, elements], got {_short(skip)}; write the plan again")
        skips.append((name, elements))
    return Point(_text(item, "name", path), _text(item, "kind", path), tuple(skips))


def _object(value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TableError(f"{path}: must be an object, got {type(value).__name__}; write the plan again")
    return value


def _list(value: Any, path: str) -> list[Any]:
    if not isinstance(value, list):
        raise TableError(f"{path}: must be a list, got {type(value).__name__}; write the plan again")
    return value


def _text(item: Mapping[str, Any], name: str, path: str) -> str:
    value = item.get(name)
    if not isinstance(value, str) or not value:
        raise TableError(f"{path}.{name}: must be text, got {_short(value)}; write the plan again")
    return value


def _whole(item: Mapping[str, Any], name: str, path: str) -> int:
    value = item.get(name)
    if not isinstance(value, int) or not _is_whole(value):
        raise TableError(f"{path}.{name}: must be a whole number >= 0, got {_short(value)}; write the plan again")
    return value


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
