"""What a space holds, read from its plan; and whether space, blocks and plan agree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from textwrap import wrap
from typing import Any

from search_spaces.errors import SpaceError
from search_spaces.plan import SPACES, Plan, PlanEnd
from search_spaces.planning import compute, load_plan, plan_path
from search_spaces.space import Position, Space, list_spaces


@dataclass(frozen=True)
class PositionSummary:
    """One position: its feature map, what it may hold, and the parameters of the most that it may hold."""

    name: str
    channels: int
    frames: int
    height: int
    width: int
    least: int
    max_layers: int
    options: int
    parameters_max: int
    variants: tuple[str, ...]


@dataclass(frozen=True)
class SpaceSummary:
    """A space at a glance. Parameters count the backbone and the layers, not text encoder or autoencoder."""

    name: str
    description: str
    backbone: str
    clip: str
    latent: tuple[int, int, int, int]
    parameters_backbone: int
    parameters_smallest: int
    parameters_largest: int
    size: int
    workloads: int
    fingerprint: str
    positions: tuple[PositionSummary, ...]
    text_encoder: PlanEnd | None
    decoder: PlanEnd | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; ``size`` stays an exact integer."""
        ends = {name: vars(end) if end else None for name, end in self._ends.items()}
        return {**vars(self), "positions": [vars(position) for position in self.positions], **ends}

    @property
    def _ends(self) -> dict[str, PlanEnd | None]:
        return {"text_encoder": self.text_encoder, "decoder": self.decoder}

    def line(self) -> str:
        """One line for a list of spaces."""
        return (
            f"{self.name:<18} {self.backbone:<18} {len(self.positions):>2} positions, "
            f"{_power(self.size)} arrangements, {self.workloads} workloads, {_millions(self.parameters_smallest)} to "
            f"{_millions(self.parameters_largest)} parameters"
        )

    def render(self) -> str:
        """The whole summary for a terminal."""
        frames, channels, height, width = self.latent
        facts = {
            "backbone": f"{self.backbone}, {self.parameters_backbone:,} parameters",
            "clip": f"{self.clip}; the network reads {frames} frames of {height}x{width}, {channels} channels",
            "arrangements": f"{self.size:,} ({_power(self.size)})",
            "workloads": f"{self.workloads} distinct, the backbone included",
            "parameter range": f"{self.parameters_smallest:,} ({_millions(self.parameters_smallest)}) "
            f"to {self.parameters_largest:,} ({_millions(self.parameters_largest)})",
            **{name.replace("_", " "): end.line() for name, end in self._ends.items() if end is not None},
            "definition": self.fingerprint,
        }
        lines = [*wrap(f"{self.name}: {self.description}", 100), ""]
        lines += [f"{name:<16} {value}" for name, value in facts.items()]
        lines += ["", f"{'position':<10} {'T x H x W':>12} {'channels':>8} {'layers':>6} {'options':>9}  variants"]
        distinct = dict.fromkeys(position.variants for position in self.positions)
        groups = {variants: f"V{number}" for number, variants in enumerate(distinct, start=1)}
        for position in self.positions:
            shape = f"{position.frames}x{position.height}x{position.width}"
            layers = f"{position.least}..{position.max_layers}"
            lines.append(
                f"{position.name:<10} {shape:>12} {position.channels:>8} {layers:>6} "
                f"{position.options:>9,}  {groups[position.variants]}"
            )
        lines.append("")
        for variants, name in groups.items():
            text = ", ".join(variants) or "nothing"
            lines += wrap(text, 100, initial_indent=f"{name}  ", subsequent_indent="    ")
        return "\n".join(lines)


def summary(space: str | Path | Space) -> SpaceSummary:
    """What a space holds. A shipped space needs no torch for it.

    Raises:
        SpaceError: if there is no such space, or it is wrong.
    """
    space = Space.load(space)
    plan = load_plan(space)
    clip = space.clip()
    return SpaceSummary(
        name=space.name,
        description=" ".join(space.description.split()),
        backbone=space.backbone_id,
        clip=f"{clip.frames / clip.fps:g} s at {clip.fps:g} fps, {clip.width}x{clip.height}",
        latent=space.latent_shape(),
        parameters_backbone=plan.backbone_parameters,
        parameters_smallest=plan.parameters(plan.smallest()),
        parameters_largest=plan.parameters(plan.largest()),
        size=space.size(),
        workloads=len(plan.workloads),
        fingerprint=space.fingerprint,
        positions=tuple(_position(space, plan, position) for position in space.positions),
        text_encoder=plan.text_encoder,
        decoder=plan.decoder,
    )


def summaries() -> list[SpaceSummary]:
    """All spaces that ship with the package."""
    return [summary(name) for name in list_spaces()]


def check(space: str | Path | Space) -> list[str]:
    """Whether a space's blocks and plan are what they should be; needs torch for more than the definition.

    Every variant is built and run on a small clip: it must keep the shape and start as the identity. The plan is
    computed again from the modules and compared with the file.

    Returns:
        One line a problem; empty if everything holds.

    Raises:
        SpaceError: if the space cannot even be read.
    """
    space = Space.load(space)
    if find_spec("torch") is None:
        load_plan(space)
        return []
    return [*_block_problems(space), *_plan_problems(space)]


def _block_problems(space: Space) -> Iterator[str]:
    import torch

    from search_spaces.blocks import block_spec
    from search_spaces.network import build_layer

    seen, layout = set(), space.backbone.layout
    readable = {
        "context": torch.zeros(2, space.text.tokens, layout.told_dim),
        "embedding": torch.zeros(2, layout.embedding),
    }
    for position in space.positions:
        for variant in position.variants:
            if (variant, position.channels) in seen:
                continue
            seen.add((variant, position.channels))
            where = f"{position.name}: {variant.label}"
            x = torch.randn(4, position.channels, 2, 2, generator=torch.Generator().manual_seed(0))
            try:
                with torch.no_grad():
                    spec = block_spec(variant.block)
                    told = {read: readable[read] for read in spec.reads}
                    out = build_layer(space, position, variant).eval()(x, 2, **told)
            except Exception as error:  # somebody else's block may raise anything
                yield f"{where} fails on a clip of 2 frames of 2x2: {type(error).__name__}: {error}"
                continue
            if out.shape != x.shape:
                yield f"{where} returns {tuple(out.shape)} for {tuple(x.shape)}; a block keeps the shape of its input"
            elif spec.identity and not torch.equal(out, x):
                yield f"{where} does not start as the identity; initialise its output layer with zeros"


def _plan_problems(space: Space) -> Iterator[str]:
    try:
        fresh = compute(space).to_json()
    except SpaceError as error:
        yield str(error)
        return
    path = plan_path(space) if space.source else None
    if path is None or not path.exists():
        return
    remedy = "run python -m search_spaces.planning" if path.parent == SPACES else f"remove {path}"
    try:
        stored = Plan.load(path).to_json()
    except SpaceError as error:
        yield f"{error}; {remedy}"
        return
    for key in fresh:
        if fresh[key] != stored[key]:
            yield f"{path.name}: {key} is not what the modules give; {remedy}"


def _position(space: Space, plan: Plan, position: Position) -> PositionSummary:
    frames, channels, height, width = space.position_shape(position)
    costs = [plan.layer(position.name, variant).parameters for variant in position.variants]
    return PositionSummary(
        name=position.name,
        channels=channels,
        frames=frames,
        height=height,
        width=width,
        least=position.least,
        max_layers=position.most,
        options=position.size,
        parameters_max=max(costs, default=0) * position.most,
        variants=tuple(variant.label for variant in position.variants),
    )


def _millions(count: int) -> str:
    return f"{count / 1e6:.3g}M" if count < 1e9 else f"{count / 1e9:.3g}B"


def _power(count: int) -> str:
    return f"{count:,}" if count < 10_000 else f"{float(count):.1e}".replace("e+0", "e").replace("e+", "e")
