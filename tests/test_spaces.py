"""Spaces: what the shipped ones hold, what is derived from their clips, and what a wrong one is told."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from search_spaces.inspect import check, summaries, summary
from search_spaces.plan import Plan
from search_spaces.planning import load_plan, plan_path
from search_spaces.space import SPACES, Position, Space, list_spaces
from search_spaces.variant import Variant


@pytest.fixture(scope="module")
def tiny():
    return Space.load("tiny")


@pytest.fixture(scope="module")
def snapgen_v():
    return Space.load("snapgen_v")


def test_shapes_are_derived_from_the_clip(tiny, snapgen_v):
    assert {"snapgen_v", "tiny"} <= set(list_spaces())
    assert snapgen_v.latent_shape() == (30, 4, 64, 64)
    assert snapgen_v.position_shape("down.1.0") == (30, 640, 32, 32)
    assert snapgen_v.position_shape("up.0.0") == (30, 1280, 16, 16)
    assert tiny.latent_shape("training") == (8, 3, 16, 16) and tiny.latent_shape() == (8, 3, 48, 48)
    assert tiny.position_shape("up.1.1", "training") == (8, 16, 16, 16)
    clip = snapgen_v.clip()
    assert clip.frames / clip.fps == 5


def test_positions_stand_in_execution_order(tiny, snapgen_v):
    assert [p.name for p in tiny.positions] == ["down.0.0", "down.1.0", "up.0.0", "up.0.1", "up.1.0", "up.1.1"]
    assert len(snapgen_v.positions) == 9
    assert {v.block for v in snapgen_v.position("up.2.1").variants} == {
        f"{family}{axes}" for family in ("SelfAttention", "CrossAttention", "Conv") for axes in ("1D", "3D")
    }
    assert all(v.block != "SelfAttention3D" for p in tiny.positions if p.space_scale == 1 for v in p.variants)


def test_options_count_up_from_nothing_in_product_order(tiny):
    position = tiny.position("down.0.0")
    options, variants = tiny.options("down.0.0"), position.variants
    assert options[0] == ()
    assert options[1:5] == tuple((v,) for v in variants)
    assert options[5:7] == ((variants[0], variants[0]), (variants[0], variants[1]))
    assert len(options) == len(set(options)) == position.size == 1 + 4 + 16


def test_size_is_exact(tiny, snapgen_v):
    assert tiny.size() == math.prod(len(tiny.options(p)) for p in tiny.positions) == 21**3 * 43**3
    assert snapgen_v.size() == 400**9


def test_workloads_are_distinct_with_the_backbone_first(tiny, snapgen_v):
    for space in (tiny, snapgen_v):
        workloads = space.workloads("fp16")
        keys = [w.key for w in workloads]
        assert len(set(keys)) == len(keys) and workloads[0].block == "backbone"
        assert {k.rsplit("@")[0] for k in keys} == set(load_plan(space).workloads)
    assert len(snapgen_v.workloads("fp16")) == 22
    cross = tiny.workload("down.1.0", Variant.of("CrossAttention1D", heads=4), "fp32")
    assert cross.key == "CrossAttention1D(heads=4)/c32/t8/24x24/l16x32/b1@fp32"
    assert tiny.workload("up.1.0", Variant.of("Conv1D"), "fp16").key == "Conv1D(kernel_size=3)/c16/t8/48x48/b1@fp16"


def test_a_stored_definition_gives_the_same_space(tiny, snapgen_v):
    for space in (tiny, snapgen_v):
        again = Space.from_json(space.to_json())
        assert again.fingerprint == space.fingerprint and again.positions == space.positions
        assert load_plan(again).largest() == load_plan(space).largest()


@pytest.mark.parametrize(
    "layers, message",
    [
        ({"down.0.0": ["Conv1D"] * 3}, "down.0.0: 3 layers, over max_layers=2"),
        ({"down.0.0": ["SelfAttention3D(heads=4)"]}, r"down.0.0: SelfAttention3D\(heads=4\) is not allowed here; allo"),
        ({"up.0.2": []}, r"unknown position 'up.0.2'.*Known positions: down.0.0, down.1.0, up.0.0"),
    ],
)
def test_an_arrangement_outside_the_space_is_refused(tiny, layers, message):
    with pytest.raises(ValueError, match=message):
        tiny.arrange(layers)


def test_an_arrangement_of_another_space_is_refused(tiny, snapgen_v):
    with pytest.raises(ValueError, match="is of space 'tiny', but the space is 'snapgen_v'"):
        snapgen_v.check(tiny.empty())


# A space of one's own -----------------------------------------------------------------------------------------------

OWN = """
name: own
backbone:
  name: tiny
  config: {block_out_channels: [8, 24]}
text: {tokens: 5}
clips:
  deployment: {frames: 4, height: 8, width: 8, fps: 4}
positions:
  down.1.0: {max_layers: 1, variants: [Conv1D, SelfAttention1D(heads=4)]}
  up.1.1: {max_layers: 1, variants: [Conv3D(kernel_size=5)]}
"""


def write(folder: Path, text: str = OWN, old: str = "", new: str = "") -> Path:
    path = folder / "own.yaml"
    assert not old or old in text
    path.write_text(text.replace(old, new) if old else text)
    return path


def test_a_space_of_ones_own_is_a_yaml(tmp_path):
    path = write(tmp_path)
    space = Space.load(path)
    assert space.size() == 6 and space.clips["training"] == space.clips["deployment"]
    assert space.position("down.1.0").channels == 24
    assert space.position("down.1.0").variants[0] == Variant.of("Conv1D", kernel_size=3), "defaults are filled in"
    assert space.backbone_id.startswith("tiny-"), "a changed backbone must not share the rows of the shipped one"
    assert check(path) == []


def test_its_plan_is_computed_once_and_kept_beside_it(tmp_path):
    path = write(tmp_path)
    space = Space.load(path)
    plan = load_plan(space)
    assert plan_path(space) == tmp_path / "own.plan.json" and Plan.load(plan_path(space)) == plan
    changed = Space.load(write(tmp_path, old="max_layers: 1", new="max_layers: 2"))
    assert load_plan(changed).fingerprint == changed.fingerprint != plan.fingerprint


@pytest.mark.parametrize(
    "old, new, message",
    [
        (
            "SelfAttention1D",
            "SelfAttention2D",
            r"positions.down.1.0.variants\[1\]: unknown block 'SelfAttention2D'.*Known",
        ),
        (
            "heads=4",
            "heads=5",
            r"variants\[1\]: SelfAttention1D: heads must divide channels, but 24 channels and heads=5",
        ),
        ("heads=4", "head=4", r"variants\[1\]: SelfAttention1D: unknown parameter 'head'. Did you mean 'heads'\?"),
        ("[Conv1D,", "[Conv1D, Conv1D(kernel_size=3),", r"variants\[1\]: Conv1D\(kernel_size=3\) stands there already"),
        ("[Conv1D,", "[3,", r"variants\[0\]: cannot read variant 3"),
        ("max_layers: 1", "max_layer: 1", r"positions.down.1.0.max_layer: unknown key.*Did you mean 'max_layers'"),
        ("max_layers: 1", "max_layers: -1", r"positions.down.1.0.max_layers must be a whole number of at least 0"),
        ("max_layers: 1", "max_layers: 1.5", r"max_layers must be a whole number"),
        ("up.1.1", "up.2.1", r"positions.up.2.1: unknown position 'up.2.1'. Did you mean .*Known positions: down.0.0"),
        ("text: {tokens: 5}", "", r"the file lacks text; add it"),
        ("text:", "txt:", r"txt: unknown key 'txt'. Did you mean 'text'\?"),
        ("name: tiny", "name: tinny", r"backbone.name: unknown backbone 'tinny'. Did you mean 'tiny'\?"),
        (
            "block_out_channels",
            "block_out_chanels",
            r"backbone.config.block_out_chanels: unknown key.*'block_out_channels'",
        ),
        (
            "[8, 24]",
            "[8, 20]",
            r"backbone.config: norm_num_groups must divide .*stage 1 has 20.* is 8; choose a divisor of 4",
        ),
        ("[8, 24]}", "[8, 24], attention_head_dim: 5}", r"attention_head_dim must divide .*stage 1 has 24"),
        ("[8, 24]", "[8, 24, 24]", r"backbone.config: .*must be equally many, but are 3, 2 and 2"),
        ("[8, 24]", "8", r"backbone.config: .*must be lists"),
        ("[8, 24]", "[8, wide]", r"backbone.config: block_out_channels must be whole and above 0, but is 'wide'"),
        ("frames: 4", "frames: four", r"clips.deployment.frames must be a whole number"),
        ("height: 8", "height: 9", r"clips.deployment.height must be a multiple of 2 .*but is 9; choose 8"),
        ("fps: 4", "fps: 0", r"clips.deployment.fps must be above 0"),
        ("fps: 4", "fps: fast", r"clips.deployment.fps must be a number"),
        ("text:", "autoencoder: {time: 3}\ntext:", r"frames must be a multiple of 3 \(autoencoder.time\).*choose 3"),
        ("deployment:", "deploy:", r"clips.deploy: unknown key 'deploy'. Did you mean 'deployment'"),
        ("name: own", "name: own/er", r"name must be letters, digits and _"),
        ("name: own", "name: own\nname: own2", r"key 'name' stands there twice"),
        ("name: own", "name: [", r"is no YAML"),
    ],
)
def test_a_mistake_is_one_line_with_its_path(tmp_path, old, new, message):
    path = write(tmp_path, old=old, new=new)
    with pytest.raises(ValueError, match=message) as error:
        Space.load(path)
    assert type(error.value).__name__ == "SpaceError"
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def test_a_file_of_a_stranger_runs_nothing(tmp_path):
    proof = tmp_path / "ran"
    path = write(tmp_path, old="name: own", new=f'name: !!python/object/apply:os.system ["touch {proof}"]')
    with pytest.raises(ValueError, match="is no YAML .*the tag .*os.system.*; plain values need none"):
        Space.load(path)
    assert not proof.exists()


def test_an_unknown_space_names_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=r"unknown space 'tinny'. Did you mean 'tiny'\? Known spaces: .*tiny"):
        Space.load("tinny")
    with pytest.raises(ValueError, match="none.yaml: cannot be read"):
        Space.load(tmp_path / "none.yaml")


def test_a_config_that_the_backbone_itself_refuses_is_one_line(tmp_path):
    path = write(tmp_path, old="[8, 24]}", new="[8, 24], down_block_types: [Down, Down]}")
    with pytest.raises(ValueError, match="own: backbone.config is refused by tiny: Down does not exist") as error:
        load_plan(path)
    assert "\n" not in str(error.value)


def test_a_position_may_be_closed(tmp_path):
    space = Space.load(
        write(tmp_path, old="{max_layers: 1, variants: [Conv3D(kernel_size=5)]}", new="{max_layers: 0, variants: []}")
    )
    assert space.size() == 3 and space.options("up.1.1") == ((),)
    assert (
        load_plan(space).largest()
        == load_plan(space).largest()
        == space.arrange({"down.1.0": ["SelfAttention1D(heads=4)"]})
    )


def test_a_position_with_too_many_options_is_not_enumerated(tmp_path):
    space = Space.load(write(tmp_path, old="max_layers: 1", new="max_layers: 30"))
    assert space.size() == (2**31 - 1) * 31
    with pytest.raises(ValueError, match="options, over 200,000; lower max_layers"):
        space.options("down.1.0")


def test_a_space_made_in_python_is_checked_too(tiny):
    with pytest.raises(ValueError, match=r"positions.here.variants\[0\]: SelfAttention1D: heads must divide"):
        Position("here", 30, 1, 1, (Variant.of("SelfAttention1D", heads=4),))


# Looking at a space -------------------------------------------------------------------------------------------------


def test_a_summary_says_what_a_space_holds():
    found = summary("snapgen_v")
    assert (found.parameters_backbone, found.parameters_smallest) == (323_384_964, 323_384_964)
    assert found.parameters_smallest < 550e6 and 650e6 < found.parameters_largest, "0.6B must lie inside"
    assert found.size == 400**9 and found.workloads == 22
    text = found.render()
    assert "323,384,964" in text and "2.6e23" in text and max(map(len, text.splitlines())) <= 120
    assert [s.name for s in summaries()] == list_spaces() and all("positions" in s.line() for s in summaries())
    assert found.to_json()["positions"][0]["name"] == "down.0.0"


def test_a_space_is_inspected_without_torch():
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['diffusers'] = None\n"
        "from search_spaces.inspect import summary; summary('snapgen_v').render()\n"
        "from search_spaces.space import Space; s = Space.load('tiny'); s.empty(); s.workloads('fp32')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_check_names_a_block_that_fails_or_is_no_identity(tmp_path, monkeypatch):
    from search_spaces.blocks.convolution import Conv1D, Conv3D

    monkeypatch.setattr(Conv1D, "forward", lambda self, x, num_frames, context=None: x * 2)
    monkeypatch.setattr(Conv3D, "forward", lambda self, x, num_frames, context=None: x[:1])
    problems = check(write(tmp_path))
    assert len(problems) == 2
    assert "down.1.0: Conv1D(kernel_size=3) does not start as the identity" in problems[0]
    assert "up.1.1: Conv3D(kernel_size=5) returns (1, 8, 2, 2)" in problems[1]


def test_check_names_a_plan_that_does_not_fit(tmp_path):
    path = write(tmp_path)
    load_plan(path)
    stored = tmp_path / "own.plan.json"
    stored.write_text(stored.read_text().replace('"parameters": ', '"parameters": 1', 1))
    assert any("own.plan.json: backbone is not what the modules give" in problem for problem in check(path))


def test_every_shipped_yaml_is_plain_data():
    for path in SPACES.glob("*.yaml"):
        assert yaml.safe_load(path.read_text())["name"] == path.stem
