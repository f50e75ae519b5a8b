"""Which paths train: the same for everybody who knows seed and step, and fair where it says so."""

from __future__ import annotations

from collections import Counter

import pytest
from training_fixtures import tiny

from nas.paths import PATHS, fair, sandwich

SPACE = tiny()


@pytest.mark.parametrize("name", sorted(PATHS))
def test_paths_are_a_pure_function_of_seed_and_step(name: str) -> None:
    draw = PATHS[name]
    assert draw(SPACE, 3, 41) == draw(SPACE, 3, 41)
    assert len({tuple(a.key for a in draw(SPACE, 3, step)) for step in range(20)}) > 10
    for arrangement in draw(SPACE, 3, 41):
        SPACE.check(arrangement)


def test_fair_paths_use_each_variant_of_a_slot_about_equally_often() -> None:
    """Strictly so where the slot is filled at every step of a cycle; depth is random, hence "about"."""
    counts: Counter[str] = Counter()
    steps = 600
    for step in range(steps):
        layers = fair(SPACE, 0, step)[0].at("down.1.0")
        if layers:
            counts[layers[0].label] += 1
    variants = SPACE.position("down.1.0").variants
    expected = sum(counts.values()) / len(variants)
    assert set(counts) == {variant.label for variant in variants}
    assert all(abs(count - expected) < 0.25 * expected for count in counts.values())


def test_the_sandwich_is_the_deepest_the_empty_and_one_between() -> None:
    deepest, empty, between = sandwich(SPACE, 0, 5)
    assert all(len(deepest.at(p.name)) == p.max_layers for p in SPACE.positions)
    assert empty == SPACE.empty()
    assert between == fair(SPACE, 0, 5)[0]
