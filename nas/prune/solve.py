"""The least harm within a limit, one option a place, where both add up over places: a dynamic programme over cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CELLS = 16_384


def least_harm(harms: Sequence[Floats], costs: Sequence[Floats], room: float, cells: int = CELLS) -> list[int] | None:
    """One option of each place with the least sum of harm, its sum of cost at most ``room``.

    Costs are rounded up to a grid of ``cells`` over the room that the cheapest options leave, so what is found always
    keeps to the limit; it is the best of all but those that come within ``len(costs) / cells`` of that room.

    Args:
        harms, costs: of each place's options.

    Returns:
        Option indices; None if even the cheapest ones cost more.
    """
    least = [float(cost.min()) for cost in costs]
    spare = room - sum(least)
    if spare < 0:
        return None
    unit = spare / cells if spare > 0 else 1.0
    best = np.zeros(cells + 1)
    chosen: list[NDArray[np.int64]] = []
    for harm, cost, lowest in zip(harms, costs, least, strict=True):
        steps = np.ceil((cost - lowest) / unit - 1e-9).astype(np.int64)
        tried = np.full((len(harm), cells + 1), np.inf)
        for option, step in enumerate(steps):
            if step <= cells:
                tried[option, step:] = best[: cells + 1 - step] + harm[option]
        chosen.append(tried.argmin(axis=0))
        best = tried.min(axis=0)
    at, found = int(best.argmin()), []
    for choice, cost, lowest in reversed(list(zip(chosen, costs, least, strict=True))):
        option = int(choice[at])
        found.append(option)
        at -= int(np.ceil((cost[option] - lowest) / unit - 1e-9))
    return found[::-1]
