"""What a computation takes, counted with shapes alone: bytes alive at the peak, and operations. Nothing is computed."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
ATTENTION_BACK = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Counting(TorchDispatchMode):
    """Counts while it is entered; the tensors may be torch's fake ones.

    Attention counts as a fused kernel, as CPU and CUDA run it: no matrix of scores is held. A multiply and an add are
    two operations; what is computed again on the way back counts again.

    Attributes:
        now, peak: bytes of all tensors made inside that are alive, and the most of them at once since ``mark``.
        operations: of matrix products, convolutions and attention.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.operations = 0.0
        self._alive: dict[int, int] = {}

    def mark(self) -> None:
        """Count the peak and the operations from here on."""
        self.peak, self.operations = self.now, 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        out = func(*args, **named)
        self._count(func._overloadpacket, args, named, out)
        for item in tree_leaves(out):
            if isinstance(item, Tensor):
                self._hold(item.untyped_storage())
        return out

    def _count(self, packet: Any, args: Any, named: Any, out: Any) -> None:
        if packet in flop_registry:
            self.operations += flop_registry[packet](*args, **named, out_val=out)
        elif packet == ATTENTION:
            self.operations += sdpa_flop_count(*(x.shape for x in args[:3]))
        elif packet == ATTENTION_BACK:
            self.operations += sdpa_backward_flop_count(*(x.shape for x in args[:4]))

    def _hold(self, storage: torch.UntypedStorage) -> None:
        which = storage._cdata
        if which in self._alive:
            return
        self._alive[which] = storage.nbytes()
        self.now += self._alive[which]
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, which)

    def _free(self, which: int) -> None:
        self.now -= self._alive.pop(which, 0)


@contextmanager
def shapes_alone() -> Iterator[Counting]:
    """Tensors made inside have shapes and no numbers; what they would take is counted. torch's generator stays put."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with torch.random.fork_rng(devices=[]), FakeTensorMode(), Counting() as counting:
        yield counting
