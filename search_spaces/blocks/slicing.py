"""A narrow block as a part of a wider one: which part, and the part itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from search_spaces.blocks import Index, block_class, block_spec
from search_spaces.errors import SpaceError
from search_spaces.families.contract import Layer
from search_spaces.variant import Variant


def fixed(variant: Variant) -> Variant:
    """The variant without its widths: variants that agree in this are parts of one."""
    widths = block_spec(variant.block).widths
    return Variant(variant.block, tuple((name, value) for name, value in variant.params if name not in widths))


def largest(variants: Sequence[Variant]) -> Variant:
    """The variant that is as large as every one of them, parameter by parameter; it need not be among them."""
    params = {name: max(dict(variant.params)[name] for variant in variants) for name, _ in variants[0].params}
    return Variant(variants[0].block, tuple(params.items()))


def indices(variant: Variant, whole: Variant, channels: int) -> Mapping[str, Index]:
    """Parameter -> which part of the whole's a variant has, axis by axis; what is not named is whole.

    Raises:
        SpaceError: if the variant is no part of the whole.
    """
    if variant == whole:
        return {}
    if fixed(variant) != fixed(whole) or largest([variant, whole]) != whole:
        raise SpaceError(f"{variant.label} is no part of {whole.label}; give weights that are as wide")
    found: Mapping[str, Index] = block_class(variant.block).slices(channels, dict(variant.params), dict(whole.params))
    return found


def sliced(tensors: Mapping[str, Tensor], parts: Mapping[str, Index]) -> dict[str, Tensor]:
    """The parts, each in memory of its own order, so that arithmetic is that of a tensor which was never larger."""
    return {name: _part(tensor, parts[name]) if name in parts else tensor for name, tensor in tensors.items()}


def _part(tensor: Tensor, index: Index) -> Tensor:
    for axis, kept in enumerate(index):
        if isinstance(kept, slice):
            tensor = tensor[(slice(None),) * axis + (kept,)]
        else:
            tensor = tensor.index_select(axis, torch.tensor(kept, device=tensor.device))
    return tensor.contiguous()


def fill(block: nn.Module, variant: Variant, channels: int, given: Layer) -> int:
    """Give a block the weights of a given one that is as wide or wider, in place; the block's parameters.

    Raises:
        SpaceError: if the given one is narrower, or of another kind.
    """
    block.load_state_dict(sliced(given.weights, indices(variant, given.variant, channels)))
    return sum(parameter.numel() for parameter in block.parameters())
