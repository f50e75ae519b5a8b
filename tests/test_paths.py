"""Which paths train: the same for everybody who knows seed and step, and fair where it says so."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from training_fixtures import tiny

from nas.supernet.paths import PATHS, fair, sandwich

SPACE = tiny()


@pytest.mark.parametrize("name", sorted(PATHS))
def test_paths_are_a_pure_function_of_seed_and_step(name: str) -> None:
    draw = PATHS[name]
    assert draw(SPACE, 3, 41) == draw(SPACE, 3, 41)
    assert len({tuple(a.key for a in draw(SPACE, 3, step)) for step in range(20)}) > 10
    for arrangement in draw(SPACE, 3, 41):
        SPACE.check(arrangement)


def test_fair_paths_use_every_variant_of_a_slot_exactly_as_often_over_a_cycle() -> None:
    for position in SPACE.positions:
        cycle = (position.most + 1) * len(position.variants)
        for start in (0, 5 * cycle):
            drawn = [fair(SPACE, 7, step)[0].at(position.name) for step in range(start, start + cycle)]
            depths = Counter(len(layers) for layers in drawn)
            assert depths == {depth: len(position.variants) for depth in range(position.most + 1)}
            for slot in range(position.most):
                counts = Counter(layers[slot] for layers in drawn if len(layers) > slot)
                assert counts == {variant: position.most - slot for variant in position.variants}


def test_fair_paths_put_no_two_variants_together_for_good() -> None:
    """Slots and positions are shuffled on their own, and anew every cycle."""
    position = SPACE.position("down.1.0")
    pairs = {layers for step in range(600) if len(layers := fair(SPACE, 0, step)[0].at("down.1.0")) == 2}
    assert len(pairs) > 0.9 * len(position.variants) ** 2
    other = Counter((a.at("down.1.0"), a.at("up.0.0")) for a in (fair(SPACE, 0, step)[0] for step in range(300)))
    assert len(other) > 150  # of 300; in step with each other they would be 18


def test_a_position_without_variants_stays_empty() -> None:
    first, *others = SPACE.positions
    space = replace(SPACE, positions=(replace(first, most=0, variants=()), *others))
    for draw in PATHS.values():
        assert all(a.at(first.name) == () for a in draw(space, 0, 1))


def test_another_seed_is_another_training() -> None:
    for draw in PATHS.values():
        assert [draw(SPACE, 0, step) for step in range(5)] != [draw(SPACE, 1, step) for step in range(5)]


def test_the_sandwich_is_the_deepest_the_empty_and_one_between() -> None:
    deepest, empty, between = sandwich(SPACE, 0, 5)
    assert all(len(deepest.at(p.name)) == p.most for p in SPACE.positions)
    assert empty == SPACE.empty()
    assert between == fair(SPACE, 0, 5)[0]
