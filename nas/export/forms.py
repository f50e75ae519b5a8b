"""Every layer, and the backbone's own attention, lowered as the rows are whose costs were predicted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from nas.errors import NasError

if TYPE_CHECKING:
    from latency_tables.table import Table
    from nas.model.network import VideoUNet

TOLERANCE = 1e-4  # of the largest output
CHECKED = (4, 4, 4)  # frames, height, width of the clip that a form is compared on
BACKBONE = "backbone"
SPELLED_OUT = "decomposed"
Lowerings = dict[str, list[str]]


def best_lowerings(unet: VideoUNet, table: Table) -> Lowerings:
    """Position -> the lowering of each of its layers, and ``backbone`` -> its own, by the rows that a prediction reads.

    Raises:
        TableError: if rows of the space are missing.
    """
    from latency_tables.cost import CostModel
    from search_spaces.planning import load_plan

    space, precision = unet.space, table.header.precision
    plan = load_plan(space)
    rows = CostModel(plan, table, allow_mixed=True).rows
    found = {BACKBONE: [rows[plan.backbone_workload].lowering]}
    for position, variants in unet.arrangement.layers:
        bases = [space.workload(position, variant, precision).base for variant in variants]
        if bases:
            found[position] = [rows[base].lowering for base in bases]
    return found


def forms_in(lowerings: Lowerings) -> Lowerings:
    """Position -> the forms in its lowerings, where there are some."""
    from device_profiler.lowering.forms import split

    forms = {name: [split(lowering)[1] for lowering in wanted] for name, wanted in lowerings.items()}
    return {name: wanted for name, wanted in forms.items() if any(wanted)}


@torch.no_grad()
def apply_lowerings(unet: VideoUNet, lowerings: Lowerings) -> None:
    """Have every layer lowered so, in place: forms are put on, and attention that was decomposed is spelled out.

    Raises:
        NasError: if a layer then computes something else.
    """
    from diffusers.models.attention_processor import Attention

    from device_profiler.lowering.forms import reform, split
    from search_spaces.network import module_name

    frames, height, width = CHECKED
    generator = torch.Generator().manual_seed(0)
    context = torch.randn(1, unet.space.text.tokens, unet.space.text.dim, generator=generator)
    for position, wanted in lowerings.items():
        if position == BACKBONE:
            for part in unet.network.unet.modules() if split(wanted[0])[0] == SPELLED_OUT else ():
                if isinstance(part, Attention):
                    spell_out(part)
            continue
        x = torch.randn(frames, unet.space.position(position).channels, height, width, generator=generator)
        layers: Any = unet.network.temporal[module_name(position)]
        for layer, lowering in zip(layers, wanted, strict=True):
            plain = layer(x, frames, context)
            reform(layer, lowering)
            if split(lowering)[0] == SPELLED_OUT:
                spell_out(layer)
            off = float((layer(x, frames, context) - plain).abs().max() / plain.abs().max().clamp_min(1e-12))
            if not off <= TOLERANCE:
                raise NasError(f"{position}: as {lowering}, it is off by {off:.2g} against the plain layer; report it")


def spell_out(module: nn.Module) -> None:
    """Change a module in place so that its attention is scores, softmax and a product instead of one operation."""
    forward = module.forward

    def spelled(*arguments: Any, **named: Any) -> Any:
        with _spelled_attention():
            return forward(*arguments, **named)

    vars(module)["forward"] = spelled


@contextmanager
def _spelled_attention() -> Iterator[None]:
    from device_profiler.lowering.spelled import spelled_out

    functional: Any = nn.functional
    fused = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = spelled_out
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = fused


def lowerings_of_device(unet: VideoUNet, device: str, tables: Path) -> Lowerings:
    """``best_lowerings`` by a device's table.

    Raises:
        TableError: if there is no such table, or it lacks rows of the space.
    """
    from latency_tables.lookup import load_table

    return best_lowerings(unet, load_table(device, tables))
