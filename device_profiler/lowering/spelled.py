"""Torch functions spelled so that Core ML's converter keeps their meaning, while a module is exported.

coremltools 9.0 converts some functions to others, loses their fused operation, or fails on them:

| function | what happens | spelled here as |
|---|---|---|
| ``rms_norm`` | epsilon is multiplied by max(x)^2, and a zero row gives NaN | squares of values scaled to 128 at most |
| ``group_norm`` on five axes | a sixth axis, which Core ML lacks | places in one axis |
| attention with ``scale=`` | four operations in place of the fused one | the query scaled before it |
| grouped-query attention | refused, or keys and values copied | the query heads of a group in one sequence |
| ``torch.concatenate`` | not known | ``torch.cat`` |
| a slice of all there is | ``alias`` is not known | its input (``DECOMPOSITIONS``) |

Where float16 must hold what it cannot, ``safe`` spells these too:

| function | beyond float16 where | safe |
|---|---|---|
| ``group_norm`` | a value is 256 from its group's mean: its square overflows | values scaled to 128 at most |
| spelled-out attention | a score is beyond 65,504 | scores in 64ths, the largest taken off before the softmax |

Sines and what leads to them are the converter's part: it keeps them in float32 (``keeps_float16``), safe or not. A
timestep that enters in float16 is rounded all the same; ``coreml.convert(wide=...)`` lets it enter in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from device_profiler.errors import Unsupported

SCALED = 128.0  # squares stay below 16,384, and the mean of half a million with one of them is a normal float16
PARTS = 64.0  # of a score: safe up to four million
LEAST = -512.0  # 64ths below the largest: exp(-32768) is zero


class Spelling(TorchFunctionMode):
    """While entered, the functions above are replaced by their spellings.

    Args:
        fused: keep attention one operation; else spell it out.
        safe: spell what may leave float16's range, too.
    """

    def __init__(self, *, fused: bool = True, safe: bool = False) -> None:
        super().__init__()
        attend = attention if fused else safe_spelled_out if safe else spelled_out
        normalise = safe_group_norm if safe else group_norm
        self._table: dict[Any, Callable[..., Any]] = {
            F.scaled_dot_product_attention: attend,
            **{F.rms_norm: rms_norm, torch.rms_norm: rms_norm},
            **{F.group_norm: normalise, torch.group_norm: normalise},
            torch.concatenate: torch.cat,
        }

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self._table.get(func, func)(*args, **(kwargs or {}))


DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {torch.ops.aten.alias.default: lambda x: x}


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``F.scaled_dot_product_attention`` in the one form that stays fused: no scale, as many heads of each.

    Query heads that share keys and values are laid one after the other in one sequence, so nothing is copied.
    """
    usual = query.shape[-1] ** -0.5
    if scale is not None and scale != usual:
        query = query * (scale / usual)
    groups = query.shape[-3] // key.shape[-3] if enable_gqa else 1
    if groups == 1:
        return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal)
    length, width = query.shape[-2:]
    heads = key.shape[-3]
    if is_causal:
        attn_mask = torch.ones(length, key.shape[-2], dtype=torch.bool).tril()
    if attn_mask is not None:
        if attn_mask.dim() > 2 and attn_mask.shape[-3] != 1:
            raise Unsupported("grouped-query attention with a mask for each head has no fused lowering")
        attn_mask = attn_mask.expand(*attn_mask.shape[:-2], length, key.shape[-2])
        attn_mask = torch.cat([attn_mask] * groups, -2)
    folded = query.reshape(*query.shape[:-3], heads, groups * length, width)
    answer = F.scaled_dot_product_attention(folded, key, value, attn_mask, dropout_p)
    return answer.reshape(*query.shape[:-1], value.shape[-1])


def spelled_out(
    query: Tensor, key: Tensor, value: Tensor, *rest: Any, scale: float | None = None, **named: Any
) -> Tensor:
    """Attention as two products and a softmax; the scale is applied to the scores.

    Raises:
        Unsupported: with a mask, dropout or grouped heads.
    """
    _refuse(rest, named)
    scores = query @ key.transpose(-2, -1)
    return (scores * (query.shape[-1] ** -0.5 if scale is None else scale)).softmax(-1) @ value


def safe_spelled_out(
    query: Tensor, key: Tensor, value: Tensor, *rest: Any, scale: float | None = None, **named: Any
) -> Tensor:
    """``spelled_out`` with scores that float16 can hold up to four million: in 64ths until the largest is taken off.

    Raises:
        Unsupported: as ``spelled_out``.
    """
    _refuse(rest, named)
    parts = (query * ((query.shape[-1] ** -0.5 if scale is None else scale) / PARTS)) @ key.transpose(-2, -1)
    below = (parts - parts.amax(-1, keepdim=True)).clamp_min(LEAST)
    return (below * PARTS).softmax(-1) @ value


def _refuse(rest: Sequence[Any], named: dict[str, Any]) -> None:
    for given in (*rest, *named.values()):
        if isinstance(given, Tensor) or given not in (None, False, 0.0):
            raise Unsupported("attention with a mask, dropout or grouped heads has no decomposed lowering")


def rms_norm(
    x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last axes, with no square above 16,384."""
    axes = list(range(-len(normalized_shape), 0))
    normed = _over_root_mean_square(x, axes, torch.finfo(x.dtype).eps if eps is None else eps)
    return normed if weight is None else normed * weight


def group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    """``F.group_norm``; what would need a sixth axis has its places in one."""
    flat = x.reshape(*x.shape[:2], -1) if x.dim() > 4 else x
    return F.group_norm(flat, num_groups, weight, bias, eps).reshape(x.shape)


def safe_group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    """``group_norm`` with no square above 16,384, whatever a value's distance from its group's mean."""
    grouped = x.reshape(x.shape[0], num_groups, -1)
    normed = _over_root_mean_square(grouped - grouped.mean(-1, keepdim=True), [-1], eps).reshape(x.shape)
    shape = [1, -1] + [1] * (x.dim() - 2)
    if weight is not None:
        normed = normed * weight.reshape(shape)
    return normed if bias is None else normed + bias.reshape(shape)


def _over_root_mean_square(x: Tensor, axes: list[int], eps: float) -> Tensor:
    """``x / sqrt(mean(x^2) + eps)``, of ``x`` scaled to 128 at most and epsilon scaled alike."""
    shrink = 1 / x.abs().amax(axes, keepdim=True).clamp_min(1.0)
    scaled = x * (SCALED * shrink)
    spread = (scaled * scaled).mean(axes, keepdim=True) + (eps * SCALED**2) * (shrink * shrink)
    return scaled / spread.sqrt()


ANGLES = {"sin", "cos"}
MOVES = {"expand_dims", "reshape", "squeeze", "tile", "identity", "transpose", "slice_by_index", "concat", "cast"}
LEADS_TO_ANGLES = ANGLES | MOVES | {"mul", "add", "sub", "real_div"}


def keeps_float16(op: Any) -> bool:
    """Whether an operation of coremltools' program may be in float16: all but sines and what leads to them.

    float16 steps by a half near 1,000, and the frequencies of a timestep's embedding are rounded as coarsely: of an
    angle of that size, the sine is anything.
    """
    seen: set[int] = set()
    waiting = [op]
    while waiting:
        one = waiting.pop()
        if one.op_type in ANGLES:
            return False
        if one.op_type in LEADS_TO_ANGLES and id(one) not in seen:
            seen.add(id(one))
            waiting.extend(child for output in one.outputs for child in output.child_ops)
    return True
