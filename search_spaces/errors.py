"""The one base error of this package, how its messages suggest what was meant, and rules that all numbers meet."""

import math
from collections.abc import Iterable
from difflib import get_close_matches


class SpaceError(ValueError):
    """A space, arrangement or workload is wrong. The message is one line: the rule, the values, the remedy."""


def unknown(kind: str, name: object, known: Iterable[str]) -> str:
    """One line for a name nobody knows: the nearest known one if there is a near one, then all of them."""
    names = sorted(known)
    return f"unknown {kind} {str(name)!r}.{nearest(str(name), names)} Known {kind}s: {', '.join(names)}."


def nearest(word: str, known: Iterable[str]) -> str:
    """`` Did you mean 'host_cpu'?`` for a near miss, and an empty string where nothing is near."""
    near = get_close_matches(word, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


#: What no clip, network or text here comes near: beyond it shapes overflow, and lists of layers never end.
MAX_SIZE = 65_536
MAX_FRAMES = 100_000
MAX_LAYERS = 64  # at one position
MAX_OPTIONS = 200_000  # of one position, where all are listed


def whole(value: object, where: str, least: int = 1, most: int = MAX_SIZE) -> int:
    """The value, if it is a whole number within bounds.

    Raises:
        SpaceError: naming ``where`` it stands.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise SpaceError(f"{where} must be a whole number of at least {least}, but is {value!r:.60}")
    if value > most:
        raise SpaceError(f"{where} must be at most {most:,}, but is {value!r:.60}")
    return value


def positive(value: object, where: str, most: float) -> float:
    """The value, if it is a number over 0 within bounds.

    Raises:
        SpaceError: naming ``where`` it stands.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SpaceError(f"{where} must be a number, but is {value!r:.60}")
    if not (math.isfinite(value) and 0 < value <= most):
        raise SpaceError(f"{where} must be above 0 and at most {most:g}, but is {value!r:.60}")
    return value


def plain_text(value: object, where: str) -> str:
    """The value, if it is a text.

    Raises:
        SpaceError: naming ``where`` it stands.
    """
    if not isinstance(value, str):
        raise SpaceError(f"{where} must be text, but is {value!r:.60}; quote it")
    return value
