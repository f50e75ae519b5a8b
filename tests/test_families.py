"""Families of networks: the contract, over ours and over one of another package; and what is built on it."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy_family
from table_fixtures import every_arrangement, small_plan, small_table
from torch import Tensor

from latency_tables import CostModel
from nas.report.drawing import network_svg
from nas.run.costs import default_latency_ms
from nas.supernet.supernet import Supernet
from nas.training.engine import compile_parts
from search_spaces import families, registry
from search_spaces.arrangement import Arrangement
from search_spaces.errors import SpaceError
from search_spaces.network import recompute
from search_spaces.planning import load_plan
from search_spaces.space import Space
from search_spaces.testing import BlockContract, FamilyContract
from search_spaces.variant import Variant


class TestUNet(FamilyContract):
    preset = "tiny"
    config = {"block_out_channels": [8, 16], "attention_head_dim": 2, "cross_attention_dim": 8}


class Toy:
    @pytest.fixture(autouse=True)
    def installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        toy_family.install(monkeypatch)


class TestToy(Toy, FamilyContract):
    preset = "toy_dit"


class TestTransformer(Toy, BlockContract):
    variant = Variant.of("Transformer", heads=1, ffn=8)


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Space:
    toy_family.install(monkeypatch)
    return Space.load(toy_family.write_space(tmp_path))


def inputs() -> tuple[Tensor, Tensor, Tensor, int]:
    torch.manual_seed(3)
    return torch.randn(8, 3, 16, 16), torch.tensor([200.0, 700.0]), torch.randn(2, 16, 32), 4


def gradients(supernet: Supernet, path: Any) -> dict[str, Tensor]:
    supernet.zero_grad()
    supernet(*inputs(), path).square().mean().backward()
    return {name: p.grad.clone() for name, p in supernet.named_parameters() if p.grad is not None}


def test_a_position_of_exactly_one_layer_is_a_choice(space: Space) -> None:
    assert space.size() == 3**3 and all(len(option) == 1 for option in space.options("block.0"))
    with pytest.raises(SpaceError, match="block.0: 0 layers, under least=1"):
        space.check(space.empty())
    rng = np.random.default_rng(0)
    for _ in range(20):
        space.check(space.sample(rng))


def test_the_baseline_is_stated_kept_and_planned(space: Space) -> None:
    stated = space.arrange({p.name: ["Transformer(heads=2,ffn=16)"] for p in space.positions})
    assert space.baseline() == stated == Space.from_json(space.to_json()).baseline()
    plan = load_plan(space)
    assert plan.stated_baseline == stated == type(plan).from_json(plan.to_json()).stated_baseline
    assert plan.smallest().num_layers == 3 and space.empty() not in (plan.smallest(), space.baseline())
    assert Space.load("tiny").baseline() == Space.load("tiny").empty()


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("least: 1", "least: 2", "block.0.least must be at most 1, but is 2"),
        ("baseline:\n  block.0: [", "baseline:\n  block.0: [Conv1D, ", "baseline: block.0: 2 layers"),
        ("baseline:\n  block.0:", "baseline:\n  block.9:", "baseline.block.9: unknown key"),
        ('block.2: ["Transformer(heads=2,ffn=16)"]', "block.2: 3", "baseline.block.2 must be a list"),
    ],
)
def test_a_wrong_position_or_baseline_is_one_line(space: Space, old: str, new: str, message: str) -> None:
    assert space.source is not None and old in toy_family.SPACE
    space.source.write_text(toy_family.SPACE.replace(old, new))
    with pytest.raises(SpaceError, match=message) as caught:
        Space.load(space.source)
    assert "\n" not in str(caught.value)


def test_a_block_that_reads_the_time_is_measured_by_a_key_of_its_own(space: Space) -> None:
    from search_spaces.network import build_module
    from search_spaces.workload import Workload

    workload = space.workload("block.0", Variant.of("Transformer", heads=1, ffn=8), "fp32")
    assert workload.key == "Transformer(ffn=8,heads=1)/c32/t8/16x16/e32/b1@fp32"
    assert Workload.parse(workload.key) == workload
    module, examples, names = build_module(workload)
    assert names == ("x", "embedding") and module(*examples).shape == examples[0].shape


def test_a_block_may_not_read_an_embedding_that_is_not_there(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = toy_family.Toy.layout
    monkeypatch.setattr(toy_family.Toy, "layout", lambda self, config: replace(plain(self, config), embedding=0))
    with pytest.raises(SpaceError, match="reads the time embedding, which backbone toy_dit does not hand out"):
        Space.load(space.source or "")


@pytest.mark.filterwarnings("ignore")  # torch about its own internals while it compiles
def test_a_foreign_supernet_computes_again_and_compiles_to_the_same(space: Space) -> None:
    torch.manual_seed(0)
    plain = Supernet(space).train()
    paths = [space.sample(np.random.default_rng(seed)) for seed in (0, 1)]
    expected = gradients(plain, paths)
    again, compiled = Supernet(space).train(), Supernet(space).train()
    for block in (*again.blocks(), *compiled.blocks()):
        recompute(block)
    compile_parts(compiled.blocks(), "eager")
    for supernet in (again, compiled):
        supernet.load_state_dict(plain.state_dict())
        found = gradients(supernet, paths)
        assert found.keys() == expected.keys()
        assert all(torch.allclose(found[name], gradient, atol=1e-5) for name, gradient in expected.items())


def test_an_extracted_foreign_network_is_its_path(space: Space) -> None:
    supernet, path = Supernet(space).eval(), space.sample(np.random.default_rng(2))
    with torch.no_grad():
        assert torch.equal(supernet.extract(path)(*inputs()), supernet(*inputs(), path))


def test_a_foreign_network_is_drawn_as_a_list(space: Space) -> None:
    layers = [(name, list(labels)) for name, labels in space.baseline().labels().items()]
    svg = network_svg(load_plan(space), layers, {}, width=860, title="x")
    assert svg.count('class="card"') == 3 and svg.count('class="pill"') == 2 and "no layer" not in svg


def test_an_entry_point_that_is_no_family_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, message in (("toy_family:SPACE", "must name a Family"), ("absent:X", "cannot be loaded")):
        point = EntryPoint("odd", value, families.GROUP)
        monkeypatch.setattr(registry, "entry_points", lambda group, point=point: [point])
        with pytest.raises(SpaceError, match=f"family 'odd': .*{message}"):
            families.family_of("odd_preset")
        assert families.family_of("tiny").name == "unet"  # ours are known without theirs


def test_the_default_budget_leaves_a_search_something_to_choose() -> None:
    plan = small_plan(max_layers=1)
    rooms = []
    full = Arrangement(plan.space, tuple((p.name, (Variant.of("Conv3D", kernel_size=3),)) for p in plan.positions))
    for stated in (None, full):
        costs = CostModel(replace(plan, stated_baseline=stated), small_table(plan))
        limit = default_latency_ms(costs, 1.5)
        rooms.append((costs.cost(every_arrangement([4] * 4)).latency_ms <= limit).mean())
        wide = default_latency_ms(costs, 1.5, margin=0.5)
        assert wide == (limit if stated is None else pytest.approx(1.5 * limit, abs=2e-3))
        if stated:  # choices: between the cheapest and the uncut network
            assert costs.backbone_latency_ms < limit < costs.cost(costs.encode(stated.labels())[None]).latency_ms[0]
        else:  # additions
            assert limit == round(costs.backbone_latency_ms * 1.5, 3)
    assert all(0 < room < 1 for room in rooms)
