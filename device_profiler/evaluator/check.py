"""A package held against the torch module that it was made from: error in float32 and in float16 arithmetic.

The norm is the largest difference over all outputs, relative to the largest magnitude of the module's output. float32
arithmetic on the stored weights tells whether the converter kept the function; float16 arithmetic tells what the
declared types cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from device_profiler.evaluator.audit import Audit, audit, relative_error
from device_profiler.evaluator.package import Package
from device_profiler.evaluator.types import PackageError

BOUND_FP32 = 1e-3  # weights rounded to float16, and nothing else
BOUND_FP16 = 5e-3


@dataclass(frozen=True)
class Check:
    """What a comparison found; ``audit`` has it operation by operation."""

    package: Path
    function: str
    error_fp32: float
    error_fp16: float
    audit: Audit

    def told(self) -> dict[str, Any]:
        """Plain values for a report or a package's metadata."""
        return {"error_fp32": _short(self.error_fp32), "error_fp16": _short(self.error_fp16), **self.audit.told()}

    def problem(self, bound_fp32: float | None = BOUND_FP32, bound_fp16: float | None = BOUND_FP16) -> str | None:
        """One line on what is over its bound and where it comes from; ``None`` where all is within.

        Args:
            bound_fp32, bound_fp16: of the largest output; ``None`` for no bound, as of weights in fewer bits.
        """
        over = [
            f"{name} arithmetic is off by {error:.2g} of the largest output, over {bound:g}"
            for name, error, bound in (
                ("float32", self.error_fp32, bound_fp32),
                ("float16", self.error_fp16, bound_fp16),
            )
            if bound is not None and not error <= bound
        ]
        if not over:
            return None
        said = [f"{self.package.name}, function {self.function}: {' and '.join(over)}"]
        lost, jump = self.audit.overflowed, self.audit.first_jump
        if bound_fp32 is not None and not self.error_fp32 <= bound_fp32:
            said.append("the converter wrote another function, or an input is no number of its declared type")
        elif lost:
            said.append(f"{lost[0].operation} {lost[0].name!r} is the first of {len(lost)} that are not finite")
        elif jump is not None:
            said.append(f"the error jumps at {jump.operation} {jump.name!r}")
        return "; ".join(said)


def check_package(
    package: str | Path | Package,
    module: nn.Module,
    inputs: Sequence[Tensor],
    names: Sequence[str] | None = None,
    function: str | None = None,
) -> Check:
    """Evaluate one function of a saved package and compare it with the module.

    Args:
        inputs: what the module takes, in order; floating-point ones are rounded to the package's types for the package
            alone, so an input that float16 cannot hold counts as an error.
        names: of the package's inputs in the module's order; the package's own order where none are given.
        function: its default one where none is named.

    Raises:
        PackageError: if it cannot be read or evaluated, or does not have the module's outputs.
    """
    opened = package if isinstance(package, Package) else Package(package)
    chosen = opened.function(function)
    ordered = tuple(names) if names is not None else tuple(name for name, _ in chosen.inputs)
    if len(ordered) != len(inputs):
        raise PackageError(f"{opened.path}: {len(inputs)} inputs are given for {', '.join(ordered)}")
    with torch.no_grad():
        answer = module(*inputs)
    expected = list(answer) if isinstance(answer, (tuple, list)) else [answer]
    found = audit(chosen, dict(zip(ordered, inputs, strict=True)))
    return Check(
        opened.path,
        chosen.name,
        _worst(opened, found.exact, expected),
        _worst(opened, found.outputs, expected),
        found,
    )


def _worst(package: Package, got: Any, expected: Sequence[Tensor]) -> float:
    outputs = list(got.values())
    if [tuple(one.shape) for one in outputs] != [tuple(one.shape) for one in expected]:
        raise PackageError(
            f"{package.path}: gives {[tuple(one.shape) for one in outputs]}, the module "
            f"{[tuple(one.shape) for one in expected]}; it is a package of another one"
        )
    return max(relative_error(one, other) for one, other in zip(outputs, expected, strict=True))


def _short(number: float) -> float:
    return float(f"{number:.4g}")
