"""How a training computes: precision, several processes, sharding, compilation, recomputation, clipped gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from nas.training.config import AnyConfig
from nas.training.distributed import World
from nas.training.precision import autocast, resolve_precision, sentence, set_tf32
from nas.training.sharding import is_sharded, shard, split_again, whole
from search_spaces.network import recompute


class Engine:
    """What stands between a stage's loss and its optimiser's step, the same for every stage.

    Args:
        config: precision, gradient_clip, accumulate, and how the networks are held and run. world: who trains together.

    Attributes:
        precision: what it computes in. scaler: of the losses, for fp16; it leaves all others as they are.
    """

    def __init__(self, config: AnyConfig, world: World) -> None:
        self.config, self.world = config, world
        self.sharded: list[nn.Module] = []
        set_tf32(world.device, config.tf32)
        self.begun_in(None)

    def begun_in(self, precision: str | None) -> None:
        """Take up the precision of a training that has begun, where ``auto`` leaves it open; None if it has not."""
        self.precision = resolve_precision(self.config.precision, self.device, precision)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    @property
    def sentence(self) -> str:
        """In what it computes, and where."""
        return sentence(self.device, self.precision, self.config.tf32)

    @property
    def device(self) -> torch.device:
        return self.world.device

    def prepare(self, network: nn.Module, units: Iterable[nn.Module] = (), methods: Sequence[str] = ()) -> None:
        """Hold and run a network as configured, before its optimiser is built.

        Args:
            units: parts that are recomputed, sharded and compiled one by one. methods: called beside ``forward``.
        """
        parts, config = list(units), self.config
        if config.activation_checkpoints:
            for part in parts:
                recompute(part)
        if getattr(config, "shard", False) and self.world.size > 1 and any(True for _ in network.parameters()):
            shard(network, parts, self.world, methods)
            self.sharded.append(network)
        if config.compile:
            compile_parts(parts)

    def autocast(self) -> AbstractContextManager[None]:
        """The forward pass in this precision."""
        return autocast(self.device, self.precision)

    def back(self, loss: Tensor) -> None:
        """Add the gradients of a micro-batch's loss, if anything learns from it."""
        if loss.requires_grad:
            self.scaler.scale(loss / self.config.accumulate).backward()

    def norm(self, optimizer: torch.optim.Optimizer) -> float:
        """Average an optimiser's gradients over the processes and clip them; their norm before that."""
        split_again(*self.sharded)
        active = with_gradient(optimizer)
        if not active:
            return 0.0
        self.world.average_gradients(p for p in active if not is_sharded(p))
        self.scaler.unscale_(optimizer)
        return float(whole(nn.utils.clip_grad_norm_(active, self.config.gradient_clip)))

    def sound(self, norm: float) -> bool:
        """Whether a step may be taken: an overflow of fp16 may, as it changes no weight and lowers the scale."""
        return math.isfinite(norm) or self.scaler.is_enabled()

    def usable(self, loss: float, norm: float, sane: Callable[[float], bool]) -> bool:
        """Whether loss and gradients are those of a step, or of an overflow, and not of one that went wrong."""
        judged = sane(loss)
        if self.scaler.is_enabled() and math.isfinite(loss) and not math.isfinite(norm):
            return True
        return judged and math.isfinite(norm)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """One step, if there is a gradient: along an empty path of a frozen backbone a scaler refuses to take one."""
        if with_gradient(optimizer):
            self.scaler.step(optimizer)  # which leaves the weights alone on an overflow
            self.scaler.update()  # and scales less after it


def with_gradient(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """The parameters of an optimiser that have a gradient."""
    return [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def compile_parts(parts: Iterable[nn.Module], backend: str = "inductor") -> None:
    """Compile every part by itself, for the shapes it meets: any path is then made of compiled parts.

    Parts of one class share a compiled function per shape, so there may be as many as there are parts.
    """
    import torch._dynamo

    several = list(parts)
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 4 * len(several))
    for part in several:
        part.compile(dynamic=False, backend=backend)
