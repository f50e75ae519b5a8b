"""Operations with weights, normalisations and attention: what costs the most and overflows first.

Source: coremltools' definitions ``ops/defs/iOS15/conv.py``, ``linear.py``, ``normalization.py``, ``pool.py``,
``image_resizing.py``, their successors of iOS 17, and ``ops/defs/iOS18/transformers.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from device_profiler.evaluator.operations.arguments import Arguments, numeric
from device_profiler.evaluator.types import PackageError

SCORES = 1 << 24  # of attention held at a time: 64 MB in float32
_CONVOLUTIONS: tuple[Callable[..., Tensor], ...] = (F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSED: tuple[Callable[..., Tensor], ...] = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


@numeric("linear")
def linear(a: Arguments) -> Tensor:
    """``x @ weight.T + bias``."""
    return F.linear(a["x"], a["weight"], a.maybe("bias"))


@numeric("matmul")
def matmul(a: Arguments) -> Tensor:
    """Matrix products over the last two axes, each transposed if told."""
    x, y = a["x"], a["y"]
    x = x.transpose(-1, -2) if a.flag("transpose_x") else x
    return x @ (y.transpose(-1, -2) if a.flag("transpose_y") else y)


@numeric("einsum")
def einsum(a: Arguments) -> Tensor:
    """As the equation says."""
    return torch.einsum(a.text("equation", ""), *a.many("values"))


@numeric("conv")
def conv(a: Arguments) -> Tensor:
    """Over one to three axes, padded before and after each as told."""
    x, weight = a["x"], a["weight"]
    axes = x.dim() - 2
    strides, dilations = a.ints("strides", [1] * axes), a.ints("dilations", [1] * axes)
    pads = _pads(a, [(size - 1) * step + 1 for size, step in zip(weight.shape[2:], dilations, strict=True)], strides)
    around = [size for pair in reversed(pads) for size in pair]
    padded = F.pad(x, around) if any(around) else x
    return _CONVOLUTIONS[axes - 1](padded, weight, a.maybe("bias"), strides, 0, dilations, a.whole("groups", 1))


def _pads(a: Arguments, reach: list[int], strides: list[int]) -> list[tuple[int, int]]:
    """Before and after each axis. ``same`` makes ``ceil(size / stride)`` places, the odd one behind."""
    kind = a.text("pad_type", "valid")
    given = a.ints("pad", [0] * (2 * len(reach)))
    if kind in ("valid", "custom"):
        return [(given[2 * n], given[2 * n + 1]) if kind == "custom" else (0, 0) for n in range(len(reach))]
    if kind not in ("same", "same_lower"):
        raise PackageError(f"padding {kind!r} is not known")
    pads = []
    for size, kernel, stride in zip(a["x"].shape[2:], reach, strides, strict=True):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        less, more = total // 2, total - total // 2
        pads.append((less, more) if kind == "same" else (more, less))
    return pads


@numeric("conv_transpose")
def conv_transpose(a: Arguments) -> Tensor:
    """Transposed convolution; padding is cut from the result."""
    x, weight = a["x"], a["weight"]
    axes = x.dim() - 2
    strides, dilations = a.ints("strides", [1] * axes), a.ints("dilations", [1] * axes)
    kind = a.text("pad_type", "valid")
    if kind not in ("valid", "custom"):
        raise PackageError(f"conv_transpose: padding {kind!r} is not evaluated")
    pads = a.ints("pad", [0] * (2 * axes)) if kind == "custom" else [0] * (2 * axes)
    whole = _TRANSPOSED[axes - 1](x, weight, a.maybe("bias"), strides, 0, 0, a.whole("groups", 1), dilations)
    sizes = a.ints("output_shape")[-axes:] if a.has("output_shape") else None
    for axis in range(axes):
        before, after = pads[2 * axis], pads[2 * axis + 1]
        length = sizes[axis] if sizes else whole.shape[2 + axis] - before - after
        missing = before + length - whole.shape[2 + axis]
        if missing > 0:  # a stated size may reach further than the kernel does: zeros and the bias
            raise PackageError("conv_transpose: an output padding is not evaluated")
        whole = whole.narrow(2 + axis, before, length)
    return whole


@numeric("layer_norm")
def layer_norm(a: Arguments) -> Tensor:
    """Over the axes, then scaled and shifted by values of those axes' shape."""
    x = a["x"]
    axes = a.axes("axes", x.dim())
    apart = x - x.mean(axes, keepdim=True)
    normed = apart / (apart.square().mean(axes, keepdim=True) + a.number("epsilon", 1e-5)).sqrt()
    shape = [x.shape[axis] if axis in axes else 1 for axis in range(x.dim())]
    return _affine(a, normed, shape)


@numeric("instance_norm")
def instance_norm(a: Arguments) -> Tensor:
    """Over each channel's places."""
    x = a["x"]
    axes = list(range(2, x.dim()))
    apart = x - x.mean(axes, keepdim=True)
    normed = apart / (apart.square().mean(axes, keepdim=True) + a.number("epsilon", 1e-5)).sqrt()
    return _affine(a, normed, [1, -1] + [1] * len(axes))


@numeric("batch_norm")
def batch_norm(a: Arguments) -> Tensor:
    """By the mean and variance given for each channel."""
    x = a["x"]
    shape = [1, -1] + [1] * (x.dim() - 2)
    spread = (a["variance"].reshape(shape) + a.number("epsilon", 1e-5)).sqrt()
    return _affine(a, (x - a["mean"].reshape(shape)) / spread, shape)


def _affine(a: Arguments, x: Tensor, shape: list[int]) -> Tensor:
    gamma, beta = a.maybe("gamma"), a.maybe("beta")
    if gamma is not None:
        x = x * gamma.reshape(shape)
    return x if beta is None else x + beta.reshape(shape)


@numeric("l2_norm")
def l2_norm(a: Arguments) -> Tensor:
    """Divided by the root of the sum of squares over the last three axes."""
    x = a["x"]
    return x / (x.square().sum([-3, -2, -1], keepdim=True) + a.number("epsilon", 1e-6)).sqrt()


@numeric("scaled_dot_product_attention")
def scaled_dot_product_attention(a: Arguments) -> Tensor:
    """``softmax(Q K^T / sqrt(E) + mask) V``, in float32 throughout."""
    return F.scaled_dot_product_attention(a["query"], a["key"], a["value"], a.maybe("attn_mask"))


def largest_logit(query: Tensor, key: Tensor) -> float:
    """The largest magnitude of ``Q K^T / sqrt(E)``: what the fused operation holds within itself, in float32."""
    lead, (length, width), others = query.shape[:-2], query.shape[-2:], key.shape[-2]
    rows = max(1, SCORES // max(1, math.prod(lead) * others))
    turned = key.float().transpose(-1, -2) / math.sqrt(width)
    parts = (query[..., start : start + rows, :].float() @ turned for start in range(0, length, rows))
    return max(float(part.abs().max()) for part in parts)


def _windows(a: Arguments, fill: float) -> Tensor:
    """``(n, C, *places, *kernel)``: every window of the padded input."""
    x, sizes = a["x"], a.ints("kernel_sizes")
    strides = a.ints("strides", [1] * len(sizes))
    if a.flag("ceil_mode"):
        raise PackageError("pooling with ceil_mode is not evaluated")
    around = [size for pair in reversed(_pads(a, sizes, strides)) for size in pair]
    x = F.pad(x, around, value=fill)
    for axis, (size, stride) in enumerate(zip(sizes, strides, strict=True)):
        x = x.unfold(2 + axis, size, stride)
    return x


@numeric("max_pool")
def max_pool(a: Arguments) -> Tensor:
    """The largest of each window; padding never is."""
    axes = list(range(-len(a.ints("kernel_sizes")), 0))
    return _windows(a, float("-inf")).amax(axes)


@numeric("avg_pool")
def avg_pool(a: Arguments) -> Tensor:
    """The mean of each window; padding counts as zeros unless told not to."""
    axes = list(range(-len(a.ints("kernel_sizes")), 0))
    means = _windows(a, 0.0).mean(axes)
    if not a.flag("exclude_padding_from_average"):
        return means
    ones = Arguments({**a.given, "x": [torch.ones_like(a["x"])]}, a.declared)
    return means / _windows(ones, 0.0).mean(axes)


@numeric("upsample_bilinear")
def upsample_bilinear(a: Arguments) -> Tensor:
    """The last two axes by a factor each; corners aligned by default."""
    x = a["x"]
    size = [int(x.shape[n - 2] * a.number(f"scale_factor_{axis}", 1.0)) for n, axis in enumerate(("height", "width"))]
    return F.interpolate(x, size, mode="bilinear", align_corners=a.flag("align_corners", True))
