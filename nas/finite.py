"""Numbers for people are numbers: what is not finite stops at the edge, in one line."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from nas.errors import NasError


def check_finite(value: Any, what: str, remedy: str) -> None:
    """Refuse a number, array or tensor, or a mapping or sequence of them, that holds NaN or infinity.

    Called once wherever something leaves for a person: a video, a picture, a package, a row, a metric.

    Args:
        what: what it is, for the sentence. remedy: what to do.

    Raises:
        NasError: naming which value, and how many are not finite.
    """
    bad = _first_bad(value, "")
    if bad is not None:
        place, found = bad
        raise NasError(f"{what}{place}: {found}; {remedy}")


def check_weights(model: Any, source: str) -> None:
    """Refuse a model with a weight that is not finite.

    Raises:
        NasError: naming the tensor.
    """
    for name, tensor in model.state_dict().items():
        check_finite(tensor, f"{source}: its weight {name}", "get or train the model anew")


def _first_bad(value: Any, place: str) -> tuple[str, str] | None:
    if isinstance(value, Mapping):
        found = (_first_bad(inner, f"{place} {key}") for key, inner in value.items())
        return next((bad for bad in found if bad is not None), None)
    if isinstance(value, (list, tuple)):
        found = (_first_bad(inner, f"{place}[{index}]") for index, inner in enumerate(value))
        return next((bad for bad in found if bad is not None), None)
    if isinstance(value, float):
        return None if math.isfinite(value) else (place, f"is {value}, not a finite number")
    torch = sys.modules.get("torch")  # where it was never imported, nothing is a tensor
    if torch is not None and isinstance(value, torch.Tensor):
        if not (value.is_floating_point() or value.is_complex()) or bool(torch.isfinite(value).all()):
            return None
        return place, f"{int((~torch.isfinite(value)).sum()):,} of {value.numel():,} values are not finite"
    if isinstance(value, (np.ndarray, np.generic)):
        array = np.asarray(value)
        if array.dtype.kind not in "fc" or bool(np.isfinite(array).all()):
            return None
        return place, f"{int((~np.isfinite(array)).sum()):,} of {array.size:,} values are not finite"
    return None
