"""What float16 does to a program, operation by operation: how large values become, what overflows, what errs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from device_profiler.evaluator.evaluate import Arithmetic, Values, steps
from device_profiler.evaluator.operations.layers import largest_logit
from device_profiler.evaluator.package import Function, Operation
from device_profiler.evaluator.types import LARGEST_FLOAT16

ATTENTION = "scaled_dot_product_attention"
JUMP = 10.0  # times the worst error among an operation's inputs
LEAST_JUMP = 1e-2  # of the largest value; a smaller error is rounding, wherever it comes from


@dataclass(frozen=True)
class Reading:
    """One output of one operation.

    Attributes:
        name, operation: of the output, and Apple's name of what gave it.
        near: the stored weight read last, which tells the place in the network.
        largest: magnitude, in float32 arithmetic, so that it is a number where float16 has none.
        not_finite: how many values float16 made infinite or not a number.
        error: float16 against float32 arithmetic on the same weights and inputs: the largest difference relative to
            the largest magnitude; infinite where a value is not finite.
        worst_input: the largest error among the operation's inputs.
        inside: of a fused attention, the largest score within it before the softmax; it is no value of the program,
            and a compute unit that holds it in float16 overflows beyond 65,504 all the same.
    """

    name: str
    operation: str
    near: str
    largest: float
    not_finite: int
    error: float
    worst_input: float = 0.0
    inside: float | None = None

    @property
    def headroom(self) -> float:
        """How many times as large the values could be before float16 overflows; below 1 they do."""
        return LARGEST_FLOAT16 / max(self.largest, self.inside or 0.0, 1e-30)

    @property
    def jumps(self) -> bool:
        """Whether the error is this operation's own, and not what it was given."""
        return self.error > LEAST_JUMP and self.error > JUMP * self.worst_input

    def told(self) -> dict[str, Any]:
        """As plain values, rounded to what is worth reading."""
        told: dict[str, Any] = {
            **{"name": self.name, "operation": self.operation, "near": self.near},
            **{"largest": _short(self.largest), "headroom": _short(self.headroom)},
            **{"not_finite": self.not_finite, "error": _short(self.error)},
        }
        return told if self.inside is None else {**told, "inside": _short(self.inside)}


@dataclass(frozen=True)
class Audit:
    """A function evaluated in both arithmetics side by side.

    Attributes:
        outputs: in float16 arithmetic, by name. exact: in float32 arithmetic on the stored weights.
        readings: of every floating-point value that an operation gave, in order.
    """

    function: str
    outputs: Mapping[str, Tensor]
    exact: Mapping[str, Tensor]
    readings: tuple[Reading, ...]

    @property
    def largest(self) -> Reading | None:
        """The value that comes nearest to float16's end, or goes furthest beyond it."""
        return min(self.readings, key=lambda one: one.headroom, default=None)

    @property
    def overflowed(self) -> tuple[Reading, ...]:
        """Values that were not finite in float16."""
        return tuple(one for one in self.readings if one.not_finite)

    @property
    def first_jump(self) -> Reading | None:
        """The first operation whose error is its own and above rounding."""
        return next((one for one in self.readings if one.jumps), None)

    def told(self) -> dict[str, Any]:
        """What a report or a package's metadata states, as plain values."""
        return {
            "largest": None if self.largest is None else self.largest.told(),
            "not_finite": [one.name for one in self.overflowed],
            "first_jump": None if self.first_jump is None else self.first_jump.told(),
        }


def audit(function: Function, feeds: Mapping[str, Tensor]) -> Audit:
    """Evaluate a function in float16 and in float32 arithmetic, one operation after the other in both.

    Args:
        feeds: a tensor for each input, by name. What is found holds for these values: give real ones for real ranges.

    Raises:
        PackageError: as ``evaluate``.
    """
    half, full = Values(function, Arithmetic.FLOAT16, feeds), Values(function, Arithmetic.FLOAT32, feeds)
    errors: dict[str, float] = {}
    readings: list[Reading] = []
    near = ""

    def read(one: Operation) -> None:
        nonlocal near
        near = _stored_weight(function, one) or near
        worst = max((errors.get(name, 0.0) for name in one.reads()), default=0.0)
        if one.kind.startswith("constexpr_"):
            return
        for name, _ in one.outputs:
            got, expected = half[name], full[name]
            assert isinstance(got, Tensor) and isinstance(expected, Tensor)
            if not expected.is_floating_point() or not expected.numel():
                continue
            lost = int((~got.isfinite() & (expected.isfinite() | got.isnan())).sum())
            errors[name] = relative_error(got, expected)
            inside = _inside(full, one) if one.kind == ATTENTION else None
            magnitude = float(expected.abs().nan_to_num(0.0, 0.0).max())
            readings.append(Reading(name, one.kind, near, magnitude, lost, errors[name], worst, inside))

    for _ in steps(function, [half, full], read):
        pass
    return Audit(function.name, _outputs(function, half), _outputs(function, full), tuple(readings))


def relative_error(got: Tensor, expected: Tensor) -> float:
    """``max |got - expected| / max |expected|``, infinite where a value is not finite and the other one differs."""
    got, expected = got.float(), expected.float()
    same = got == expected
    apart = torch.where(same, torch.zeros(()), (got - expected).abs())
    scale = float(torch.where(expected.isfinite(), expected, torch.zeros(())).abs().max())
    off = float(apart.max())
    return float("inf") if off != off else off / max(scale, 1e-12)


def _stored_weight(function: Function, one: Operation) -> str | None:
    """The stored constant that an operation reads, its weight before others; a message keeps no order of inputs."""
    keys = sorted(one.inputs, key=lambda key: (key not in ("weight", "gamma"), key))
    return next((name for key in keys for name in one.inputs[key] if function.is_stored(name)), None)


def _inside(values: Values, one: Operation) -> float:
    query, key = (values[one.inputs[name][0]] for name in ("query", "key"))
    assert isinstance(query, Tensor) and isinstance(key, Tensor)
    return largest_logit(query, key)


def _outputs(function: Function, values: Values) -> dict[str, Tensor]:
    found = {name: values[name] for name in function.outputs}
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def _short(number: float) -> float:
    return float(f"{number:.4g}")
