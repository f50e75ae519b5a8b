"""What an operation is given, and how one is entered in the table of those that can be evaluated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Given = Tensor | str
Result = Tensor | tuple[Tensor, ...]
Run = Callable[["Arguments"], Result]


@dataclass(frozen=True)
class Arguments:
    """An operation's inputs by name; each is a list, as `concat` takes several values under one name.

    ``declared`` is how torch keeps the first output's declared type, for the few operations whose inputs do not tell.
    """

    given: Mapping[str, Sequence[Given]]
    declared: torch.dtype

    def has(self, name: str) -> bool:
        """Whether the input was given."""
        return name in self.given

    def __getitem__(self, name: str) -> Tensor:
        value = self.given[name][0]
        assert isinstance(value, Tensor), name
        return value

    def many(self, name: str) -> list[Tensor]:
        """All values under a name."""
        return [value for value in self.given[name] if isinstance(value, Tensor)]

    def maybe(self, name: str) -> Tensor | None:
        """A tensor, or ``None`` where it was not given."""
        return self[name] if self.has(name) else None

    def ints(self, name: str, default: Sequence[int] = ()) -> list[int]:
        """Whole numbers, one or many."""
        return [int(value) for value in self[name].reshape(-1).tolist()] if self.has(name) else list(default)

    def flags(self, name: str, count: int) -> list[bool]:
        """Truth values, all false by default."""
        return [bool(value) for value in self[name].reshape(-1).tolist()] if self.has(name) else [False] * count

    def flag(self, name: str, default: bool = False) -> bool:
        """One truth value."""
        return bool(self[name].item()) if self.has(name) else default

    def number(self, name: str, default: float) -> float:
        """One number."""
        return float(self[name].item()) if self.has(name) else default

    def whole(self, name: str, default: int = 0) -> int:
        """One whole number."""
        return int(self[name].item()) if self.has(name) else default

    def text(self, name: str, default: str) -> str:
        """A word, such as a mode."""
        return str(self.given[name][0]) if self.has(name) else default

    def axes(self, name: str, rank: int) -> list[int]:
        """Axes, counted from the front; all of them by default."""
        return [axis % rank for axis in self.ints(name, range(rank))]

    def float_type(self) -> torch.dtype | None:
        """Type of the floating-point inputs, which Apple's definitions call T; ``None`` where there are none."""
        first = [self.given[name] for name in ("x", "query", "values", "a", "data") if name in self.given]
        for group in (*first, *self.given.values()):
            for value in group:
                if isinstance(value, Tensor) and value.is_floating_point():
                    return value.dtype
        return None

    def widened(self) -> Arguments:
        """The same with floating-point tensors in float32."""
        wide = {
            name: [v.float() if isinstance(v, Tensor) and v.is_floating_point() else v for v in group]
            for name, group in self.given.items()
        }
        return Arguments(wide, self.declared)


OPERATIONS: dict[str, Run] = {}


def operation(*names: str) -> Callable[[Run], Run]:
    """Enter a function that gives its result in the type that it belongs in: moves, comparisons, casts."""

    def enter(run: Run) -> Run:
        for name in names:
            OPERATIONS[name] = run
        return run

    return enter


def numeric(*names: str) -> Callable[[Run], Run]:
    """Enter a function that calculates: it is given float32 and its result is rounded to the type of its inputs.

    So what an operation adds up within itself is float32, and what it gives is float16 where the program says so: a
    result beyond 65,504 becomes infinite there.
    """

    def enter(run: Run) -> Run:
        def rounded(given: Arguments) -> Result:
            kind = given.float_type()
            if kind is None:
                return run(given)
            result = run(given.widened())
            if isinstance(result, tuple):
                return tuple(one.to(kind) if one.is_floating_point() else one for one in result)
            return result.to(kind) if result.is_floating_point() else result

        operation(*names)(rounded)
        return run

    return enter
