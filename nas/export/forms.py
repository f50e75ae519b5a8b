"""Every temporal layer in the form that a device's table found fastest, before the network is lowered."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nas.errors import NasError

if TYPE_CHECKING:
    from latency_tables.table import Table
    from nas.model import VideoUNet

TOLERANCE = 1e-4  # of the largest output
CHECKED = (4, 4, 4)  # frames, height, width of the clip that a form is compared on


def best_forms(unet: VideoUNet, table: Table) -> dict[str, list[str]]:
    """Position -> the form of each of its layers (empty: its own) that the table's fastest row is of."""
    from device_profiler.lowering.forms import split

    space, precision = unet.space, table.header.precision
    found = {}
    for position, variants in unet.arrangement.layers:
        rows = [table.get(space.workload(position, variant, precision).key) for variant in variants]
        forms = [split(row.lowering)[1] if row is not None else "" for row in rows]
        if any(forms):
            found[position] = forms
    return found


@torch.no_grad()
def apply_forms(unet: VideoUNet, forms: dict[str, list[str]]) -> None:
    """Put the layers into these forms, in place.

    Raises:
        NasError: if one then computes something else.
    """
    from device_profiler.lowering.forms import reform
    from search_spaces.network import module_name

    frames, height, width = CHECKED
    generator = torch.Generator().manual_seed(0)
    context = torch.randn(1, unet.space.text.tokens, unet.space.text.dim, generator=generator)
    for position, wanted in forms.items():
        x = torch.randn(frames, unet.space.position(position).channels, height, width, generator=generator)
        layers: Any = unet.network.temporal[module_name(position)]
        for layer, form in zip(layers, wanted, strict=True):
            plain = layer(x, frames, context)
            same = reform(layer, f"plain+{form}" if form else "plain")(x, frames, context)
            off = float((same - plain).abs().max() / plain.abs().max().clamp_min(1e-12))
            if not off <= TOLERANCE:
                raise NasError(f"{position}: the form {form} is off by {off:.2g} against the plain layer; report it")


def forms_of_device(unet: VideoUNet, device: str, tables: Path) -> dict[str, list[str]]:
    """``best_forms`` by a device's table.

    Raises:
        TableError: if there is no such table.
    """
    from latency_tables.lookup import load_table

    return best_forms(unet, load_table(device, tables))
