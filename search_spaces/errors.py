"""The one base error of this package, and how its messages suggest what was meant."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class SpaceError(ValueError):
    """A space, arrangement or workload is wrong. The message is one line: the rule, the values, the remedy."""


def unknown(kind: str, name: object, known: Iterable[str]) -> str:
    """One line for a name nobody knows: the nearest known one if there is a near one, then all of them."""
    names = sorted(known)
    near: Sequence[str] = get_close_matches(str(name), names, n=1, cutoff=0.75)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"unknown {kind} {str(name)!r}.{hint} Known {kind}s: {', '.join(names)}."
