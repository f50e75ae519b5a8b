"""Weights, gradients and optimiser state split over processes (FSDP2), and tensors whole again for checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from nas.training.distributed import World


def shard(supernet: Any, text: nn.Module, world: World) -> None:
    """Split every block of the supernet, what is left of it, and the text encoder.

    Processes gather a block's weights when they reach it. They pair up by order alone, so all must walk the same
    path; the trainer draws it from seed and step, which all share.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(world.device.type, (world.size,))
    for block in supernet.blocks():
        fully_shard(block, mesh=mesh)
    fully_shard(supernet, mesh=mesh)
    register_fsdp_forward_method(supernet, "predict")
    if any(True for _ in text.parameters()):
        fully_shard(text, mesh=mesh)


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
