"""Counting instead of running: operations and bytes of each step, on torch's meta device, for the roofline estimate."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from device_profiler.lowering.kinds import CONV, MATMUL, OTHER

if TYPE_CHECKING:
    from torch import Tensor, nn


class Counter(TorchDispatchMode):
    """Lists (FLOPs, bytes, kind) of every operation that makes a tensor, and follows which tensors are alive.

    Args:
        element: bytes of one floating-point element at the device's precision.
    """

    def __init__(self, element: int, weights: set[int]) -> None:
        super().__init__()
        self.element = element
        self.weights = weights
        self.operations: list[tuple[float, float, str]] = []
        self.alive: dict[int, tuple[weakref.ref[Any], int]] = {}
        self.peak = 0

    def bytes_of(self, tensor: Tensor) -> int:
        """Bytes of a tensor at the device's precision."""
        return tensor.numel() * (self.element if tensor.is_floating_point() else tensor.element_size())

    def hold(self, tensor: Tensor) -> None:
        """Count a tensor's storage as alive until torch frees it."""
        storage = tensor.untyped_storage()
        if storage._cdata in self.weights:
            return
        self.alive = {name: (ref, size) for name, (ref, size) in self.alive.items() if ref() is not None}
        self.alive.setdefault(storage._cdata, (weakref.ref(storage), self.bytes_of(tensor)))
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func.is_view:
            return output
        reads = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        makes = [x for x in tree_leaves(output) if isinstance(x, torch.Tensor)]
        for tensor in makes:
            self.hold(tensor)
        counted = flop_registry.get(func._overloadpacket)
        flops = float(counted(*args, **(kwargs or {}), out_val=output)) if counted else 0.0
        moved = float(sum(self.bytes_of(x) for x in (*reads, *makes)))
        self.operations.append((flops, moved, kind_of(func._schema.name) if flops else OTHER))
        return output

    def fused(self, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **named: Any) -> Tensor:
        """Attention as one operation: two matrix products, and only the inputs and the output are moved."""
        with torch.utils._python_dispatch._disable_current_modes():
            output = query.new_empty((*query.shape[:-1], value.shape[-1]))
        self.hold(output)
        scores = query.shape[:-1].numel() * key.shape[-2]
        flops = 2.0 * scores * (query.shape[-1] + value.shape[-1])
        moved = float(sum(self.bytes_of(x) for x in (query, key, value, output)))
        self.operations.append((flops, moved, MATMUL))
        return output


def kind_of(name: str) -> str:
    """``conv`` or ``matmul``: what an operation that computes is, by its name in torch."""
    return CONV if "conv" in name else MATMUL


def _spelled_out(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **named: Any) -> Tensor:
    scores = query @ key.transpose(-2, -1)
    return (scores * query.shape[-1] ** -0.5).softmax(-1) @ value


def lower(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    names: tuple[str, ...],
    lowering: str,
    precision: str,
    folder: Path,
) -> dict[str, Any]:
    """Count one evaluation on the meta device; nothing is computed and nothing is written.

    Returns:
        ``operations`` as (FLOPs, bytes, kind), ``flops`` in all, ``weights_mb`` and ``activation_peak_mb`` (input,
        output and intermediates by the lifetime of torch's tensors).
    """
    element = 4 if precision == "fp32" else 2
    module = module.to("meta")
    placed = tuple(x.to("meta") if x.dim() else x for x in inputs)
    parameters = (*module.parameters(), *module.buffers())
    weights = {p.untyped_storage()._cdata for p in parameters}
    counter = Counter(element, weights)
    original = torch.nn.functional.scaled_dot_product_attention
    torch.nn.functional.scaled_dot_product_attention = _spelled_out if lowering == "decomposed" else counter.fused
    try:
        for tensor in placed:
            counter.hold(tensor)
        with counter, torch.no_grad():
            output = module(*placed)
    finally:
        torch.nn.functional.scaled_dot_product_attention = original
    del output
    return {
        "operations": [list(operation) for operation in counter.operations],
        "flops": sum(flops for flops, _, _ in counter.operations),
        "weights_mb": sum(p.numel() for p in parameters) * element / 1e6,
        "activation_peak_mb": counter.peak / 1e6,
    }
