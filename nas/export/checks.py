"""A saved package held against the module it was made from, function by function, before it replaces an older one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.errors import AnswerIsNo, NasError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from device_profiler.evaluator.check import Check

LARGEST = 65504.0  # of float16
BOUND_FP32 = 5e-3  # of the largest output: weights and inputs rounded to float16, and nothing else
BOUND_FP16 = 2e-2
UNCHECKED = "not checked: --no-check"
Told = dict[str, Any]


@dataclass(frozen=True)
class Function:
    """One function of a package to write: its name, and the module with inputs of its shape that it is made from."""

    name: str
    module: nn.Module
    inputs: tuple[Tensor, ...]
    names: tuple[str, ...]


def check_storable(module: nn.Module, what: str) -> None:
    """Refuse weights that float16 cannot store.

    Raises:
        NasError: naming the first.
    """
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and tensor.numel() and not float(tensor.abs().max()) <= LARGEST:
            raise NasError(
                f"{what}: the weight {name} reaches {float(tensor.abs().max()):.3g}, over {LARGEST:,.0f}; a package in "
                "float16 would give infinities; scale these weights down, or train the model anew"
            )


def check_functions(
    package: Path,
    functions: Sequence[Function],
    what: str,
    *,
    compressed: bool = False,
    seen: Callable[[Check], None] = lambda found: None,
) -> Told:
    """Evaluate every function of a saved package in float32 and in float16 arithmetic against its module.

    Args:
        what: the part, for a sentence.
        compressed: weights in fewer bits answer otherwise by design: then float16 arithmetic is held to float32
            arithmetic on the same weights, and the distance to the module is stated, not bounded.
        seen: told of each function's check, operation by operation.

    Returns:
        For each function ``error_fp32`` and ``error_fp16`` against the module, ``largest`` (the value nearest to
        float16's end, with its operation and place), ``not_finite`` and ``first_jump``.

    Raises:
        AnswerIsNo: if one is over its bound. NasError: if the package holds an operation that cannot be evaluated.
    """
    from device_profiler.evaluator.check import check_package
    from device_profiler.evaluator.package import Package
    from device_profiler.evaluator.types import PackageError

    told: Told = {}
    try:
        opened = Package(package)
        for one in functions:
            found = check_package(opened, one.module, one.inputs, one.names, one.name)
            problem = _compressed_problem(found) if compressed else found.problem(BOUND_FP32, BOUND_FP16)
            if problem is not None:
                raise AnswerIsNo(f"{what}: {problem}; {remedy(found)}")
            seen(found)
            told[one.name] = placed(found.told(), Places(one.module))
    except PackageError as error:
        raise NasError(f"{what}: {error}; --no-check writes it unchecked, and says so in it") from error
    return told


def remedy(found: Check) -> str:
    """What to do about a check that failed."""
    if found.audit.overflowed:
        return "--safe spells normalisation and attention so that they hold in float16; nothing was replaced"
    return "nothing was replaced; --no-check writes it all the same, and says so in it"


def _compressed_problem(found: Check) -> str | None:
    from device_profiler.evaluator.audit import relative_error

    outputs, exact = found.audit.outputs, found.audit.exact
    error = max(relative_error(outputs[name], exact[name]) for name in exact)
    if error <= BOUND_FP16:
        return None
    lost = found.audit.overflowed
    where = f"; {lost[0].operation} {lost[0].name!r} is the first of {len(lost)} that are not finite" if lost else ""
    return (
        f"{found.package.name}, function {found.function}: float16 arithmetic is off by {error:.2g} of float32's "
        f"largest output on the same weights, over {BOUND_FP16:g}{where}"
    )


class Places:
    """Where in the network a stored weight of its package belongs: the module's name."""

    def __init__(self, module: nn.Module) -> None:
        tensors = [*module.named_parameters(), *module.named_buffers()]
        self._names = {name.replace(".", "_"): name.rpartition(".")[0] for name, _ in tensors}

    def of(self, near: str) -> str:
        """The module whose weight was read last before an operation; ``the inputs`` before the first.

        torch calls a weight ``p_`` and a buffer ``b_`` and its name; the converter adds what it made of it.
        """
        return self.module(near) or near or "the inputs"

    def module(self, near: str) -> str:
        """The module of a stored weight; empty for a constant that the converter made."""
        wanted = near.removeprefix("p_").removeprefix("b_")
        fits = [name for name in self._names if wanted.startswith(name)]
        return self._names[max(fits, key=len)].removeprefix("network.") if fits else ""


def placed(told: Mapping[str, Any], places: Places) -> Told:
    """What a check told, with the place in the network of each reading, and no number that JSON lacks."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            inner = {key: plain(one) for key, one in value.items() if key != "near"}
            return {**inner, "place": places.of(value["near"])} if "near" in value else inner
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {key: plain(value) for key, value in told.items()}
