"""Other forms of a block: the same function of the same weights, laid out as some hardware likes it better.

| form | blocks | what changes |
|---|---|---|
| ``conv1x1`` | all attentions | projections are 1x1 convolutions over (N, C, 1, L), as the Neural Engine likes them |
| ``tiled`` | CrossAttention1D | locations go into the batch, and keys and values are copied for each |
| ``time_last`` | Conv1D | time is the width of the convolution instead of its height |
| ``taps`` | Conv3D | a sum of two-dimensional convolutions, one a tap in time |

A lowering is named ``attention+form``, such as ``fused+conv1x1``. torch is imported when a form is applied.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

ATTENTIONS = ("SelfAttention1D", "SelfAttention3D", "CrossAttention1D", "CrossAttention3D")
FORMS: dict[str, tuple[str, ...]] = {
    "conv1x1": ATTENTIONS,
    "tiled": ("CrossAttention1D",),
    "time_last": ("Conv1D",),
    "taps": ("Conv3D",),
}
LOWERING_NAMES = (
    *("plain", "fused", "decomposed"),
    *(
        f"{how}+{form}"
        for form, blocks in FORMS.items()
        for how in ("plain", "fused", "decomposed")
        if how == "plain" or blocks[0] in ATTENTIONS
    ),
)


def forms_of(block: str) -> tuple[str, ...]:
    """The forms that a block has beside its own."""
    return tuple(form for form, blocks in FORMS.items() if block in blocks)


def split(lowering: str) -> tuple[str, str]:
    """How attention is lowered, and the form; the latter may be empty.

    >>> split("fused+conv1x1"), split("plain")
    (('fused', 'conv1x1'), ('plain', ''))
    """
    attention, _, form = lowering.partition("+")
    return attention, form


def reform(module: nn.Module, lowering: str) -> nn.Module:
    """The module with every block in the lowering's form, in place; weights are not touched.

    What holds no such block stays as it is, as the backbone's segment from which a block in context is told.
    """
    form = split(lowering)[1]
    if not form:
        return module
    kinds = importlib.import_module("device_profiler.lowering.reformed").KINDS[form]
    for part in module.modules():
        if type(part) in kinds:
            part.__class__ = kinds[type(part)]
    return module
