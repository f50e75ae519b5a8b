"""A UNet with fewer attention heads and feed-forward channels than diffusers gives it, module by module."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

Widths = Mapping[str, int]


class NarrowUNet(UNet2DConditionModel):
    """``UNet2DConditionModel`` whose attentions and feed-forward layers are cut to stated widths.

    Args:
        widths: module name -> heads of an attention, or inner channels of a feed-forward layer. What is not named is
            as wide as the configuration makes it.
        arguments: those of ``UNet2DConditionModel``.

    Raises:
        ValueError: if a name is no such module, or it is no wider than asked for.
    """

    def __init__(self, widths: Widths | None = None, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.register_to_config(widths=dict(widths or {}))
        for name, width in (widths or {}).items():
            try:
                module = self.get_submodule(name)
            except AttributeError:
                raise ValueError(f"widths: there is no module {name}") from None
            keep(module, torch.arange(width, device="cpu"), name)

    @staticmethod
    def _get_init_keys(input_class: Any) -> set[str]:
        """What a stored configuration may hold; diffusers would read this class's own signature alone."""
        return {*inspect.signature(UNet2DConditionModel.__init__).parameters, "widths"}


def prunable(unet: nn.Module) -> Iterator[tuple[str, Attention | FeedForward]]:
    """Attentions and feed-forward layers by name: what can be made narrower."""
    for name, module in unet.named_modules():
        if isinstance(module, Attention | FeedForward):
            yield name, module


def width(module: Attention | FeedForward) -> int:
    """Heads of an attention, inner channels of a feed-forward layer."""
    return int(module.heads if isinstance(module, Attention) else module.net[2].in_features)


def keep(module: nn.Module, kept: Tensor, name: str = "") -> None:
    """Keep these heads, or inner channels, of a module, in place; their order stays.

    Raises:
        ValueError: if the module is neither an attention nor a gated feed-forward layer, or has not as many.
    """
    if not isinstance(module, Attention | FeedForward):
        raise ValueError(f"widths: {name} is neither an attention nor a feed-forward layer")
    have = width(module)
    if not len(kept) or int(kept.max()) >= have:
        raise ValueError(f"widths: {name} has {have}, so it cannot keep {len(kept)}")
    if isinstance(module, Attention):
        size = module.inner_dim // module.heads
        rows = (kept[:, None] * size + torch.arange(size, device="cpu")).flatten()
        for projection in (module.to_q, module.to_k, module.to_v):
            _take(projection, 0, rows)
        _take(module.to_out[0], 1, rows)
        module.heads, module.inner_dim, module.inner_kv_dim = len(kept), len(rows), len(rows)
    else:
        gate: Any = module.net[0]
        halves = 2 if gate.proj.out_features == 2 * have else 1  # a gated one computes values and gates at once
        _take(gate.proj, 0, torch.cat([kept + have * half for half in range(halves)]))
        _take(module.net[2], 1, kept)


def _take(linear: Any, axis: int, index: Tensor) -> None:
    index = index.to(linear.weight.device)
    linear.weight = nn.Parameter(linear.weight.detach().index_select(axis, index), linear.weight.requires_grad)
    if axis == 0:
        linear.out_features = len(index)
        if linear.bias is not None:
            linear.bias = nn.Parameter(linear.bias.detach().index_select(0, index), linear.bias.requires_grad)
    else:
        linear.in_features = len(index)
