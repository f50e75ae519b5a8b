"""Who holds the weights of a position's layers: one module a variant, or slices of one that is as large as any."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from search_spaces.blocks import Index
from search_spaces.blocks.slicing import fill, fixed, indices, largest, sliced
from search_spaces.families.contract import Layer
from search_spaces.parts import APART, SLICED, Position
from search_spaces.variant import Variant

#: Of each slot of a position, the variants that are held there.
Slots = Sequence[Collection[Variant]]

#: Builds a variant's block for a position, freshly initialised.
Build = Callable[[Variant], nn.Module]


def slot_name(slot: int, variant: Variant) -> str:
    """A layer's name inside its position: torch allows no dots, and a state dict should read well."""
    return f"{slot}:{variant.label}"


class Shelf(nn.ModuleDict, ABC):
    """Holds the weights of all layers that one position may have; its children are what is sharded one by one.

    Supernet, checkpoints, optimisers and ranking ask it for layers and do not know how it holds them.
    """

    @abstractmethod
    def of(self, slot: int, variant: Variant) -> nn.Module:
        """The layer of a variant in a slot (first, second, ... of the position), called as its block is."""

    @abstractmethod
    def extract(self, slot: int, variant: Variant) -> dict[str, Tensor]:
        """The state dict that the variant's block has alone: tensors of its own size."""

    @abstractmethod
    def take(self, slot: int, given: Layer) -> int:
        """Fill what is held of a given block's kind, all but its widths being the same, with its weights, in place; the
        parameters that were filled.

        Raises:
            SpaceError: if something of its kind is wider than the given block.
        """


class Apart(Shelf):
    """Every variant has a module of its own: no weight is shared between two variants.

    Args:
        position: what may stand there. build: makes a variant's block. held: of it, what is held.
    """

    def __init__(self, position: Position, build: Build, held: Slots | None = None) -> None:
        slots = enumerate(held if held is not None else [position.variants] * position.most)
        super().__init__({slot_name(slot, v): build(v) for slot, some in slots for v in position.variants if v in some})
        self.channels, self.variants = position.channels, position.variants

    def of(self, slot: int, variant: Variant) -> nn.Module:
        return self[slot_name(slot, variant)]

    def extract(self, slot: int, variant: Variant) -> dict[str, Tensor]:
        return self.of(slot, variant).state_dict()

    def take(self, slot: int, given: Layer) -> int:
        alike = [variant for variant in self.variants if fixed(variant) == fixed(given.variant)]
        held = [variant for variant in alike if slot_name(slot, variant) in self]
        return sum(fill(self.of(slot, variant), variant, self.channels, given) for variant in held)


class Sliced(Shelf):
    """Variants of one block are slices of the largest: fewer heads are some of its heads, fewer channels some of those.

    A step along a small variant moves the weights that all larger ones share with it; what lies outside of the slice
    gets a gradient of zero. A slice that is taken out alone computes what it computes here, bit for bit in float32.

    Args:
        position: its variants' blocks say how their parameters are sliced. build: makes a variant's block. held: of
            it, what is held; a slot then has the slices that any slot has.

    Source: shared weights of all widths, as in slimmable networks (Yu et al., arXiv 1812.08928) and Once-for-All (Cai
    et al., arXiv 1908.09791).
    """

    def __init__(self, position: Position, build: Build, held: Slots | None = None) -> None:
        slots = held if held is not None else [position.variants] * position.most
        variants = [variant for variant in position.variants if any(variant in some for some in slots)]
        groups = [(largest(group), group) for group in _alike(variants)]
        super().__init__(
            {
                f"{slot}:{fixed(whole).label}": Held(whole, group, position.channels, build)
                for slot, some in enumerate(slots)
                for whole, group in groups
                if any(variant in some for variant in group)
            }
        )
        self._names = {variant: fixed(whole).label for whole, group in groups for variant in group}
        self._slices: dict[tuple[int, Variant], Slice] = {}

    def _held(self, slot: int, variant: Variant) -> Held:
        held = self[f"{slot}:{self._names[variant]}"]
        assert isinstance(held, Held)
        return held

    def of(self, slot: int, variant: Variant) -> nn.Module:
        if (slot, variant) not in self._slices:
            self._slices[slot, variant] = Slice(self._held(slot, variant), variant)
        return self._slices[slot, variant]

    def extract(self, slot: int, variant: Variant) -> dict[str, Tensor]:
        held = self._held(slot, variant)
        return sliced(held.whole.state_dict(), held.indices(variant.label))

    def take(self, slot: int, given: Layer) -> int:
        alike = {name for variant, name in self._names.items() if fixed(variant) == fixed(given.variant)}
        helds: list[Any] = [self[key] for name in sorted(alike) if (key := f"{slot}:{name}") in self]
        return sum(fill(held.whole, held.variant, held.channels, given) for held in helds)


class Held(nn.Module):
    """The largest variant of a block, which computes any smaller one with a part of its parameters.

    Args:
        variant: the largest. variants: those that are asked for. channels: of the position. build: makes a block.
    """

    def __init__(self, variant: Variant, variants: Sequence[Variant], channels: int, build: Build) -> None:
        super().__init__()
        self.variant, self.channels = variant, channels
        self.whole = build(variant)
        with torch.device("meta"):  # how a smaller one computes; its parameters are given at every call
            self._forms = {one.label: build(one) for one in variants if one != variant}
        self._indices = {one.label: indices(one, variant, channels) for one in variants}

    def indices(self, label: str) -> Mapping[str, Index]:
        """Parameter -> its part, for a variant by its label; what is not named is whole."""
        return self._indices[label]

    def train(self, mode: bool = True) -> Held:
        for form in self._forms.values():
            form.train(mode)
        return super().train(mode)

    def forward(self, x: Tensor, num_frames: int, label: str, **beside: Tensor) -> Tensor:
        """The variant's answer; see the block for shapes."""
        if label not in self._forms:
            whole: Tensor = self.whole(x, num_frames, **beside)
            return whole
        own = sliced(dict(self.whole.named_parameters()), self._indices[label])
        answer: Tensor = functional_call(self._forms[label], own, (x, num_frames), beside)
        return answer


class Slice(nn.Module):
    """One variant of what is held, called as its block is."""

    def __init__(self, held: Held, variant: Variant) -> None:
        super().__init__()
        self.held, self.label = held, variant.label

    def forward(self, x: Tensor, num_frames: int, **beside: Tensor) -> Tensor:
        answer: Tensor = self.held(x, num_frames, self.label, **beside)
        return answer


SHELVES: dict[str, type[Apart] | type[Sliced]] = {APART: Apart, SLICED: Sliced}


def build_shelf(position: Position, build: Build, held: Slots | None = None) -> Shelf:
    """The shelf that a position's ``shelf`` names, with everything that may stand there or what is ``held``."""
    return SHELVES[position.shelf](position, build, held)


def _alike(variants: Iterable[Variant]) -> Iterator[list[Variant]]:
    """Variants that differ in nothing but widths, together."""
    groups: dict[Variant, list[Variant]] = {}
    for variant in variants:
        groups.setdefault(fixed(variant), []).append(variant)
    yield from groups.values()
