"""Operations that move values and calculate nothing: shapes, axes, slices, gathers, joins.

Source: coremltools' definitions ``ops/defs/iOS15/tensor_transformation.py``, ``tensor_operation.py``,
``scatter_gather.py`` and their successors of iOS 16 to 18.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from device_profiler.evaluator.operations.arguments import Arguments, operation
from device_profiler.evaluator.types import PackageError


@operation("reshape")
def reshape(a: Arguments) -> Tensor:
    """A size of 0 keeps the input's, -1 is what is left."""
    x = a["x"]
    return x.reshape([size or x.shape[place] for place, size in enumerate(a.ints("shape"))])


@operation("transpose")
def transpose(a: Arguments) -> Tensor:
    """Axes in another order."""
    return a["x"].permute(a.ints("perm"))


@operation("expand_dims")
def expand_dims(a: Arguments) -> Tensor:
    """An axis of size 1 at each place, counted in the result."""
    x, axes = a["x"], a.ints("axes")
    for axis in sorted(axis % (x.dim() + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


@operation("squeeze")
def squeeze(a: Arguments) -> Tensor:
    """Without the axes of size 1, or those named."""
    x = a["x"]
    return x.squeeze(tuple(a.axes("axes", x.dim())))


@operation("concat")
def concat(a: Arguments) -> Tensor:
    """Values one after the other along an axis."""
    if a.flag("interleave"):
        raise PackageError("concat: the interleaved form is not evaluated")
    return torch.cat(a.many("values"), a.whole("axis"))


@operation("stack")
def stack(a: Arguments) -> Tensor:
    """Values along a new axis."""
    return torch.stack(a.many("values"), a.whole("axis"))


@operation("split")
def split(a: Arguments) -> tuple[Tensor, ...]:
    """Into the sizes given, or into equal parts."""
    x, axis = a["x"], a.whole("axis")
    if a.has("split_sizes"):
        return x.split(a.ints("split_sizes"), axis)
    return x.split(x.shape[axis] // a.whole("num_splits"), axis)


@operation("tile")
def tile(a: Arguments) -> Tensor:
    """Repeated along each axis."""
    return a["x"].repeat(a.ints("reps"))


@operation("reverse")
def reverse(a: Arguments) -> Tensor:
    """Backwards along the axes."""
    return a["x"].flip(a.axes("axes", a["x"].dim()))


@operation("slice_by_index")
def slice_by_index(a: Arguments) -> Tensor:
    """From begin to end by stride, as in numpy; masked ends are open, and a squeezed axis takes one index."""
    x = a["x"]
    rank = x.dim()
    begin, end, stride = a.ints("begin"), a.ints("end"), a.ints("stride", [1] * rank)
    opens, closes, single = (a.flags(f"{name}_mask", rank) for name in ("begin", "end", "squeeze"))
    squeezed = []
    for axis in range(rank):
        size = x.shape[axis]
        if single[axis]:
            x = x.narrow(axis, begin[axis] % size, 1)
            squeezed.append(axis)
            continue
        span = slice(None if opens[axis] else begin[axis], None if closes[axis] else end[axis], stride[axis])
        places = range(size)[span]
        if places == range(size):
            continue
        if places.step == 1:
            x = x.narrow(axis, places.start, len(places))
        else:
            x = x.index_select(axis, torch.tensor(list(places), dtype=torch.long))
    return x.squeeze(tuple(squeezed)) if squeezed else x


@operation("slice_by_size")
def slice_by_size(a: Arguments) -> Tensor:
    """``size`` values from begin on; -1 is all that follow."""
    x = a["x"]
    for axis, (begin, size) in enumerate(zip(a.ints("begin"), a.ints("size"), strict=True)):
        start = begin % x.shape[axis] if x.shape[axis] else 0
        x = x.narrow(axis, start, x.shape[axis] - start if size == -1 else size)
    return x


@operation("gather")
def gather(a: Arguments) -> Tensor:
    """Slices of x at the indices along an axis; negative indices count from the end."""
    if a.whole("batch_dims"):
        raise PackageError("gather: batch_dims is not evaluated")
    x, indices = a["x"], a["indices"].long()
    axis = a.whole("axis") % x.dim()
    places = torch.where(indices < 0, indices + x.shape[axis], indices)
    return x.index_select(axis, places.reshape(-1)).reshape(*x.shape[:axis], *places.shape, *x.shape[axis + 1 :])


@operation("gather_along_axis")
def gather_along_axis(a: Arguments) -> Tensor:
    """Values of x at the indices along an axis, place by place."""
    x, indices = a["x"], a["indices"].long()
    axis = a.whole("axis") % x.dim()
    return x.gather(axis, torch.where(indices < 0, indices + x.shape[axis], indices))


@operation("gather_nd")
def gather_nd(a: Arguments) -> Tensor:
    """Values of x at tuples of indices, which are the last axis."""
    if a.whole("batch_dims"):
        raise PackageError("gather_nd: batch_dims is not evaluated")
    return a["x"][tuple(a["indices"].long().unbind(-1))]


@operation("fill")
def fill(a: Arguments) -> Tensor:
    """A tensor of one value."""
    return torch.full(a.ints("shape"), a["value"].item(), dtype=a["value"].dtype)


@operation("fill_like")
def fill_like(a: Arguments) -> Tensor:
    """A tensor of one value in another's shape."""
    return torch.full(tuple(a["ref_tensor"].shape), a["value"].item(), dtype=a["value"].dtype)


@operation("shape")
def shape(a: Arguments) -> Tensor:
    """The sizes, as whole numbers."""
    return torch.tensor(a["x"].shape, dtype=torch.int32)


@operation("range_1d")
def range_1d(a: Arguments) -> Tensor:
    """From start to end by step."""
    start, end, step = (a[name].item() for name in ("start", "end", "step"))
    return torch.arange(start, end, step, dtype=a["start"].dtype)


@operation("band_part")
def band_part(a: Arguments) -> Tensor:
    """The band of a matrix from ``lower`` diagonals below to ``upper`` above the main one; -1 is all."""
    x = a["x"]
    lower, upper = a.whole("lower", -1), a.whole("upper", -1)
    apart = torch.arange(x.shape[-2])[:, None] - torch.arange(x.shape[-1])
    keep = ((apart <= lower) | (lower < 0)) & ((-apart <= upper) | (upper < 0))
    return torch.where(keep, x, torch.zeros((), dtype=x.dtype))


@operation("pad")
def pad(a: Arguments) -> Tensor:
    """Around the last axes: with a constant, mirrored, or the edge repeated."""
    x, mode = a["x"], a.text("mode", "constant")
    pairs = a.ints("pad")
    around = [size for place in reversed(range(len(pairs) // 2)) for size in pairs[2 * place : 2 * place + 2]]
    if mode == "constant":
        return F.pad(x, around, value=a.number("constant_val", 0.0))
    if mode not in ("reflect", "replicate"):
        raise PackageError(f"pad: the mode {mode!r} is not known")
    while len(around) > 2 and around[-2:] == [0, 0]:  # torch pads as many axes as it is told of, at most the last three
        around = around[:-2]
    rank = x.dim()
    ready = x.reshape(1, 1, *x.shape) if rank == len(around) // 2 else x
    return F.pad(ready, around, mode=mode).reshape(_padded(x, around))


def _padded(x: Tensor, around: list[int]) -> list[int]:
    sizes = list(x.shape)
    for place in range(len(around) // 2):
        sizes[-1 - place] += around[2 * place] + around[2 * place + 1]
    return sizes


@operation("pixel_shuffle")
def pixel_shuffle(a: Arguments) -> Tensor:
    """Channels into places, as torch has it."""
    return F.pixel_shuffle(a["x"], a.whole("upscale_factor"))


@operation("pixel_unshuffle")
def pixel_unshuffle(a: Arguments) -> Tensor:
    """Places into channels."""
    return F.pixel_unshuffle(a["x"], a.whole("downscale_factor"))


@operation("upsample_nearest_neighbor")
def upsample_nearest_neighbor(a: Arguments) -> Tensor:
    """The last two axes by a factor each: place i takes ``floor(i / factor)``."""
    return _nearest(a["x"], [a.number(f"scale_factor_{axis}", 1.0) for axis in ("height", "width")])


@operation("resize_nearest_neighbor")
def resize_nearest_neighbor(a: Arguments) -> Tensor:
    """The last two axes to a size each."""
    x = a["x"]
    wanted = [a.whole(f"target_size_{axis}") for axis in ("height", "width")]
    return _nearest(x, [size / x.shape[axis - 2] for axis, size in enumerate(wanted)])


def _nearest(x: Tensor, factors: list[float]) -> Tensor:
    for axis, factor in zip((-2, -1), factors, strict=True):
        size = x.shape[axis]
        places = (torch.arange(int(size * factor + 1e-6)) / factor + 1e-6).long().clamp_max(size - 1)
        x = x.index_select(x.dim() + axis, places)
    return x
