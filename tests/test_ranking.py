"""Evidence of ranking: agreement of orders, and arrangements trained alone from a warm start."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from latency_tables.agreement import kendall_tau
from nas.config import resolve
from nas.data import open_data
from nas.data.cached import text_encoder_of
from nas.ranking.agreement import agreement
from nas.ranking.alone import train_alone
from nas.supernet.supernet import Supernet
from search_spaces.space import Space


def test_tau_counts_pairs() -> None:
    assert kendall_tau([1, 2, 3, 4], [1, 2, 3, 4]) == pytest.approx(1.0)
    assert kendall_tau([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1.0)
    assert kendall_tau([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(4 / 6)
    assert kendall_tau([1, 1, 2], [1, 2, 3]) == pytest.approx(2 / np.sqrt(2 * 3))  # one tie of three pairs
    assert np.isnan(kendall_tau([1, 1, 1], [1, 2, 3]))


def test_what_could_be_chance_is_said_to_be() -> None:
    rng = np.random.default_rng(0)
    truth = rng.standard_normal(24)
    good = agreement(truth + 0.2 * rng.standard_normal(24), truth)
    assert good.told_from_chance and good.low < good.tau < good.high and "chance" not in good.sentence
    none = agreement(rng.standard_normal(24), truth)
    assert not none.told_from_chance and "cannot be told from chance" in none.sentence


def test_chance_is_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas.ranking.agreement.DRAWS", 10)  # of the interval, which is not asked here
    rng = np.random.default_rng(1)
    found = [agreement(rng.standard_normal(8), rng.standard_normal(8)).told_from_chance for _ in range(60)]
    assert sum(found) <= 9  # 5% of 60 are 3; ten or more have a probability under 0.1%


@pytest.fixture(scope="module")
def parts() -> tuple:
    sets = [
        "data.source=moving_shapes",
        "train.spatial_rate=0.1",
        "train.clips=2",
        "train.images=2",
        "train.workers=0",
        "train.trackers=[]",
    ]
    config = resolve("tiny", None, None, sets)
    space = Space.load("tiny")
    data = open_data(config.data, space.clip("training"), "train", 0)
    torch.manual_seed(0)
    return space, data, config.train, (Supernet(space).eval(), text_encoder_of(space, data).eval())


def test_only_the_path_of_the_arrangement_is_trained(parts: tuple) -> None:
    space, data, config, start = parts
    before = {name: p.clone() for name, p in start[0].named_parameters()}
    arrangement = space.sample(np.random.default_rng(3))
    torch.set_num_threads(1)
    supernet, _ = train_alone(space, data, config, arrangement, start, steps=2, seed=0, inherit=True)
    assert all(torch.equal(p, before[name]) for name, p in start[0].named_parameters())  # the start is left alone
    moved = {name for name, p in supernet.named_parameters() if not torch.equal(p, before[name])}
    on_path = {id(p) for layers in supernet.path(arrangement).values() for layer in layers for p in layer.parameters()}
    for name, p in supernet.named_parameters():
        if name.startswith("layers."):
            assert (name in moved) <= (id(p) in on_path)
    assert any(name.startswith("layers.") for name in moved) and any(name.startswith("unet.") for name in moved)


def test_layers_start_anew_unless_they_are_inherited(parts: tuple) -> None:
    space, data, config, start = parts
    empty = space.empty()
    fresh, _ = train_alone(space, data, config, empty, start, steps=1, seed=1)
    inherited, _ = train_alone(space, data, config, empty, start, steps=1, seed=1, inherit=True)
    again, _ = train_alone(space, data, config, empty, start, steps=1, seed=1)
    given = start[0].layers.state_dict()
    assert all(torch.equal(value, given[name]) for name, value in inherited.layers.state_dict().items())
    assert not all(torch.equal(value, given[name]) for name, value in fresh.layers.state_dict().items())
    for name, value in fresh.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_nothing_is_left_behind(parts: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    space, data, config, start = parts
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    train_alone(space, data, config, space.empty(), start, steps=1, seed=0)
    assert not list(tmp_path.iterdir())
