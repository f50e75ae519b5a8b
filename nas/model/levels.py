"""The noise levels and guidance that a model is sampled with, and one step from a level to the next."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nas.errors import NasError

STEPS = 25  # of a model that was made for no number of its own


def plan_levels(
    sampling: Mapping[str, Any],
    steps: int | None = None,
    sigmas: Sequence[float] | None = None,
    guidance: float | None = None,
) -> tuple[list[float], float]:
    """The noise levels and the guidance of a call with these arguments.

    Args:
        sampling: how the model was made to be sampled: ``sigmas`` and ``guidance``, where it was.

    Raises:
        NasError: if there is no step, the guidance is no number, or the noise levels do not fall.
    """
    import torch

    trained = list(sampling.get("sigmas", ()))
    count = steps if steps is not None else len(sigmas or trained) or STEPS
    if count < 1:
        raise NasError(f"num_inference_steps must be 1 or more, but is {count}")
    as_trained = not sigmas and len(trained) == count
    levels = list(sigmas or (trained if as_trained else torch.linspace(1, 1 / count, count).tolist()))
    if guidance is None:
        guidance = float(sampling.get("guidance", 1.0)) if as_trained else 1.0
    if not math.isfinite(guidance):
        raise NasError(f"guidance must be a finite number, but is {guidance}; 1 is off")
    if not all(1 >= a > b > 0 for a, b in zip(levels, [*levels[1:], 1e-12], strict=True)):
        raise NasError(f"sigmas must fall, from 1 or less to above 0, but are {levels}")
    return levels, guidance
