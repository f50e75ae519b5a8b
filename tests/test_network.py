"""The backbone walked from outside is the backbone, and layers in it start as nothing."""

import dataclasses
import weakref

import numpy as np
import pytest
import torch

from search_spaces.families import Backbone, build_backbone
from search_spaces.families.unet.run import run_unet, units
from search_spaces.network import VideoNetwork, build_module
from search_spaces.planning import load_plan
from search_spaces.space import Space
from search_spaces.workload import Workload

FRAMES, CLIPS = 3, 2


@pytest.fixture(scope="module")
def tiny():
    return Space.load("tiny")


def changed(space: Space, **config) -> Space:
    return dataclasses.replace(space, backbone=Backbone("tiny", {**space.backbone.config, **config}))


def inputs(side: int = 8):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(CLIPS * FRAMES, 3, side, side, generator=generator)
    return x, torch.tensor([10.0, 750.5]), torch.randn(CLIPS, 12, 32, generator=generator)


def of_diffusers(unet, x, timestep, context):
    return unet(x, timestep.repeat_interleave(FRAMES), context.repeat_interleave(FRAMES, 0), return_dict=False)[0]


@pytest.mark.parametrize(
    "config, side",
    [
        ({}, 8),
        ({}, 7),
        ({"layers_per_block": 2}, 8),
        ({"mid_block_type": "UNetMidBlock2DCrossAttn"}, 8),
        ({"down_block_types": ["CrossAttnDownBlock2D"] * 2, "up_block_types": ["CrossAttnUpBlock2D"] * 2}, 8),
    ],
)
def test_the_walk_is_the_forward_of_diffusers_bit_for_bit(tiny, config, side):
    torch.manual_seed(0)
    unet = build_backbone(changed(tiny, **config).backbone).eval()
    x, timestep, context = inputs(side)
    visited = []

    def temporal(name, x, beside):
        visited.append((name, x.shape[1], x.shape[-1]))
        return x

    with torch.no_grad():
        out = run_unet(unet, x, timestep, context, FRAMES, temporal)
        assert torch.equal(out, of_diffusers(unet, x, timestep, context))
    places = changed(tiny, **config).backbone.layout.places
    assert [name for name, *_ in visited] == [place.name for place in places]
    assert [channels for _, channels, _ in visited] == [place.channels for place in places]
    assert [width for *_, width in visited] == [-(-side // place.space_scale) for place in places]


def test_the_pruned_stable_diffusion_unet_walks_like_diffusers():
    space = Space.load("snapgen_v")
    config = {**space.backbone.config, "block_out_channels": [32, 64, 96], "cross_attention_dim": 16}
    torch.manual_seed(0)
    unet = build_backbone(
        dataclasses.replace(space, backbone=Backbone("sd15_pruned", config), text=_text(16)).backbone
    ).eval()
    x, timestep, context = torch.randn(6, 4, 8, 8), torch.tensor([1.0, 500.0]), torch.randn(2, 7, 16)
    with torch.no_grad():
        out = run_unet(unet, x, timestep, context, FRAMES, lambda name, x, beside: x)
        assert torch.equal(out, of_diffusers(unet, x, timestep, context))


def _text(dim):
    from search_spaces.space import Text

    return Text(7, dim)


def test_units_are_all_that_computes_between_the_samplers(tiny):
    unet = build_backbone(tiny.backbone)
    found = list(units(unet))
    assert len(found) == 6 + 3 and len({id(unit) for unit in found}) == len(found)


def test_the_way_up_holds_nothing_that_is_done_with(tiny):
    """While a temporal layer runs, what the resnet before it has read is gone: else a network peaks higher than its
    parts."""
    unet = build_backbone(tiny.backbone).eval()
    read, held = [], []
    for block in unet.up_blocks:
        for resnet in block.resnets:
            resnet.register_forward_pre_hook(lambda module, given: read.append(weakref.ref(given[0])))

    def temporal(name, x, beside):
        if name.startswith("up."):
            held.append(read[-1]() is not None)
        return x

    with torch.no_grad():
        run_unet(unet, *inputs(), FRAMES, temporal)
    assert len(held) == sum(len(block.resnets) for block in unet.up_blocks) and not any(held)


def test_a_fresh_network_is_its_image_backbone(tiny):
    torch.manual_seed(0)
    network = VideoNetwork(tiny, load_plan(tiny).largest()).eval()
    x, timestep, context = inputs()
    with torch.no_grad():
        assert torch.equal(network(x, timestep, context, FRAMES), of_diffusers(network.unet, x, timestep, context))


def test_a_network_of_images_never_runs_its_temporal_layers(tiny):
    torch.manual_seed(0)
    network = VideoNetwork(tiny, tiny.sample(np.random.default_rng(1))).eval()
    for parameter in network.temporal.parameters():
        torch.nn.init.normal_(parameter)
    x, timestep, context = torch.randn(2, 3, 8, 8), torch.tensor([1.0, 2.0]), torch.randn(2, 12, 32)
    with torch.no_grad():
        assert torch.equal(network(x, timestep, context, 1), network.unet(x, timestep, context, return_dict=False)[0])


def test_layers_run_at_their_position_in_their_order(tiny):
    arrangement = tiny.arrange(
        {"up.0.1": ["Conv1D", "SelfAttention1D(heads=4)"], "down.0.0": ["CrossAttention1D(heads=2)"]}
    )
    network = VideoNetwork(tiny, arrangement)
    assert [type(layer).__name__ for layer in network.temporal["up_0_1"]] == ["Conv1D", "SelfAttention1D"]
    assert len(network.temporal["up_0_0"]) == 0 and len(network.temporal["down_0_0"]) == 1
    order = []
    for name in ("up_0_1", "down_0_0"):
        for layer in network.temporal[name]:
            layer.register_forward_hook(lambda module, *_: order.append(type(module).__name__))
    network(*inputs(), FRAMES)
    assert order == ["CrossAttention1D", "Conv1D", "SelfAttention1D"]


def test_every_workload_becomes_a_module_of_tensors(tiny):
    arrangement = tiny.sample(np.random.default_rng(0))
    workloads = [*tiny.workloads("fp32", "training"), tiny.network_workload(arrangement, "fp32", "training")]
    for workload in workloads:
        module, examples, names = build_module(workload, tiny, arrangement)
        assert len(examples) == len(names) and names[0] == "x"
        assert all(parameter.any() for parameter in module.parameters()), "zeros could be folded away"
        with torch.inference_mode():
            out = module(*examples)
        assert out.shape == examples[0].shape and not torch.equal(out, examples[0])
        again, repeated, _ = build_module(workload, tiny, arrangement)
        assert torch.equal(repeated[0], examples[0])
        assert all(torch.equal(a, b) for a, b in zip(module.parameters(), again.parameters(), strict=True))


def test_building_leaves_the_callers_random_numbers_alone(tiny):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build_module(Workload.parse("Conv1D(kernel_size=3)/c8/t4/4x4/b1@fp32"))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch.export about torch
def test_a_network_exports_with_static_shapes(tiny):
    arrangement = tiny.arrange(
        {"down.1.0": ["SelfAttention3D(heads=4)"], "up.1.0": ["Conv3D", "CrossAttention1D(heads=2)"]}
    )
    workload = dataclasses.replace(tiny.network_workload(arrangement, "fp32", "training"), frames=4, height=8, width=8)
    module, examples, _ = build_module(workload, tiny, arrangement)
    with torch.no_grad():
        exported = torch.export.export(module, examples).run_decompositions({})
        assert torch.allclose(exported.module()(*examples), module(*examples), atol=1e-5)


@pytest.mark.parametrize("missing", ["space", "arrangement", "other"])
def test_a_network_of_another_arrangement_is_refused(tiny, missing):
    arrangement = tiny.sample(np.random.default_rng(0))
    workload = tiny.network_workload(arrangement, "fp32")
    given = {"space": (None, arrangement), "arrangement": (tiny, None), "other": (tiny, tiny.empty())}[missing]
    with pytest.raises(ValueError, match="belongs to a space|needs its arrangement|but the network passed is"):
        build_module(workload, *given)
