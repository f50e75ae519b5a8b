"""What people are told of a space: what its positions hold, and what an arrangement is compared with."""

from __future__ import annotations

from dataclasses import dataclass

from search_spaces.plan import Plan


@dataclass(frozen=True)
class Words:
    """The words of one space.

    Attributes:
        one: what stands at a position: a ``block`` where each holds exactly one, so that one is chosen and none added;
            elsewhere a ``layer``.
        bare: whether the baseline has none of them.
    """

    one: str = "layer"
    bare: bool = True

    @classmethod
    def of(cls, plan: Plan) -> Words:
        """The words of a plan's space."""
        choices = all(position.lengths == range(1, 2) for position in plan.positions)
        return cls("block" if choices else "layer", not plan.baseline.num_layers)

    @property
    def choice(self) -> bool:
        """Whether something is chosen at every position, and nothing added."""
        return self.one == "block"

    @property
    def many(self) -> str:
        """``layers`` or ``blocks``."""
        return f"{self.one}s"

    @property
    def none(self) -> str:
        """What an arrangement without any is called."""
        return f"no {self.many}"

    @property
    def baseline(self) -> str:
        """What the baseline is called."""
        return self.none if self.bare else "the baseline"

    @property
    def beside(self) -> str:
        """Behind a number of the baseline's: ``0.1964 without layers``, ``0.1964 of the baseline``."""
        return f"without {self.many}" if self.bare else "of the baseline"

    @property
    def title(self) -> str:
        """The question that a report answers."""
        return f"Which {self.one if self.choice else self.many}, where, at what cost"
