"""Which paths of the supernet train at a step: a pure function of seed and step, so that every rank and every
resumed run agrees without talking."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from search_spaces.arrangement import Arrangement
from search_spaces.parts import SLICED
from search_spaces.space import Space
from search_spaces.variant import Variant

if TYPE_CHECKING:
    pass


def uniform(space: Space, seed: int, step: int) -> list[Arrangement]:
    """One random arrangement: at each position a uniform number of layers, then uniform variants."""
    return [space.sample(np.random.default_rng([seed, step]))]


def fair(space: Space, seed: int, step: int) -> list[Arrangement]:
    """One arrangement; over a cycle of steps, every variant of a slot stands there exactly as often as every other.

    A cycle of a position is (numbers of layers) * variants steps: each number of layers meets each place in a shuffled
    order of the variants once, one order a slot. Cycles are counted from step 0.

    Source: strict fairness, FairNAS (Chu et al., arXiv 1907.01845, section 3.2), with one path a step instead of one
    update a cycle.
    """
    layers: list[tuple[str, tuple[Variant, ...]]] = []
    for p, position in enumerate(space.positions):
        count = len(position.variants)
        if not count:  # nothing to choose from
            layers.append((position.name, ()))
            continue
        cycle, place = divmod(step, len(position.lengths) * count)
        rng = np.random.default_rng([seed, p, cycle])
        depth, turn = divmod(int(rng.permutation(len(position.lengths) * count)[place]), count)
        orders = [rng.permutation(count) for _ in range(position.most)]
        depth += position.least
        layers.append((position.name, tuple(position.variants[int(order[turn])] for order in orders[:depth])))
    return [Arrangement(space.name, tuple(layers))]


def sandwich(space: Space, seed: int, step: int) -> list[Arrangement]:
    """Three arrangements: the deepest first (every slot filled, variants at random), the emptiest one, and a fair one.

    The first teaches the others in place. Where variants are slices of the largest, the uncut network teaches, and a
    random path stands for the emptiest: a transformer without a block learns nothing that the others need.

    Source: the sandwich rule of Yu and Huang (arXiv 1903.05134, section 3.1). The widest path of their slimmable
    networks has no counterpart among exclusive variants; the deepest stands in.
    """
    rng = np.random.default_rng([seed, step, 1])
    if any(position.shelf == SLICED for position in space.positions):
        return [space.baseline(), space.sample(rng), *fair(space, seed, step)]
    deepest = tuple(
        (
            position.name,
            tuple(position.variants[int(rng.integers(len(position.variants)))] for _ in range(position.most)),
        )
        for position in space.positions
    )
    emptiest = tuple((name, layers[: space.position(name).least]) for name, layers in deepest)
    return [Arrangement(space.name, deepest), Arrangement(space.name, emptiest), *fair(space, seed, step)]


PATHS: dict[str, Callable[[Space, int, int], list[Arrangement]]] = {
    "uniform": uniform,
    "fair": fair,
    "sandwich": sandwich,
}


def fixed_paths(space: Space, count: int) -> list[Arrangement]:
    """The same few arrangements of a space whenever they are asked for."""
    import numpy as np

    return [space.sample(np.random.default_rng([2024, i])) for i in range(count)]
