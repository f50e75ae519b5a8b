"""A design ladder: networks that differ by one change from each to the next, and what each change brings.

How SnapGen (arXiv 2412.09619) argues for its network, for any space and device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from pydantic import Field, model_validator

from nas.errors import NasError
from nas.settings import Settings, parse_as, read_settings
from search_spaces.blocks import block_spec, complete
from search_spaces.errors import SpaceError, unknown
from search_spaces.variant import Variant

if TYPE_CHECKING:
    from latency_tables.cost import CostModel
    from search_spaces.arrangement import Arrangement
    from search_spaces.space import Position, Space

LADDERS = Path(__file__).parent.parent / "ladders"
START = "baseline"


class Scorer(Protocol):
    """What gives losses, paired over the same clips; see ``nas.ranking.scoring``."""

    def score(self, arrangement: Arrangement) -> Any: ...

    def paired_difference(self, a: Arrangement, b: Arrangement) -> tuple[float, float]: ...


class Change(Settings):
    """What becomes of some layers.

    Attributes:
        at: patterns of positions, such as `down.1.*`. block: layers of this block alone; all, where it is not given.
        set: parameters that become others. to: another variant, in full or by the parameters that tell it from its
            like at the position.
    """

    at: tuple[str, ...] = ("*",)
    block: str | None = None
    set: dict[str, int] = Field(default_factory=dict)
    to: str | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Change:
        if bool(self.set) == (self.to is not None):
            raise ValueError("a change needs set or to, one of the two")
        return self

    def apply(self, layer: Variant, position: Position) -> Variant:
        """What a layer becomes; itself where the change is not about it.

        Raises:
            SpaceError: if the block or a parameter is unknown, or `to` names no variant of the position, or several.
        """
        meant = any(fnmatchcase(position.name, pattern) for pattern in self.at)
        if not meant or self.block not in (None, layer.block):
            return layer
        if self.to is None:
            known = {name: value for name, value in self.set.items() if name in block_spec(layer.block).params}
            if self.block is not None and len(known) < len(self.set):
                wrong = next(name for name in self.set if name not in known)
                raise SpaceError(f"{layer.block}: {unknown('parameter', wrong, block_spec(layer.block).params)}")
            return complete(Variant(layer.block, tuple({**dict(layer.params), **known}.items())), position.channels)
        wanted = Variant.parse(self.to)
        block_spec(wanted.block)
        found = [v for v in position.variants if v.block == wanted.block and set(wanted.params) <= set(v.params)]
        if len(found) != 1:
            these = ", ".join(v.label for v in (found or position.variants))
            how_many = f"{len(found)} variants" if found else "no variant"
            raise SpaceError(f"{position.name}: {self.to} names {how_many} there; name one of {these}")
        return found[0]


class Step(Settings):
    """One rung: its name, and its changes to the one before."""

    name: str = Field(min_length=1, max_length=100)
    changes: tuple[Change, ...] = Field(min_length=1)


class Ladder(Settings):
    """A ladder's YAML: the steps from a space's baseline on, or from what `start` makes of it."""

    name: str = Field(pattern=r"\w{1,60}")
    start: tuple[Change, ...] = ()
    steps: tuple[Step, ...] = Field(min_length=1, max_length=100)


@dataclass(frozen=True)
class Rung:
    """One design and its figures; None is unknown, and ``stderr`` that of the change of loss."""

    step: str
    arrangement: str
    loss: float | None
    stderr: float | None
    latency_ms: float | None
    peak_mb: float | None
    parameters: int


@dataclass(frozen=True)
class Measured:
    """A ladder with its figures, from first to last."""

    ladder: str
    space: str
    device: str
    source: str
    rungs: tuple[Rung, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)

    def render(self) -> str:
        """The table, each row against the one before."""
        head = f"{'loss':>8} {'change':>16}"
        head += "".join(f" {name:>{wide}} {'change':>7}" for name, wide in (("ms", 9), ("MB", 9), ("parameters", 12)))
        lines = [f"ladder {self.ladder} of {self.space} on {self.device} ({self.source})", "", f"{head}  step"]
        before: Rung | None = None
        for rung in self.rungs:
            loss = _number(rung.loss, "8.4f")
            learnt = None if before is None or rung.loss is None or before.loss is None else rung.loss - before.loss
            change = "" if learnt is None else f"{learnt:+.4f} ± {rung.stderr or 0:.4f}"
            cells = [f"{loss:>8} {change:>16}"]
            for name, form in (("latency_ms", "9.3f"), ("peak_mb", "9.2f"), ("parameters", "12,d")):
                value, old = getattr(rung, name), getattr(before, name) if before else None
                cells.append(f"{_number(value, form)} {_share(value, old):>7}")
            lines.append(f"{' '.join(cells)}  {rung.step}")
            before = rung
        return "\n".join(lines)


def _number(value: float | None, form: str) -> str:
    return format(value, form) if value is not None else "-".rjust(int(form.split(".")[0].split(",")[0]))


def _share(value: float | None, old: float | None) -> str:
    return f"{value / old - 1:+.1%}" if value is not None and old else ""


def read_ladder(name_or_path: str) -> Ladder:
    """A ladder that ships with the toolkit, by name, or anybody's, by the path of its YAML.

    Raises:
        NasError: if there is none, or it is wrong, with the key.
    """
    known = sorted(path.stem for path in LADDERS.glob("*.yaml"))
    if name_or_path in known:
        path = LADDERS / f"{name_or_path}.yaml"
    elif name_or_path.endswith((".yaml", ".yml")):
        path = Path(name_or_path)
    else:
        raise NasError(
            f"--ladder: {unknown('ladder', name_or_path, known)} One of your own is given by its .yaml path."
        )
    return parse_as(Ladder, read_settings(path), path.name)


def designs(ladder: Ladder, space: Space) -> list[tuple[str, Arrangement]]:
    """The ladder's networks in a space, each with its step's name; the first is the start.

    Raises:
        NasError: naming a step that changes nothing, or leads out of the space.
    """
    start = _changed(ladder, space, space.baseline(), ladder.start, "start") if ladder.start else space.baseline()
    found = [(START, start)]
    for step in ladder.steps:
        found.append((step.name, _changed(ladder, space, found[-1][1], step.changes, f"step {step.name!r}")))
    return found


def _changed(ladder: Ladder, space: Space, before: Arrangement, changes: Sequence[Change], where: str) -> Arrangement:
    layers = {name: list(variants) for name, variants in before.layers}
    try:
        for change in changes:
            for position in space.positions:
                layers[position.name] = [change.apply(layer, position) for layer in layers[position.name]]
        after = space.arrange(layers)
    except SpaceError as error:
        raise NasError(f"ladder {ladder.name}: {where}: {error}") from None
    if after == before:
        wanted = ", ".join(sorted({f"{c.block or 'layer'} at {' or '.join(c.at)}" for c in changes}))
        raise NasError(
            f"ladder {ladder.name}: {where} changes nothing in {space.name}: no {wanted} that is not so already; "
            "correct the step or leave it out"
        )
    return after


def measure(ladder: Ladder, space: Space, costs: CostModel, device: str, scorer: Scorer | None = None) -> Measured:
    """Each design's costs by the table and, with a ``scorer``, its loss, the change taken over the same clips."""
    found = designs(ladder, space)
    priced = costs.cost(np.stack([costs.encode(design.labels()) for _, design in found]))
    rungs: list[Rung] = []
    for index, (step, design) in enumerate(found):
        loss = scorer.score(design).loss if scorer else None
        stderr = scorer.paired_difference(design, found[index - 1][1])[1] if scorer and index else None
        ms, mb = _finite(priced.latency_ms[index]), _finite(priced.peak_mb[index])
        rungs.append(Rung(step, design.key, loss, stderr, ms, mb, int(priced.parameters[index])))
    return Measured(ladder.name, space.name, device, costs.source, tuple(rungs))


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
