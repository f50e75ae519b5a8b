"""What can be cut of a space's uncut network, place by place: heads, inner channels, whole blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from nas.errors import NasError
from nas.prune.config import Unit
from search_spaces.arrangement import Arrangement
from search_spaces.blocks import block_spec
from search_spaces.blocks.slicing import fixed, largest
from search_spaces.space import Space
from search_spaces.variant import Variant

Option = tuple[Variant, ...]


@dataclass(frozen=True)
class Cuttable:
    """What may stand at each place of a network that is cut: what stands there uncut, or a part of it, or nothing.

    Args:
        space: its baseline is the uncut network. units: what may be taken out.

    Raises:
        NasError: if nothing can be.
    """

    space: Space
    units: tuple[Unit, ...]

    def __post_init__(self) -> None:
        if all(len(options) == 1 for options in self.options.values()):
            raise NasError(
                f"space {self.space.name} offers nothing smaller than its baseline in {', '.join(self.units)}; state a "
                "baseline of wide blocks in its YAML, and name narrower ones beside them"
            )

    @cached_property
    def options(self) -> Mapping[str, tuple[Option, ...]]:
        """Place -> what may stand there, the uncut one first."""
        return {name: tuple(self._options(name, option)) for name, option in self.space.baseline().layers}

    def _options(self, name: str, whole: Option) -> Iterator[Option]:
        yield whole
        if len(whole) != 1:
            return
        position = self.space.position(name)
        for variant in position.variants:
            if variant != whole[0] and _is_part(variant, whole[0]) and self._allowed(variant, whole[0]):
                yield (variant,)
        if position.least == 0 and "blocks" in self.units:
            yield ()

    def _allowed(self, variant: Variant, whole: Variant) -> bool:
        changed = {name for name, value in variant.params if value != dict(whole.params)[name]}
        return all(("heads" if name == "heads" else "channels") in self.units for name in changed)

    def smaller(self, arrangement: Arrangement) -> Iterator[tuple[str, Arrangement]]:
        """Every cut of one step: of a width to the next that there is, or of a whole block."""
        for name, options in self.options.items():
            now = arrangement.at(name)
            below = [option for option in options if _less(option, now)]
            for option in below:
                between = any(_less(other, now) and _less(option, other) for other in below if other)
                if not option or not between:
                    yield change(name, now, option), arrangement.replace(name, option)

    def larger(self, arrangement: Arrangement) -> Iterator[tuple[str, Arrangement]]:
        """Every way to give something back at one place."""
        for name, options in self.options.items():
            now = arrangement.at(name)
            for option in options:
                if _less(now, option):
                    yield change(name, now, option), arrangement.replace(name, option)


def _is_part(variant: Variant, whole: Variant) -> bool:
    return variant.block == whole.block and fixed(variant) == fixed(whole) and largest([variant, whole]) == whole


def _less(one: Option, other: Option) -> bool:
    """Whether one option is a part of another, and not the same."""
    if one == other or not other:
        return False
    return not one or _is_part(one[0], other[0])


def change(name: str, before: Option, after: Option) -> str:
    """What a cut does, for people: ``block.3: heads 4 to 2``, ``block.3: out``."""
    if not after:
        return f"{name}: out"
    if not before:
        return f"{name}: back with {_sizes(after[0])}"
    old = dict(before[0].params)
    parts = [f"{key} {old[key]} to {value}" for key, value in after[0].params if value != old[key]]
    return f"{name}: {', '.join(sorted(parts, reverse=True))}"


def _sizes(variant: Variant) -> str:
    widths = block_spec(variant.block).widths
    return ", ".join(sorted((f"{key} {value}" for key, value in variant.params if key in widths), reverse=True))


def changes(baseline: Arrangement, arrangement: Arrangement) -> list[str]:
    """All that is cut of a network, place by place."""
    pairs = ((name, before, arrangement.at(name)) for name, before in baseline.layers)
    return [change(name, before, after) for name, before, after in pairs if before != after]


def kept(baseline: Arrangement, arrangement: Arrangement) -> dict[str, tuple[int, int]]:
    """What is left of what there was: blocks, and each width summed over all blocks."""
    found = {"blocks": (arrangement.num_layers, baseline.num_layers)}
    for which, one in enumerate((arrangement, baseline)):
        for _, variants in one.layers:
            for variant in variants:
                for name in block_spec(variant.block).widths:
                    now = list(found.get(name, (0, 0)))
                    now[which] += dict(variant.params)[name]
                    found[name] = (now[0], now[1])
    return found
