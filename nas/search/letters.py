"""AsCAN's rule as a finding: where strings of convolutions before transformers rank among all strings, exactly."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.errors import NasError
from search_spaces.letters import is_sorted, read, stages_of, strings

if TYPE_CHECKING:
    from latency_tables.cost import CostModel
    from search_spaces.arrangement import Arrangement
    from search_spaces.space import Space

SHOWN = 12  # strings of the front


@dataclass(frozen=True)
class Spelled:
    """A string of the way down, what it costs and scores.

    Attributes:
        beaten_by: share of the strings that are no slower and have a lower loss, of all that are no slower; 0 is the
            best there is for its latency.
    """

    letters: str
    latency_ms: float
    loss: float
    on_front: bool
    beaten_by: float

    @property
    def is_sorted(self) -> bool:
        return is_sorted(self.letters)


@dataclass(frozen=True)
class Finding:
    """Every string of a space, cheapest first, but for those that hold a block of which the table has no number."""

    space: Space
    rows: tuple[Spelled, ...]
    without_number: int = 0

    @property
    def front(self) -> list[Spelled]:
        """The strings that none beats in both, cheapest first: the exact front."""
        return [row for row in self.rows if row.on_front]

    def to_json(self) -> dict[str, Any]:
        """Counts and ranks; and the front."""
        sorted_ones = [row for row in self.rows if row.is_sorted]
        others = [row for row in self.rows if not row.is_sorted]
        return {
            "strings": len(self.rows),
            "without_number": self.without_number,
            "sorted": len(sorted_ones),
            "front": len(self.front),
            "front_sorted": sum(row.is_sorted for row in self.front),
            "sorted_beaten_by": statistics.median(row.beaten_by for row in sorted_ones) if sorted_ones else None,
            "others_beaten_by": statistics.median(row.beaten_by for row in others) if others else None,
            "front_letters": [stages_of(self.space, row.letters) for row in self.front],
        }

    def render(self) -> str:
        """The front, and where sorted strings stand."""
        told = self.to_json()
        lines = [f"{'ms':>9} {'loss':>9}  letters (sorted: *)"]
        for row in self.front[:SHOWN]:
            mark = "*" if row.is_sorted else " "
            lines.append(f"{row.latency_ms:9.3f} {row.loss:9.4f} {mark}{stages_of(self.space, row.letters)}")
        lines += [f"... and {len(self.front) - SHOWN} more"] if len(self.front) > SHOWN else []
        lines.append(
            f"{told['sorted']} of {told['strings']} strings have every C before every T, and {told['front_sorted']} of "
            f"the {told['front']} on the exact front"
        )
        for what, share in (("sorted", told["sorted_beaten_by"]), ("other", told["others_beaten_by"])):
            if share is not None:
                lines.append(f"half of the {what} ones are beaten by {share:.0%} or fewer of those that are no slower")
        if self.without_number:
            lines.append(
                f"{self.without_number} more strings hold a block of which the table has no number; measure it"
            )
        return "\n".join(lines)


def find(
    space: Space,
    costs: CostModel,
    loss: Callable[[Arrangement], float],
    progress: Callable[[int, int, str], None] = lambda done, total, told: None,
) -> Finding:
    """Cost and score every string, and tell the front and the ranks.

    Raises:
        NasError: if the table has a number for none of them.
    """
    every = strings(space)
    found = [read(space, letters) for letters in every]
    ms = costs.cost(np.stack([costs.encode(arrangement.labels()) for arrangement in found])).latency_ms
    priced = sorted((float(t), letters, a) for t, letters, a in zip(ms, every, found, strict=True) if np.isfinite(t))
    if not priced:
        raise NasError(
            f"{space.name}: each of its {len(every)} strings holds a block without a number; measure them again"
        )
    losses: list[float] = []
    for done, (_, letters, arrangement) in enumerate(priced, start=1):
        losses.append(loss(arrangement))
        progress(done, len(priced), letters)
    rows: list[Spelled] = []
    scored, times = np.array(losses), np.array([t for t, _, _ in priced])
    for (t, letters, _), value in zip(priced, losses, strict=True):
        rivals = scored[times <= t]
        ahead = bool(((times <= t) & (scored <= value) & ((times < t) | (scored < value))).any())
        rows.append(Spelled(letters, t, value, not ahead, float((rivals < value).mean())))
    return Finding(space, tuple(rows), len(every) - len(rows))
