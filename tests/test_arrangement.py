"""Variants, arrangements and workloads: values with one name each, that survive every file they are written to."""

import numpy as np
import pytest

from search_spaces.arrangement import Arrangement
from search_spaces.errors import SpaceError
from search_spaces.picture import picture
from search_spaces.space import Space
from search_spaces.variant import Variant
from search_spaces.workload import Workload


@pytest.fixture(scope="module")
def tiny():
    return Space.load("tiny")


def test_a_variant_has_one_label_however_it_is_written():
    variant = Variant.of("Mixer", width=3, heads=2)
    assert variant == Variant("Mixer", (("heads", 2), ("width", 3))) == Variant.parse(" Mixer( width=3, heads = 2 )")
    assert variant.label == str(variant) == "Mixer(heads=2,width=3)"
    assert Variant.parse(variant.label) == variant == Variant.from_json(variant.to_json())
    assert Variant.parse("Mixer").label == "Mixer"
    assert sorted([variant, Variant.of("Conv3D")])[0].block == "Conv3D"


@pytest.mark.parametrize("text", ["", "Conv3D(", "Conv3D(3)", "Conv3D(kernel_size=1.5)", "Conv3D(k=1,k=2)", "a b", 3])
def test_a_label_that_cannot_be_read_is_refused(text):
    with pytest.raises(SpaceError, match="Conv3D"):
        Variant.parse(text) if text != "a b" else Variant.parse("Conv3D b")


def test_parameters_are_integers():
    with pytest.raises(SpaceError, match="kernel_size='3'"):
        Variant.of("Conv3D", kernel_size="3")
    with pytest.raises(SpaceError, match="True"):
        Variant.of("Conv3D", kernel_size=True)


def test_an_arrangement_survives_yaml_and_json(tiny, tmp_path):
    arrangement = tiny.sample(np.random.default_rng(0))
    assert Arrangement.load(arrangement.save(tmp_path / "deep" / "a.yaml")) == arrangement
    assert Arrangement.from_json(arrangement.to_json()) == arrangement
    assert not list(tmp_path.rglob("*.partial"))


def test_the_key_is_stable_and_tells_order_apart(tiny):
    conv, attention = Variant.of("Conv1D", kernel_size=3), Variant.of("SelfAttention1D", heads=4)
    first = tiny.empty().replace("up.0.0", [conv, attention])
    assert tiny.empty().key == "4a6b5984bd3a", "stored fronts and tables name arrangements by this key"
    assert first.key == tiny.arrange({"up.0.0": ["Conv1D", "SelfAttention1D(heads=4)"]}).key
    assert first.key != tiny.empty().replace("up.0.0", [attention, conv]).key
    assert first.at("up.0.0") == (conv, attention) and first.num_layers == 2 and tiny.empty().num_layers == 0


def test_an_unknown_position_is_named(tiny):
    with pytest.raises(SpaceError, match=r"unknown position 'up.0.2'.*Known positions: down.0.0"):
        tiny.empty().replace("up.0.2", [])


@pytest.mark.parametrize(
    "text, message",
    [
        ("[1, 2", "is no YAML"),
        ("space: tiny", "exactly the keys space and positions"),
        ("- 1", "exactly the keys"),
        ("{space: tiny, positions: [a]}", "positions must map"),
        ("{space: tiny, positions: {up.0.0: Conv1D}}", r"positions.up.0.0 must be a list"),
        ("{space: tiny, positions: {up.0.0: ['Conv1D(']}}", r"positions.up.0.0: cannot read variant 'Conv1D\('"),
    ],
)
def test_a_wrong_file_is_refused_with_its_path(tmp_path, text, message):
    path = tmp_path / "arrangement.yaml"
    path.write_text(text)
    with pytest.raises(SpaceError, match=message) as error:
        Arrangement.load(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(SpaceError, match="cannot be read"):
        Arrangement.load(tmp_path / "none.yaml")


def test_sampling_is_seeded_valid_and_reaches_every_length(tiny):
    drawn = [tiny.sample(np.random.default_rng(seed)) for seed in range(60)]
    for arrangement in drawn:
        tiny.check(arrangement)
    assert drawn[7] == tiny.sample(np.random.default_rng(7))
    assert len({arrangement.key for arrangement in drawn}) > 55
    assert {len(arrangement.at("up.0.0")) for arrangement in drawn} == {0, 1, 2}


def test_a_picture_shows_every_layer_on_one_screen(tiny):
    for name in ("tiny", "snapgen_v"):
        space = Space.load(name)
        arrangement = space.sample(np.random.default_rng(2))
        drawn = picture(space, arrangement, {"up.0.1": 12.345, "down.0.0": "a lot"})
        lines = drawn.splitlines()
        assert len(lines) <= 40 and max(map(len, lines)) <= 100
        assert all(position in drawn for position in arrangement.positions) and arrangement.key in drawn
        assert "up.0.1  12.35 ms" in drawn or "up.0.1  12.34 ms" in drawn
        assert "down.0.0  a lot" in drawn
    full = picture(tiny, tiny.arrange({"up.1.1": ["Conv1D", "Conv1D"], "down.1.0": ["SelfAttention3D(heads=4)"]}))
    assert "Conv1D k3 (2x)" in full and "SelfAttention3D h4" in full
    assert full.index("up.1.1") < full.index("up.1.0") < full.index("up.0.1") < full.index("up.0.0")


@pytest.mark.parametrize(
    "key",
    ["Conv3D(kernel_size=3)/c320/t30/64x64/b1@fp16", "CrossAttention1D(heads=8)/c320/t30/64x64/l77x768/b2@fp32"],
)
def test_a_workload_is_its_key(key):
    workload = Workload.parse(key)
    assert workload.key == key and workload.base == key.split("@")[0] and workload.is_block


def test_backbones_and_networks_are_named_in_their_keys(tiny):
    assert tiny.backbone_workload("fp32").key == "backbone:tiny/t8/48x48/b1@fp32"
    network = tiny.network_workload(tiny.empty(), "fp16", "training")
    assert network.key == f"network:tiny:{tiny.empty().key}/t8/16x16/b1@fp16" and not network.is_block


@pytest.mark.parametrize("key", ["", "backbone:tiny/t8/48x48/b1@fp32", "Conv3D/c3/t8@fp32", "Conv3D/c3/t8/4x4/b1"])
def test_what_is_no_block_key_is_refused(key):
    with pytest.raises(SpaceError, match="a block's key looks like"):
        Workload.parse(key)


def test_workloads_are_checked_when_made():
    with pytest.raises(SpaceError, match="unknown precision 'int4'"):
        Workload("Conv3D", (), 8, 4, 4, 4, precision="int4")
    with pytest.raises(SpaceError, match="at least 1"):
        Workload("Conv3D", (), 8, 0, 4, 4)
