"""Who holds a slot's weights: a slice taken out alone computes what the supernet computes, and learns the same."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from test_dit import small_space
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from training_fixtures import losses, run, short

from nas.supernet.shelf import Apart, Sliced, largest
from nas.supernet.supernet import Supernet
from nas.supernet.trained import load_supernet
from nas.training.checkpoint import list_checkpoints
from nas.training.engine import compile_parts
from nas.training.sharding import whole
from search_spaces.arrangement import Arrangement
from search_spaces.errors import SpaceError
from search_spaces.family_testing import one_process
from search_spaces.network import recompute
from search_spaces.space import Position, Space
from search_spaces.variant import Variant


@pytest.fixture(params=["ltx", "wan"])
def space(request: pytest.FixtureRequest, tmp_path: Path) -> Space:
    return small_space(tmp_path, request.param)


def inputs(space: Space) -> tuple[Tensor, Tensor, Tensor, int]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(8, space.latent_channels, 6, 4, generator=generator)
    return x, torch.tensor([200.0, 700.0]), torch.randn(2, 5, 10, generator=generator), 4


def path(space: Space) -> Arrangement:
    """A narrow block, a whole one, none."""
    return space.baseline().replace("block.0", space.positions[0].variants[1:]).replace("block.2", ())


def test_a_slice_alone_computes_what_the_supernet_computes_to_the_last_bit(space: Space) -> None:
    supernet = Supernet(space).eval()
    network = supernet.extract(path(space))
    x, *rest = inputs(space)
    answers, slopes = [], []
    for one in (lambda x: supernet(x, *rest, path(space)), lambda x: network(x, *rest)):
        given = x.clone().requires_grad_()
        out = one(given)
        out.square().mean().backward()
        answers.append(out.detach())
        slopes.append(given.grad)
    assert torch.equal(*answers) and torch.equal(*slopes)  # type: ignore[arg-type]
    assert sum(p.numel() for p in network.parameters()) < sum(p.numel() for p in supernet.parameters())


def test_its_weights_get_the_gradients_that_it_would_get_alone(space: Space) -> None:
    supernet = Supernet(space)
    network = supernet.extract(path(space))
    supernet(*inputs(space), path(space)).square().mean().backward()
    network(*inputs(space)).square().mean().backward()
    slopes = copy.deepcopy(supernet)
    for parameter, given in zip(slopes.parameters(), supernet.parameters(), strict=True):
        parameter.data = given.grad if given.grad is not None else torch.zeros_like(given)
    gradients = slopes.extract(path(space)).state_dict()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and torch.allclose(gradients[name], parameter.grad, atol=1e-7), name
        if name.startswith("temporal"):  # the frame's text is read by several blocks, whose slopes add up in any order
            assert torch.equal(gradients[name], parameter.grad), name
    shelf = supernet.shelf("block.0")
    assert all(p.grad is not None for p in shelf.parameters())
    assert all(p.grad is None for p in supernet.shelf("block.2").parameters())


def test_one_module_holds_all_variants_of_a_block(space: Space) -> None:
    sliced = Supernet(space)
    apart = Supernet(Space.from_json({**space.to_json(), "positions": [_apart(p) for p in space.positions]}))
    assert isinstance(sliced.shelf("block.0"), Sliced) and isinstance(apart.shelf("block.0"), Apart)
    count = sum(p.numel() for p in sliced.shelf("block.0").parameters())
    alone = Supernet(space).extract(space.baseline()).temporal["block_0"]
    assert count == sum(p.numel() for p in alone.parameters())
    assert sum(p.numel() for p in apart.shelf("block.0").parameters()) > count
    assert [name.split(".")[0] for name in apart.shelf("block.0").state_dict()][0] == (
        f"0:{space.positions[0].variants[0].label}"  # as it was before there were shelves
    )


def _apart(position: Position) -> dict[str, object]:
    return {name: value for name, value in position.to_json().items() if name != "shelf"}


def test_the_largest_need_not_be_a_variant() -> None:
    a, b = Variant.of("LTXBlock", heads=4, ffn=8, size=4), Variant.of("LTXBlock", heads=2, ffn=16, size=4)
    assert largest([a, b]) == Variant.of("LTXBlock", heads=4, ffn=16, size=4)


@pytest.mark.filterwarnings("ignore")  # torch about its own internals while it compiles
def test_slices_are_computed_again_and_compiled_to_the_same(tmp_path: Path) -> None:
    space = small_space(tmp_path, "ltx")
    plain = Supernet(space).train()
    again, compiled = copy.deepcopy(plain), copy.deepcopy(plain)
    for block in again.blocks():
        recompute(block)
    compile_parts(compiled.blocks(), "eager")
    rng = np.random.default_rng(0)
    paths = [space.sample(rng) for _ in range(2)]
    plain(*inputs(space), paths).square().mean().backward()
    for one in (again, compiled):
        one(*inputs(space), paths).square().mean().backward()
        for (name, mine), (_, theirs) in zip(plain.named_parameters(), one.named_parameters(), strict=True):
            assert (mine.grad is None) == (theirs.grad is None), name
            assert mine.grad is None or torch.allclose(mine.grad, theirs.grad, atol=1e-6), name  # type: ignore[arg-type]


def test_a_training_of_slices_goes_on_where_it_stopped(tmp_path: Path) -> None:
    space = Space.load("tiny_dit")
    steps = {"warmup_steps": 1, "checkpoint_every": 2, "images": 0, "paths": "sandwich"}
    run(tmp_path / "whole", short(steps=4, **steps), space)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(list_checkpoints(tmp_path / "cut")[-1])
    run(tmp_path / "cut", short(steps=4, **steps), space)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    supernet = load_supernet(space, tmp_path / "cut")[0]
    assert len({name for name, _ in supernet.shelf("block.0").named_parameters()}) == len(
        dict(supernet.extract(space.baseline()).temporal["block_0"].named_parameters())
    )


def test_slices_are_sharded_to_the_same(tmp_path: Path) -> None:
    space = small_space(tmp_path, "ltx")
    plain = Supernet(space).train()
    sharded = copy.deepcopy(plain)
    chosen = path(space)
    with one_process(tmp_path):
        mesh = init_device_mesh("cpu", (1,))
        for part in (*sharded.blocks(), sharded):
            fully_shard(part, mesh=mesh)
        for one in (plain, sharded):
            one(*inputs(space), chosen).square().mean().backward()
        for (name, mine), (_, theirs) in zip(plain.named_parameters(), sharded.named_parameters(), strict=True):
            if mine.grad is not None:
                assert torch.allclose(mine.grad, whole(theirs.grad), atol=1e-6), name


def test_the_yaml_says_which_and_the_fingerprint_with_it(tmp_path: Path) -> None:
    sliced, apart = small_space(tmp_path, "ltx"), small_space(tmp_path, "ltx", shelf="apart")
    assert sliced.fingerprint != apart.fingerprint
    assert Space.from_json(sliced.to_json()).positions[0].shelf == "sliced"
    assert "shelf" not in apart.positions[0].to_json()


@pytest.mark.parametrize(
    "shelf, variants, message",
    [
        ("slice", ["Conv1D"], "positions.down.0.0.shelf must be apart or sliced, but is 'slice'"),
        ("sliced", ["Conv1D"], r"positions.down.0.0.shelf is sliced, but Conv1D\(kernel_size=3\) is no slice"),
    ],
)
def test_a_wrong_shelf_is_one_line(tmp_path: Path, shelf: str, variants: list[str], message: str) -> None:
    definition = {
        "name": "x",
        "backbone": "tiny",
        "text": {"tokens": 16},
        "clips": {"deployment": {"frames": 8, "height": 16, "width": 16, "fps": 8}},
        "positions": {"down.0.0": {"max_layers": 1, "variants": variants, "shelf": shelf}},
    }
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(definition))
    with pytest.raises(SpaceError, match=message) as caught:
        Space.load(tmp_path / "x.yaml")
    assert "\n" not in str(caught.value)
