"""The six blocks keep the shipped contract, and each mixes along the axes its name says."""

import pytest
import torch

from search_spaces import blocks, registry
from search_spaces.blocks import BLOCKS, BlockSpec, block_spec, build_block, complete
from search_spaces.blocks.tokens import place_positions, time_positions, to_map, to_tokens
from search_spaces.errors import SpaceError
from search_spaces.network import build_module
from search_spaces.testing import BlockContract
from search_spaces.variant import Variant
from search_spaces.workload import Workload


class TestSelfAttention1D(BlockContract):
    variant = Variant.of("SelfAttention1D", heads=2)


class TestSelfAttention3D(BlockContract):
    variant = Variant.of("SelfAttention3D", heads=4)


class TestCrossAttention1D(BlockContract):
    variant = Variant.of("CrossAttention1D", heads=2)


class TestCrossAttention3D(BlockContract):
    variant = Variant.of("CrossAttention3D", heads=4)


class TestConv1D(BlockContract):
    variant = Variant.of("Conv1D", kernel_size=5)


class TestConv3D(BlockContract):
    variant = Variant.of("Conv3D")


def influence(name: str, frames: int = 5, side: int = 5) -> torch.Tensor:
    """How much each input element moves the centre of the output: ``(T, H, W)``, normalisation left out."""
    torch.manual_seed(0)
    block = build_block(Variant.of(name, **({"heads": 2} if "Attention" in name else {})), 8, context_dim=4)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    block.norm = torch.nn.Identity()  # group statistics reach everywhere; the kernel is what is looked at
    x = torch.randn(frames, 8, side, side, requires_grad=True)
    out = block(x, frames, torch.randn(1, 3, 4))
    (gradient,) = torch.autograd.grad(out[frames // 2, :, side // 2, side // 2].square().sum(), x)
    return gradient.abs().sum(1) > 1e-9


@pytest.mark.parametrize(
    "name, reached",
    [
        ("SelfAttention1D", (5, 1)),
        ("SelfAttention3D", (5, 25)),
        ("CrossAttention1D", (1, 1)),
        ("CrossAttention3D", (1, 1)),
        ("Conv1D", (3, 1)),
        ("Conv3D", (3, 9)),
    ],
)
def test_a_block_reaches_the_frames_and_places_its_name_says(name, reached):
    seen = influence(name)
    assert (seen.any((1, 2)).sum().item(), seen.any(0).sum().item()) == reached


@pytest.mark.parametrize("name, knows_place", [("CrossAttention1D", False), ("CrossAttention3D", True)])
def test_cross_attention_encodes_time_and_only_in_3d_the_place(name, knows_place):
    torch.manual_seed(0)
    block = build_block(Variant.of(name, heads=2), 8, context_dim=4)
    torch.nn.init.normal_(block.to_out.weight)
    x = torch.zeros(3, 8, 4, 4)
    added = block(x, 3, torch.randn(1, 3, 4)).detach()
    assert not torch.allclose(added[0], added[1])
    assert torch.allclose(added[:, :, 0, 0], added[:, :, 2, 3], atol=1e-6) != knows_place


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch.export about torch
@pytest.mark.parametrize("name", [name for name in BLOCKS if "Attention" in name])
def test_attention_exports_to_one_fusable_call(name):
    reads_text = "context" in block_spec(name).reads
    workload = Workload(name, (("heads", 2),), 8, 4, 4, 4, context_tokens=3 * reads_text, context_dim=4 * reads_text)
    module, examples, _ = build_module(workload)
    exported = torch.export.export(module, examples).run_decompositions({})
    calls = [node for node in exported.graph.nodes if "scaled_dot_product_attention" in str(node.target)]
    assert len(calls) == 1
    masked = name == "CausalAttention3D"
    assert calls[0].kwargs.get("scale") is None and len(calls[0].args) == 3 + masked


def test_positions_are_distinct_bounded_and_of_the_type_asked_for():
    like = torch.zeros(1, 10, dtype=torch.float16)
    time, place = time_positions(40, like), place_positions(5, 7, like)
    assert time.shape == (40, 10) and place.shape == (35, 10) and time.dtype == place.dtype == torch.float16
    assert time.abs().max() <= 1 and len(torch.unique(time, dim=0)) == 40 and len(torch.unique(place, dim=0)) == 35


def test_tokens_and_maps_are_inverse():
    x = torch.randn(6, 5, 2, 3)
    assert torch.equal(to_map(to_tokens(x, 3), 2, 3), x)
    assert torch.equal(to_tokens(x, 3)[1, 2, 4], x[5, :, 1, 1])


@pytest.mark.parametrize(
    "label, message",
    [
        ("SelfAttention2D", r"unknown block 'SelfAttention2D'.*Known blocks: .*Conv1D, Conv3D, CrossAttention1D"),
        ("Conv3D(kernelsize=3)", r"Conv3D: unknown parameter 'kernelsize'. Did you mean 'kernel_size'\?"),
        ("Conv1D(kernel_size=4)", r"Conv1D: kernel_size must be odd.* is 4; choose 5"),
        ("SelfAttention1D(heads=5)", r"heads must divide channels, but 32 channels and heads=5; choose 1, 2, 4, 8"),
        ("SelfAttention1D(heads=0)", r"heads must divide channels"),
    ],
)
def test_a_wrong_variant_says_the_rule_the_values_and_the_remedy(label, message):
    with pytest.raises(SpaceError, match=message) as error:
        complete(Variant.parse(label), 32)
    assert "\n" not in str(error.value)


def test_a_block_that_reads_text_needs_its_width():
    with pytest.raises(SpaceError, match="give context_dim"):
        build_block(Variant.of("CrossAttention1D"), 16)


class Brightness(torch.nn.Module):
    """Somebody else's block: adds a learned multiple of the clip's mean."""

    def __init__(self, channels: int, *, power: int) -> None:
        super().__init__()
        self.gain, self.power = torch.nn.Parameter(torch.zeros(channels, 1, 1)), power

    def forward(self, x, num_frames, context=None):
        if num_frames == 1:
            return x
        clip = x.reshape(-1, num_frames, *x.shape[1:])
        return (clip + self.gain * clip.mean(1, keepdim=True) ** self.power).reshape(x.shape)


class FakeEntryPoint:
    name, value = "Brightness", "theirs:SPEC"
    spec: object = BlockSpec(f"{__name__}:Brightness", {"power": 1}, frozenset(), "the clip's mean")

    def load(self):
        return self.spec


@pytest.fixture
def their_package(monkeypatch):
    monkeypatch.setattr(registry, "entry_points", lambda group: [FakeEntryPoint()] if group == blocks.GROUP else [])


@pytest.mark.usefixtures("their_package")
class TestBlockOfAnotherPackage(BlockContract):
    variant = Variant.of("Brightness")


def test_an_entry_point_that_is_no_spec_is_named(their_package, monkeypatch):
    monkeypatch.setattr(FakeEntryPoint, "spec", "not a spec")
    with pytest.raises(SpaceError, match="theirs:SPEC must name a BlockSpec"):
        block_spec("Brightness")


class Broken(Brightness):
    """A block that is not the identity at first, mixes up images and ignores its parameter."""

    def forward(self, x, num_frames, context=None):
        return x + 1


def test_the_contract_catches_a_broken_block(their_package, monkeypatch):
    monkeypatch.setattr(FakeEntryPoint, "spec", BlockSpec(f"{__name__}:Broken", {"power": 1}, frozenset(), ""))

    class Contract(BlockContract):
        variant = Variant.of("Brightness")

    for test in ("test_starts_as_the_identity", "test_leaves_an_image_alone", "test_every_parameter_learns"):
        with pytest.raises((AssertionError, RuntimeError)):
            getattr(Contract(), test)()
