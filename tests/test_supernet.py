"""The supernet: its paths are the networks, and only the path that ran learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from training_fixtures import tiny

from nas.supernet.supernet import Supernet
from search_spaces.network import module_name
from search_spaces.planning import load_plan

FRAMES = 4


@pytest.fixture(scope="module")
def supernet() -> Supernet:
    torch.manual_seed(0)
    made = Supernet(tiny())
    with torch.no_grad():
        for parameter in made.layers.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))  # away from the identity they start as
    return made


def inputs(frames: int = FRAMES) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2 * frames, 3, 16, 16, generator=generator)
    return x, torch.tensor([100.0, 700.0]), torch.randn(2, 16, 32, generator=generator), frames


@torch.no_grad()
def test_a_path_equals_the_network_extracted_from_it(supernet: Supernet) -> None:
    rng = np.random.default_rng(0)
    for arrangement in (supernet.space.empty(), *(supernet.space.sample(rng) for _ in range(4))):
        path = supernet(*inputs(), arrangement)
        network = supernet.extract(arrangement)
        assert torch.allclose(network(*inputs()), path, atol=1e-5)


@torch.no_grad()
def test_different_paths_are_different_functions(supernet: Supernet) -> None:
    rng = np.random.default_rng(0)
    a, b = supernet.space.sample(rng), supernet.space.sample(rng)
    assert not torch.allclose(supernet(*inputs(), a), supernet(*inputs(), b), atol=1e-4)


def test_a_new_supernet_is_the_image_backbone_along_every_path() -> None:
    fresh = Supernet(tiny())
    rng = np.random.default_rng(0)
    with torch.no_grad():
        bare = fresh(*inputs(), fresh.space.empty())
        assert torch.allclose(fresh(*inputs(), fresh.space.sample(rng)), bare, atol=1e-6)


@torch.no_grad()
def test_an_image_passes_every_path_alike(supernet: Supernet) -> None:
    rng = np.random.default_rng(0)
    bare = supernet(*inputs(frames=1), supernet.space.empty())
    assert torch.equal(supernet(*inputs(frames=1), supernet.space.sample(rng)), bare)


def test_only_the_layers_of_the_path_get_gradients(supernet: Supernet) -> None:
    arrangement = supernet.space.sample(np.random.default_rng(3))
    supernet.zero_grad(set_to_none=True)
    supernet(*inputs(), arrangement).square().mean().backward()
    on_path = {id(p) for layers in supernet.path(arrangement).values() for layer in layers for p in layer.parameters()}
    touched = {id(p) for p in supernet.temporal_parameters() if p.grad is not None}
    assert on_path and touched == on_path
    supernet.zero_grad(set_to_none=True)


def test_every_slot_of_every_position_has_every_variant(supernet: Supernet) -> None:
    for position in supernet.space.positions:
        shelf = supernet.layers[module_name(position.name)]
        assert len(shelf) == position.most * len(position.variants)  # type: ignore[arg-type]


@torch.no_grad()
def test_an_extracted_network_keeps_its_weights_when_the_supernet_learns_on(supernet: Supernet) -> None:
    arrangement = load_plan(supernet.space).largest()
    network = supernet.extract(arrangement)
    before = network(*inputs())
    shared = {p.data_ptr() for p in supernet.parameters()}
    assert not shared & {p.data_ptr() for p in network.parameters()}
    assert torch.equal(network(*inputs()), before)


def test_the_same_variant_in_another_slot_has_weights_of_its_own(supernet: Supernet) -> None:
    position = supernet.space.positions[0]
    twice = supernet.space.empty().replace(position.name, (position.variants[0],) * 2)
    first, second = supernet.path(twice)[position.name]
    assert first is not second
    assert supernet.path(twice)[position.name][0] is first
