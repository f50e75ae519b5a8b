"""Weights, gradients and optimiser state split over processes (FSDP2), and tensors whole again for checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from nas.training.distributed import World


def shard(network: nn.Module, units: Iterable[nn.Module], world: World, methods: Sequence[str] = ()) -> None:
    """Split every unit of a network, and what is left of it.

    Processes gather a unit's weights when they reach it. They pair up by order alone, so all must walk the same path;
    a stage draws it from seed and step, which all share.

    Args:
        methods: what is called beside ``forward``, and gathers as well.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(world.device.type, (world.size,))
    for unit in units:
        fully_shard(unit, mesh=mesh)
    fully_shard(network, mesh=mesh)
    for method in methods:
        register_fsdp_forward_method(network, method)


def split_again(*modules: nn.Module) -> None:
    """Give up gathered weights: what gets no gradient, such as frozen layers, would keep them after the step."""
    from torch.distributed.fsdp import FSDPModule

    for module in modules:
        for part in module.modules():
            if isinstance(part, FSDPModule):
                part.reshard()


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds a part only."""
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor; of a sharded one, all processes must ask."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor, split and placed as ``other`` is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    moved = tensor.to(other.device)
    if not isinstance(other, DTensor):
        return moved
    return distribute_tensor(moved, other.device_mesh, other.placements, src_data_rank=None)
