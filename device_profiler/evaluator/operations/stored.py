"""Weights that are stored in fewer bits, and decompressed when a model is loaded: the operations ``constexpr_*``.

Source: coremltools' definitions ``ops/defs/iOS16/constexpr_ops.py`` and ``ops/defs/iOS18/compression.py``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from device_profiler.evaluator.operations.arguments import Arguments, numeric, operation
from device_profiler.evaluator.types import unpacked


def _spread(small: Tensor, shape: torch.Size) -> Tensor:
    """Each value over its block: a size that is smaller than the shape's is repeated in a row."""
    for axis, size in enumerate(shape):
        if small.shape[axis] != size:
            small = small.repeat_interleave(size // small.shape[axis], axis)
    return small


@numeric("constexpr_blockwise_shift_scale")
def blockwise_shift_scale(a: Arguments) -> Tensor:
    """``scale * (data - offset)``, a scale for each block."""
    data = a["data"].float()
    if a.has("offset"):
        data = data - _spread(a["offset"].float(), data.shape)
    return _spread(a["scale"], data.shape) * data


@numeric("constexpr_affine_dequantize")
def affine_dequantize(a: Arguments) -> Tensor:
    """``scale * (quantized_data - zero_point)``, a scale for all or for each index of an axis."""
    data = a["quantized_data"].float()
    axis = a.whole("axis") % data.dim()
    shape = [-1 if place == axis else 1 for place in range(data.dim())]
    scale, zero = (a[name].float() for name in ("scale", "zero_point"))
    return (data - (zero.reshape(shape) if zero.dim() else zero)) * (scale.reshape(shape) if scale.dim() else scale)


@operation("constexpr_lut_to_dense")
def lut_to_dense(a: Arguments) -> Tensor:
    """Values of a table at the stored indices.

    Of iOS 18 ``lut`` is ``(*groups, entries, vector)``: a table for each block of indices, whose entries are vectors
    along ``vector_axis``. Of iOS 16 it is one table, and indices are packed into bytes.
    """
    lut = a["lut"]
    if lut.dim() == 1:
        shape, bits = a.ints("shape"), int(math.log2(lut.numel()))
        raw = a["indices"].to(torch.uint8).numpy()
        return lut[torch.from_numpy(unpacked(raw, f"UINT{bits}", math.prod(shape)).astype("int64"))].reshape(shape)
    indices = a["indices"].long()
    entries, width = lut.shape[-2:]
    groups = lut.shape[:-2]
    which = _spread(torch.arange(math.prod(groups)).reshape(groups), indices.shape)
    found = lut.reshape(-1, width)[which * entries + indices]  # (*indices, vector)
    if width == 1:
        return found.squeeze(-1)
    axis = a.whole("vector_axis") % indices.dim()
    shape = [size * (width if place == axis else 1) for place, size in enumerate(indices.shape)]
    return found.movedim(-1, axis + 1).reshape(shape)


@operation("constexpr_sparse_to_dense")
def sparse_to_dense(a: Arguments) -> Tensor:
    """The stored values where the mask is 1, zeros elsewhere."""
    values, mask = a["nonzero_data"], a["mask"]
    if a.has("shape"):  # iOS 16: bits packed into bytes
        shape = a.ints("shape")
        raw = mask.to(torch.uint8).numpy()
        mask = torch.from_numpy(unpacked(raw, "UINT1", math.prod(shape)).astype("int16")).reshape(shape)
    dense = torch.zeros(mask.shape, dtype=values.dtype)
    dense[mask != 0] = values
    return dense


@operation("constexpr_cast")
def constexpr_cast(a: Arguments) -> Tensor:
    """float16 as float32."""
    return a["source_val"].to(a.declared)
