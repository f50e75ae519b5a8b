"""A network over a clip in overlapping windows that cover all of it, blended by linear ramps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def tiled(
    run: Callable[[Tensor], Tensor],
    x: Tensor,
    window: tuple[int, ...],
    overlap: tuple[int, ...],
    factors: tuple[int, int],
    causal: bool = False,
) -> Tensor:
    """Run a network over (C, T, H, W) in overlapping windows that cover all of it, blended by linear ramps.

    Args:
        window, overlap: (T, H, W) of a window, and shared by two neighbours; what is smaller goes in one piece.
        factors: by how much time and space shrink; negative where they grow.
        causal: the first frame stands alone, and time goes in one piece.
    """
    by = (factors[0], factors[1], factors[1])

    def out(size: int, axis: int) -> int:
        alone = int(causal and axis == 0 and size > 0)
        return alone + ((size - alone) // by[axis] if by[axis] > 0 else (size - alone) * -by[axis])

    sizes = x.shape[1:]
    starts = [tile_starts(sizes[axis], window[axis], overlap[axis]) for axis in range(3)]
    total: Tensor | None = None
    weights = torch.zeros(tuple(out(sizes[axis], axis) for axis in range(3)), device=x.device)
    for t in starts[0]:
        for top in starts[1]:
            for left in starts[2]:
                corner = (t, top, left)
                ends = tuple(min(sizes[axis], corner[axis] + window[axis]) for axis in range(3))
                tile = run(x[:, t : ends[0], top : ends[1], left : ends[2]])
                place = tuple(slice(out(corner[a], a), out(ends[a], a)) for a in range(3))
                weight = torch.ones((), device=x.device)
                for axis in range(3):
                    ramp = _ramp(
                        out(ends[axis] - corner[axis], axis),
                        out(overlap[axis], axis),
                        corner[axis] > 0,
                        ends[axis] < sizes[axis],
                    )
                    weight = weight[..., None] * ramp.to(x.device)
                if total is None:
                    total = tile.new_zeros((tile.shape[0], *weights.shape))
                total[(slice(None), *place)] += tile * weight
                weights[place] += weight
    assert total is not None
    return total / weights


def tile_starts(size: int, window: int, overlap: int) -> list[int]:
    """Where windows begin so that they cover everything; the last one ends where the data ends.

    >>> tile_starts(512, 320, 80)
    [0, 192]
    """
    if size <= window:
        return [0]
    step = window - overlap
    return [*range(0, size - window, step), size - window]


def _ramp(size: int, overlap: int, before: bool, after: bool) -> Tensor:
    ramp = torch.ones(size)
    if overlap:
        rise = (torch.arange(min(overlap, size)) + 1) / (overlap + 1)
        if before:
            ramp[: len(rise)] *= rise
        if after:
            ramp[size - len(rise) :] *= rise.flip(0)
    return ramp
