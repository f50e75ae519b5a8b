"""A function of a package, evaluated with torch: in float32 on the stored weights, or in float16 as it is declared.

In float16 each operation's output is rounded as a tensor of its declared type, and overflows to infinity; within an
operation sums are float32. A phone may add up in less (or keep more between fused operations): this is the program's
own arithmetic, not a compute unit's. Nothing here is timed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum

import torch
from torch import Tensor

from device_profiler.errors import one_line
from device_profiler.evaluator.operations import OPERATIONS, Arguments, Given
from device_profiler.evaluator.package import Constant, Function, Operation
from device_profiler.evaluator.types import STORED, PackageError, TensorType, UnknownOperation, as_tensor


class Arithmetic(Enum):
    """How numbers with fractions are kept between operations."""

    FLOAT16 = "float16"  # as the program declares
    FLOAT32 = "float32"  # all of them in float32, weights as they were stored

    def kept(self, kind: str) -> torch.dtype:
        """What torch keeps values of a declared kind in."""
        dtype = STORED[kind]
        return torch.float32 if self is Arithmetic.FLOAT32 and dtype.is_floating_point else dtype


class Values:
    """The values of one evaluation: inputs, what operations gave, and constants where asked for."""

    def __init__(self, function: Function, arithmetic: Arithmetic, feeds: Mapping[str, Tensor]) -> None:
        self.function, self.arithmetic = function, arithmetic
        self._held: dict[str, Tensor] = {name: self._fed(name, kind, feeds) for name, kind in function.inputs}

    def _fed(self, name: str, declared: TensorType, feeds: Mapping[str, Tensor]) -> Tensor:
        if name not in feeds:
            wanted = ", ".join(f"{key} ({kind})" for key, kind in self.function.inputs)
            raise PackageError(f"no value is given for the input {name!r}; the package takes: {wanted}")
        value = feeds[name]
        if not _fits(value, declared):
            raise PackageError(f"the input {name!r} is {tuple(value.shape)}; the package takes {declared}")
        if value.is_floating_point() != STORED[declared.kind].is_floating_point:
            raise PackageError(f"the input {name!r} is {value.dtype}; the package takes {declared}")
        # Rounded once, as it enters: in either arithmetic the package hears the same numbers.
        return value.detach().to(STORED[declared.kind]).to(self.arithmetic.kept(declared.kind))

    def __getitem__(self, name: str) -> Given:
        if name in self._held:
            return self._held[name]
        if name not in self.function.constants:
            raise PackageError(f"the value {name!r} is read before anything gives it; the package is damaged")
        constant = self.function.constant(name)
        if isinstance(constant.value, str):
            return constant.value
        return self._constant(constant)

    def _constant(self, constant: Constant) -> Tensor:
        return as_tensor(constant.value, constant.type.kind).to(self.arithmetic.kept(constant.type.kind))

    def run(self, operation: Operation) -> tuple[Tensor, ...]:
        """Evaluate the operation and keep what it gives.

        Raises:
            PackageError: if a result is not of the declared shape and type, or its inputs do not fit.
        """
        declared = [self.arithmetic.kept(kind.kind) for _, kind in operation.outputs]
        given = {key: [self[name] for name in names] for key, names in operation.inputs.items()}
        try:
            result = OPERATIONS[operation.kind](Arguments(given, declared[0]))
        except (RuntimeError, KeyError, IndexError, TypeError, ValueError) as error:
            if isinstance(error, PackageError):
                raise
            raise PackageError(f"{operation.kind} {operation.name!r}: {one_line(error)}") from error
        results = result if isinstance(result, tuple) else (result,)
        if len(results) != len(operation.outputs):
            raise PackageError(f"{operation.kind} {operation.name!r}: gives {len(results)} values, not as declared")
        for got, wanted, (name, kind) in zip(results, declared, operation.outputs, strict=True):
            if not _fits(got, kind) or got.dtype != wanted:
                raise PackageError(
                    f"{operation.kind} {name!r}: gives {got.dtype} {tuple(got.shape)}, declared is {kind}"
                )
            self._held[name] = got
        return results

    def drop(self, name: str) -> None:
        """Forget a value that nothing reads any more."""
        self._held.pop(name, None)


def _fits(value: Tensor, declared: TensorType) -> bool:
    return value.dim() == len(declared.shape) and all(
        wanted is None or size == wanted for size, wanted in zip(value.shape, declared.shape, strict=True)
    )


def check_known(function: Function) -> None:
    """Refuse a function that has an operation which is not in the table.

    Raises:
        UnknownOperation: naming each, and where the first stands.
    """
    unknown = [one for one in function.operations if one.kind not in OPERATIONS]
    if unknown:
        counted = Counter(one.kind for one in unknown)
        said = ", ".join(f"{kind} ({count})" for kind, count in sorted(counted.items()))
        raise UnknownOperation(
            f"{function.package.path}: no evaluation is known of: {said}; the first is {unknown[0].name!r}. "
            "Write it in device_profiler/evaluator/operations, or leave it out of the model"
        )


def steps(
    function: Function, evaluations: Sequence[Values], after: Callable[[Operation], None] = lambda operation: None
) -> Iterator[tuple[Operation, list[tuple[Tensor, ...]]]]:
    """Evaluate operation by operation in each arithmetic side by side, and yield what each gave.

    A value is forgotten after its last reader, so memory is that of the values alive. ``after`` is called before
    that, while all inputs of the operation are still there.
    """
    check_known(function)
    last = {name: place for place, one in enumerate(function.operations) for name in one.reads()}
    kept = set(function.outputs)
    with torch.inference_mode():
        for place, one in enumerate(function.operations):
            yield one, [values.run(one) for values in evaluations]
            after(one)
            for name in {*one.reads(), *(name for name, _ in one.outputs)} - kept:
                if last.get(name, -1) <= place:
                    for values in evaluations:
                        values.drop(name)


def evaluate(
    function: Function, feeds: Mapping[str, Tensor], arithmetic: Arithmetic = Arithmetic.FLOAT16
) -> dict[str, Tensor]:
    """The function's outputs, by name, in the types that it declares (float32 in that arithmetic).

    Args:
        feeds: a tensor for each input by name; floating-point ones are rounded to the declared type as they enter.

    Raises:
        PackageError: an unknown operation, an input that does not fit, or a result that is not as declared.
    """
    values = Values(function, arithmetic, feeds)
    for _ in steps(function, [values]):
        pass
    return {name: _tensor(values[name]) for name in function.outputs}


def _tensor(value: Given) -> Tensor:
    assert isinstance(value, Tensor)
    return value
