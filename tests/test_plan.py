"""Plans: what is committed is what the modules are."""

import json

import pytest
import torch

from search_spaces.network import VideoNetwork
from search_spaces.plan import Plan
from search_spaces.planning import compute, load_plan, plan_path
from search_spaces.space import Space, list_spaces


@pytest.fixture(scope="module", params=["tiny", "snapgen_v"])
def space(request):
    return Space.load(request.param)


def test_the_committed_plan_is_the_modules(space):
    committed = json.loads(plan_path(space).read_text())
    assert committed == compute(space).to_json(), "run python -m search_spaces.planning"
    assert committed["fingerprint"] == space.fingerprint


def test_a_plan_survives_its_file(space, tmp_path):
    plan = load_plan(space)
    assert Plan.load(plan.save(tmp_path / "plan.json")) == plan
    assert (tmp_path / "plan.json").read_text() == plan_path(space).read_text()


def test_backbones_have_the_parameters_they_are_known_for():
    assert load_plan("snapgen_v").backbone_parameters == 323_384_964
    assert load_plan("tiny").backbone_parameters == 188_467


def test_parameters_of_an_arrangement_are_those_of_its_network(space):
    plan = load_plan(space)
    for arrangement in (space.empty(), load_plan(space).largest()):
        with torch.device("meta"):
            network = VideoNetwork(space, arrangement)
        assert plan.parameters(arrangement) == sum(p.numel() for p in network.parameters())
    assert plan.smallest() == space.empty()


def test_the_space_holds_networks_of_six_hundred_million():
    space, plan = Space.load("snapgen_v"), load_plan("snapgen_v")
    arrangement = space.arrange(
        {
            "down.1.0": ["SelfAttention1D", "Conv1D"],
            "down.2.0": ["SelfAttention3D", "Conv3D", "Conv3D"],
            "up.0.0": ["SelfAttention3D", "Conv3D", "CrossAttention3D"],
            "up.0.1": ["SelfAttention3D", "Conv3D", "Conv3D"],
            "up.1.0": ["SelfAttention1D", "Conv3D"],
        }
    )
    assert 550e6 < plan.parameters(arrangement) < 650e6


def test_skips_alive_follow_the_order_of_execution():
    points = {point.name: point for point in load_plan("tiny").points}
    full, half = 8 * 16 * 48 * 48, 8 * 16 * 24 * 24
    assert list(points) == [
        "conv_in", "down.0.0", "down.0.downsample", "down.1.0", "up.0.0", "up.0.1",
        "up.0.upsample", "up.1.0", "up.1.1", "conv_out",
    ]  # fmt: skip
    assert points["conv_in"].skips == () and points["conv_in"].kind == "backbone"
    assert points["down.0.0"].skips == (("conv_in", full),), "its own output is not yet a skip"
    before = (("conv_in", full), ("down.0.0", full), ("down.0.downsample", half))
    assert points["down.1.0"].skips == before
    assert points["up.0.0"].skips == before, "down.1.0 was taken before the pair ran"
    assert points["up.0.1"].skips == before[:2]
    assert points["up.1.0"].skips == before[:1] and points["up.1.1"].skips == ()


def test_positions_of_equal_shape_share_a_workload():
    plan = load_plan("tiny")
    layers = {position.name: [layer.workload for layer in position.layers] for position in plan.positions}
    assert layers["up.0.0"] == layers["up.0.1"] == layers["down.1.0"] != layers["up.1.0"]


def test_a_layer_that_contradicts_its_label_is_refused():
    plan = load_plan("tiny").to_json()
    plan["positions"][0]["layers"][0]["params"] = {"kernel_size": 5}
    with pytest.raises(ValueError, match=r"positions\[0\].layers\[0\]: Conv1D\(kernel_size=3\) is not block Conv1D"):
        Plan.from_json(plan)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 99}', '{"schema": 1, "space": "tiny"}'])
def test_a_broken_plan_is_one_line_with_its_path(tmp_path, text):
    path = tmp_path / "broken.plan.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="is no plan of schema 1") as error:
        Plan.load(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_a_committed_plan_of_another_definition_is_refused(monkeypatch):
    monkeypatch.setattr(Space, "fingerprint", "000000000000")
    with pytest.raises(ValueError, match=r"tiny.plan.json was computed from .* run python -m search_spaces.planning"):
        load_plan("tiny")


def test_every_shipped_space_has_a_plan():
    assert all(plan_path(Space.load(name)).exists() for name in list_spaces())
