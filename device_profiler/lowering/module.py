"""No lowering at all: the torch runtime builds the module itself, and needs only the inputs and expected outputs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


def lower(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    names: tuple[str, ...],
    lowering: str,
    precision: str,
    folder: Path,
) -> dict[str, Any]:
    """Weights in MB at the precision; nothing is written."""
    element = 4 if precision == "fp32" else 2
    return {"weights_mb": sum(p.numel() for p in (*module.parameters(), *module.buffers())) * element / 1e6}
