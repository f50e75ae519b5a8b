"""A network spelled in letters: one a place, C for a convolution, T for a transformer, F for a feed-forward layer.

The language of AsCAN (arXiv 2411.04967): a string says which kind of block stands where, stage by stage, from the
highest resolution down; the way up mirrors the way down.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby, product

from search_spaces.arrangement import Arrangement
from search_spaces.blocks import block_spec
from search_spaces.errors import SpaceError, unknown
from search_spaces.parts import Position
from search_spaces.space import Space
from search_spaces.variant import Variant

BETWEEN = "-"  # stages
MAX_STRINGS = 1 << 16


def spell(space: Space, arrangement: Arrangement) -> str:
    """The letters of a network in execution order, stages apart: ``CC-CT-TT-TT-TC-CC``."""
    letters = [(p.name.rpartition(".")[0], _letter(arrangement.at(p.name)[0])) for p in lettered(space)]
    stages = groupby(letters, key=lambda pair: ".".join(pair[0].split(".")[:2]))
    return BETWEEN.join("".join(letter for _, letter in stage) for _, stage in stages)


def lettered(space: Space) -> list[Position]:
    """The positions that hold exactly one block, each of a kind that has a letter.

    Raises:
        SpaceError: if there are none.
    """
    found = [p for p in space.positions if p.least == p.most == 1 and all(map(_letter, p.variants))]
    if not found:
        raise SpaceError(f"space {space.name} cannot be spelled: no position holds exactly one block that has a letter")
    return found


def read(space: Space, text: str) -> Arrangement:
    """The network that a string names: a letter a place, or of the way down alone, which the way up then mirrors.

    Where a letter stands for several blocks of a place, the baseline's is taken, or else the first.

    Raises:
        SpaceError: naming the letter that does not exist, or how many there should be.
    """
    places, letters = lettered(space), [letter for letter in text if letter not in f"{BETWEEN} "]
    half = len([p for p in places if not p.name.startswith("up.")])
    if len(letters) == half and 2 * half == len(places):
        letters += letters[::-1]
    if len(letters) != len(places):
        raise SpaceError(
            f"letters {text!r}: {len(letters)} of them, but {space.name} has {len(places)} places ({half} on the way "
            "down); write one a place"
        )
    layers = dict(space.baseline().layers)
    for index, (place, letter) in enumerate(zip(places, letters, strict=True), start=1):
        same = [variant for variant in place.variants if _letter(variant) == letter]
        if not same:
            told = unknown("letter", letter, _known(place))
            raise SpaceError(f"letters {text!r}: place {index}, {place.name}: {told}")
        usual = [variant for variant in layers[place.name] if variant in same]
        layers[place.name] = tuple((usual or same)[:1])
    return space.arrange(layers)


def strings(space: Space) -> list[str]:
    """Every string of the way down, mirrored by the way up, in alphabetical order.

    Raises:
        SpaceError: if the way up has other places than the way down, or there are more than ``MAX_STRINGS``.
    """
    places = lettered(space)
    down = [p for p in places if not p.name.startswith("up.")]
    if 2 * len(down) != len(places):
        raise SpaceError(f"space {space.name}: {len(down)} places down and {len(places) - len(down)} up do not mirror")
    choices = [_known(place) for place in down]
    count = 1
    for letters in choices:
        count *= len(letters)
    if count > MAX_STRINGS:
        raise SpaceError(f"space {space.name} has {count:,} strings, over {MAX_STRINGS:,}; take one with fewer places")
    return ["".join(letters) for letters in product(*choices)]


def is_sorted(letters: str) -> bool:
    """Whether convolutions all come before transformers: AsCAN's rule, of the way down."""
    return "".join(sorted(letters)) == letters


def _known(place: Position) -> list[str]:
    return sorted({_letter(variant) for variant in place.variants})


def _letter(variant: Variant) -> str:
    return block_spec(variant.block).letter


def stages_of(space: Space, letters: str) -> str:
    """A string of the way down with its stages apart."""
    down: Sequence[Position] = [p for p in lettered(space) if not p.name.startswith("up.")]
    pairs = zip((".".join(p.name.split(".")[:2]) for p in down), letters, strict=True)
    return BETWEEN.join("".join(letter for _, letter in stage) for _, stage in groupby(pairs, key=lambda pair: pair[0]))
