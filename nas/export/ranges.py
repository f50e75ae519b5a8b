"""Whether a part fits into float16: its weights, and what flows through it on random input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from nas.errors import NasError

LARGEST = 65504.0  # of float16
MASK = -1e30  # what lies below hides a token from an attention: Core ML takes it for minus infinity, as is meant


class _Largest(TorchDispatchMode):
    """Remembers the operation whose output is largest."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.operation = 0.0, ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for part in out if isinstance(out, (tuple, list)) else (out,):
            if not isinstance(part, Tensor) or not part.is_floating_point() or not part.numel():
                continue
            size = float(part.masked_fill(part < MASK, 0.0).abs().max())
            if self.value == self.value and not size <= self.value:  # not a number is the largest of all
                self.value, self.operation = size, str(func).removeprefix("aten.").partition(".")[0]
        return out


@torch.no_grad()
def check_range(module: nn.Module, inputs: tuple[Tensor, ...], what: str) -> float:
    """The largest magnitude of a weight or activation, on these inputs.

    Raises:
        NasError: if it is beyond float16, or is none: the package would answer with infinities.
    """
    remedy = "a package in float16 would give infinities; scale these weights down, or train the model anew"
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and tensor.numel() and not float(tensor.abs().max()) <= LARGEST:
            found = float(tensor.abs().max())
            raise NasError(f"{what}: the weight {name} reaches {found:.3g}, over {LARGEST:,.0f}; {remedy}")
    with _Largest() as largest:
        module(*inputs)
    if not largest.value <= LARGEST:
        raise NasError(
            f"{what}: activations reach {largest.value:.3g} ({largest.operation}), over {LARGEST:,.0f}; {remedy}"
        )
    return largest.value
