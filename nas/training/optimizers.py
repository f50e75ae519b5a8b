"""The optimiser of a training, and its state as plain named tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nas.errors import NasError
from nas.training.sharding import like, whole

if TYPE_CHECKING:
    from nas.config import TrainConfig


def build_optimizer(config: TrainConfig, groups: list[dict[str, Any]], device: torch.device) -> torch.optim.Optimizer:
    """AdamW as configured, one fused kernel where the device has it.

    Raises:
        NasError: if the 8-bit one is asked for and torchao is not installed.
    """
    rates: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, **rates, fused=device.type in ("cpu", "cuda"))
    try:
        from torchao.optim import AdamW8bit
    except ImportError:
        raise NasError(
            "train.optimizer is adamw8bit, but torchao is not installed; pip install torchao, or take adamw"
        ) from None
    return AdamW8bit(groups, **rates)


def set_rates(optimizer: torch.optim.Optimizer, rates: Sequence[float]) -> None:
    """The learning rate of each group."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if isinstance(group["lr"], Tensor):  # torchao's are compiled against it
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def pack_state(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> dict[str, Tensor]:
    """``parameter/entry`` -> tensor; an 8-bit entry as its parts, ``parameter/entry/part``."""
    packed = {}
    for parameter, entries in optimizer.state.items():
        for entry, value in entries.items():
            for part, tensor in _parts(value).items():
                packed["/".join(filter(None, (names[parameter], entry, part)))] = whole(tensor)
    return packed


def unpack_state(
    optimizer: torch.optim.Optimizer, packed: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]
) -> None:
    """The inverse: what was packed, and nothing else, is the optimiser's state."""
    optimizer.state.clear()
    fused = {p for group in optimizer.param_groups if group.get("fused") for p in group["params"]}
    for name, tensor in packed.items():
        known = next(
            n for n in (name.rpartition("/")[0], name.rpartition("/")[0].rpartition("/")[0]) if n in parameters
        )
        parameter = parameters[known]
        entry, _, part = name[len(known) + 1 :].partition("/")
        state = optimizer.state[parameter]
        if part:
            if entry not in state:
                state[entry] = optimizer._new_buffer(parameter, entry == "exp_avg")  # type: ignore[attr-defined]
            _parts(state[entry])[part].copy_(tensor)
        elif entry == "step":  # a fused kernel wants it beside the parameter, the others on the CPU
            state[entry] = tensor.to(parameter.device) if parameter in fused else tensor
        else:
            state[entry] = like(tensor, parameter)


def _parts(value: Tensor) -> dict[str, Tensor]:
    """The plain tensors that a packed one is made of; of a plain one, itself."""
    if type(value) is Tensor or not hasattr(value, "tensor_attrs"):
        return {"": value}
    return {name: getattr(value, name) for name in value.tensor_attrs}
