"""The static plan: weights plus the most bytes of tensors alive at once, read off a program in execution order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

Step = tuple[Sequence[str], Sequence[str]]


def live_peak_bytes(steps: Sequence[Step], sizes: Mapping[str, int], inputs: Iterable[str], kept: Iterable[str]) -> int:
    """Most bytes alive at any step, when a tensor lives from the step that makes it to the last that reads it.

    Args:
        steps: (tensors read, tensors made) of each operation, in execution order.
        sizes: bytes of every tensor that takes memory; names that are absent (weights, views) count nothing.
        inputs: alive from the start to the end, as the caller holds them.
        kept: alive from when they are made to the end (the outputs).
    """
    always = set(inputs)
    last: dict[str, int] = {}
    for index, (reads, makes) in enumerate(steps):
        for name in (*reads, *makes):
            last[name] = index
    for name in kept:
        last[name] = len(steps)
    alive = {name: sizes.get(name, 0) for name in always}
    peak = total = sum(alive.values())
    for index, (reads, makes) in enumerate(steps):
        for name in makes:
            if name not in alive:
                alive[name] = sizes.get(name, 0)
                total += alive[name]
        peak = max(peak, total)
        for name in {*reads, *makes}:
            if name in alive and name not in always and last[name] <= index:
                total -= alive.pop(name)
    return peak
