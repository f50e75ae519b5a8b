"""Operations on each element by itself, and over axes: arithmetic, activations, comparisons, reductions.

Source: coremltools' definitions ``ops/defs/iOS15/elementwise_binary.py``, ``elementwise_unary.py``, ``activation.py``,
``reduction.py`` and their successors of iOS 17.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from device_profiler.evaluator.operations.arguments import Arguments, numeric, operation
from device_profiler.evaluator.types import CAST_NAMES, PackageError

Binary = Callable[[Tensor, Tensor], Tensor]
Unary = Callable[[Tensor], Tensor]
Reduction = Callable[[Tensor, list[int], bool], Tensor]


def _binary(name: str, function: Binary) -> None:
    numeric(name)(lambda a: function(a["x"], a["y"]))


def _unary(name: str, function: Unary) -> None:
    numeric(name)(lambda a: function(a["x"]))


def _reduction(name: str, function: Reduction) -> None:
    @numeric(name)
    def reduce(a: Arguments) -> Tensor:
        x = a["x"]
        result = function(x, a.axes("axes", x.dim()), a.flag("keep_dims"))
        return result if x.is_floating_point() else result.to(x.dtype)


_BINARY: dict[str, Binary] = {
    **{"add": torch.add, "sub": torch.sub, "mul": torch.mul, "pow": torch.pow, "mod": torch.remainder},
    **{"real_div": torch.div, "floor_div": torch.floor_divide, "maximum": torch.maximum, "minimum": torch.minimum},
    **{"greater": torch.gt, "greater_equal": torch.ge, "less": torch.lt, "less_equal": torch.le},
    **{"equal": torch.eq, "not_equal": torch.ne, "logical_and": torch.logical_and, "logical_or": torch.logical_or},
    "logical_xor": torch.logical_xor,
}
_UNARY: dict[str, Unary] = {
    **{"abs": torch.abs, "ceil": torch.ceil, "cos": torch.cos, "erf": torch.erf, "exp": torch.exp},
    **{"exp2": torch.exp2, "floor": torch.floor, "round": torch.round, "sign": torch.sign, "sin": torch.sin},
    **{"sqrt": torch.sqrt, "square": torch.square, "tan": torch.tan, "tanh": torch.tanh, "sinh": torch.sinh},
    **{"cosh": torch.cosh, "atan": torch.atan, "sigmoid": torch.sigmoid, "silu": F.silu, "relu": F.relu},
    **{"relu6": F.relu6, "softplus": F.softplus, "softsign": F.softsign, "logical_not": torch.logical_not},
    "identity": lambda x: x,
}
_REDUCTIONS: dict[str, Reduction] = {
    "reduce_mean": lambda x, axes, keep: x.mean(axes, keepdim=keep),
    "reduce_sum": lambda x, axes, keep: x.sum(axes, keepdim=keep),
    "reduce_max": lambda x, axes, keep: x.amax(axes, keepdim=keep),
    "reduce_min": lambda x, axes, keep: x.amin(axes, keepdim=keep),
    "reduce_sum_square": lambda x, axes, keep: x.square().sum(axes, keepdim=keep),
    "reduce_l1_norm": lambda x, axes, keep: x.abs().sum(axes, keepdim=keep),
    "reduce_l2_norm": lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt(),
    "reduce_log_sum_exp": lambda x, axes, keep: x.logsumexp(axes, keepdim=keep),
}
for _name, _function in _BINARY.items():
    _binary(_name, _function)
for _name, _alone in _UNARY.items():
    _unary(_name, _alone)
for _name, _over in _REDUCTIONS.items():
    _reduction(_name, _over)


@numeric("rsqrt")
def rsqrt(a: Arguments) -> Tensor:
    """``1 / sqrt(x + epsilon)``."""
    return (a["x"] + a.number("epsilon", 1e-12)).rsqrt()


@numeric("inverse")
def inverse(a: Arguments) -> Tensor:
    """``1 / (x + epsilon)``."""
    return 1 / (a["x"] + a.number("epsilon", 1e-4))


@numeric("log")
def log(a: Arguments) -> Tensor:
    """``log(x + epsilon)``."""
    return (a["x"] + a.number("epsilon", 1e-45)).log()


@numeric("clip")
def clip(a: Arguments) -> Tensor:
    """Between alpha and beta."""
    return a["x"].clamp(a.number("alpha", float("-inf")), a.number("beta", float("inf")))


@numeric("leaky_relu")
def leaky_relu(a: Arguments) -> Tensor:
    """``alpha * x`` below zero."""
    return F.leaky_relu(a["x"], a.number("alpha", 0.01))


@numeric("elu")
def elu(a: Arguments) -> Tensor:
    """``alpha * (exp(x) - 1)`` below zero."""
    return F.elu(a["x"], a.number("alpha", 1.0))


@numeric("gelu")
def gelu(a: Arguments) -> Tensor:
    """In one of three modes; the sigmoid one is ``x * sigmoid(1.702 x)``."""
    mode = a.text("mode", "EXACT")
    if mode == "SIGMOID_APPROXIMATION":
        return a["x"] * torch.sigmoid(1.702 * a["x"])
    return F.gelu(a["x"], approximate="none" if mode == "EXACT" else "tanh")


@numeric("softmax")
def softmax(a: Arguments) -> Tensor:
    """Along one axis, the last by default."""
    return a["x"].softmax(a.whole("axis", -1))


@numeric("cumsum")
def cumsum(a: Arguments) -> Tensor:
    """Running sums along an axis."""
    if a.flag("exclusive") or a.flag("reverse"):
        raise PackageError("cumsum: only the plain form is evaluated, neither exclusive nor reverse")
    return a["x"].cumsum(a.whole("axis"), dtype=a["x"].dtype)


@operation("reduce_argmax")
def reduce_argmax(a: Arguments) -> Tensor:
    """Where the largest is; as whole numbers."""
    return a["x"].argmax(a.whole("axis", -1), keepdim=a.flag("keep_dims", True)).to(torch.int32)


@numeric("select")
def select(a: Arguments) -> Tensor:
    """``a`` where the condition holds, else ``b``."""
    return torch.where(a["cond"].bool(), a["a"], a["b"])


@operation("cast")
def cast(a: Arguments) -> Tensor:
    """To the type named; fractions are cut off towards zero."""
    name = a.text("dtype", "")
    if name not in CAST_NAMES:
        raise PackageError(f"cast to {name!r} is not known")
    return a["x"].to(a.declared)
