"""From a space to its plan: every layer is built without memory, and the network walked once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from search_spaces.ends import build_decoder, build_text_encoder
from search_spaces.errors import SpaceError
from search_spaces.families import build_backbone, build_part
from search_spaces.network import build_layer
from search_spaces.parts import Position
from search_spaces.plan import Plan, PlanEnd, PlanLayer, PlanPart, PlanPosition, Point
from search_spaces.space import Space


def trace_plan(space: Space) -> Plan:
    """Compute a space's plan from the real modules on the meta device: shapes and counts, no weights, no memory.

    Raises:
        SpaceError: if the backbone's feature maps are not where and what its layout says.
    """
    with torch.device("meta"), torch.no_grad():
        frame = build_backbone(space.measured())
        points = _walked(space, frame)
        distinct = {(position.channels, v): position for position in space.positions for v in position.variants}
        counts = {key: _count(build_layer(space, position, key[1])) for key, position in distinct.items()}
        text_encoder, decoder = _text_encoder(space), _decoder(space)

    def layers(position: Position) -> tuple[PlanLayer, ...]:
        return tuple(
            PlanLayer(variant, space.workload(position, variant, "fp32").base, counts[position.channels, variant])
            for variant in position.variants * (position.most > 0)
        )

    def planned(position: Position) -> PlanPosition:
        length, count, rows, columns = space.position_shape(position)
        name, least, most = position.name, position.least, position.most
        return PlanPosition(name, count, length, rows, columns, most, layers(position), least, space.calls(position))

    return Plan(
        space=space.name,
        fingerprint=space.fingerprint,
        clip={"name": "deployment", **vars(space.clip()), "latent": list(space.latent_shape())},
        backbone_name=space.backbone_id,
        backbone_workload=space.backbone_workload("fp32").base,
        backbone_parameters=_count(frame),
        positions=tuple(planned(position) for position in space.positions),
        points=points,
        text_encoder=text_encoder,
        decoder=decoder,
        stated_baseline=space.stated_baseline,
        backbone_rest=_rest(space, points),
    )


def _walked(space: Space, frame: nn.Module) -> tuple[Point, ...]:
    """The moments of one evaluation of the frame, which must be where and what its layout says."""
    frames, channels, height, width = space.latent_shape()
    named = {position.name for position in space.positions}
    seen: dict[str, Sequence[int]] = {}
    points: list[Point] = []

    def watch(name: str, x: Tensor, skips: Sequence[tuple[str, Tensor]]) -> None:
        seen[name] = tuple(x.shape)
        kind = "position" if name in named else "backbone"
        points.append(Point(name, kind, tuple((skip, tensor.numel()) for skip, tensor in skips)))

    inputs: dict[str, Any] = {"x": torch.empty(frames, channels, height, width), "frames": frames}
    inputs["timestep"] = torch.empty(1)
    if space.text:
        inputs["context"] = torch.empty(1, space.text.tokens, space.text.dim)
    space.backbone.family.run(frame, inputs, lambda name, x, beside: x, watch)
    for position in space.positions:
        expected = space.position_shape(position)
        if seen.get(position.name) != expected:
            raise SpaceError(
                f"{position.name}: the layout of backbone {space.backbone.name} promises {expected} (T, C, H, W), "
                f"but the module gives {seen.get(position.name)}; correct the layout"
            )
    return tuple(points)


def _rest(space: Space, points: Sequence[Point]) -> tuple[PlanPart, ...]:
    """The parts of a backbone after the first; while one runs frame by frame, what it is run on is held."""
    found = []
    for workload, calls in space.frame_workloads("fp32")[1:]:
        part = build_part(space.backbone, workload.name.partition(".")[2])
        held = max(point.elements for point in points) if calls > 1 else 0
        found.append(PlanPart(workload.base, _count(part), calls, held))
    return tuple(found)


def _text_encoder(space: Space) -> PlanEnd | None:
    if not space.text:
        return None
    encoder, _ = build_text_encoder(space.text.encoder, space.text.tokens, space.text.dim)
    return PlanEnd(space.text_encoder_workload("fp32").base, _count(encoder))


def _decoder(space: Space) -> PlanEnd | None:
    one_call = space.decoder_workload("fp32")
    if one_call is None:
        return None
    return PlanEnd(one_call.base, _count(build_decoder(one_call.name)), space.decoder_calls())


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
