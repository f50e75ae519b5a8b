"""Motion energy of a model's samples, prompt by prompt, and whether a change of the model lost some of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95


def motion_energy(videos: NDArray[Any]) -> NDArray[np.float64]:
    """(N,) mean absolute differences of neighbouring frames of (N, T, H, W, 3) in 0..1; 0 for single frames."""
    if videos.shape[1] < 2:
        return np.zeros(len(videos))
    steps = np.abs(np.diff(videos.astype(np.float64), axis=1))
    return np.asarray(steps.reshape(len(videos), -1).mean(1))


def sampled_motion(
    pipeline: Any, prompts: Sequence[str], *, batch: int, steps: int | None, seed: int
) -> NDArray[np.float64]:
    """(N,) motion energy of one sample a prompt, as the model was made to be sampled; a prompt's noise is its own."""
    import torch

    found = []
    for first in range(0, len(prompts), batch):
        some = list(prompts[first : first + batch])
        noise = [torch.Generator().manual_seed((seed * 1_000_003 + first + i) % 2**32) for i in range(len(some))]
        made = pipeline(some, num_inference_steps=steps, generator=noise if len(some) > 1 else noise[0])
        found.append(motion_energy(made.frames.numpy()))
    return np.concatenate(found)


def compared(before: NDArray[np.float64], after: NDArray[np.float64]) -> dict[str, float]:
    """What a change of the model did to motion, the same prompts and noise before and after.

    Returns:
        ``before`` and ``after``, means over prompts; ``change``, ``after - before``, with ``low`` and ``high``, its
        interval by Student's t over prompts; ``prompts``, how many.
    """
    from scipy.stats import t

    gaps = after - before
    error = float(gaps.std(ddof=1)) / math.sqrt(len(gaps))
    reach = float(t.ppf(0.5 + CONFIDENCE / 2, len(gaps) - 1)) * error
    change = float(gaps.mean())
    return {
        "before": float(before.mean()),
        "after": float(after.mean()),
        "change": change,
        "low": change - reach,
        "high": change + reach,
        "prompts": len(gaps),
    }


def fell(motion: Mapping[str, float]) -> bool:
    """Whether motion fell by more than chance over prompts explains."""
    return motion["high"] < 0


def sentence(motion: Mapping[str, float]) -> str:
    """What happened to motion, in one sentence."""
    before, after = motion["before"], motion["after"]
    low, high, count = motion["low"], motion["high"], int(motion["prompts"])
    numbers = f"from {before:.4f} to {after:.4f} (change {low:+.4f} to {high:+.4f}, 95% over {count} prompts)"
    if fell(motion):
        share = f" by {1 - after / before:.0%}" if before > 0 else ""
        return (
            f"Motion fell{share}, {numbers}: more than chance explains, look at the videos before you keep this model"
        )
    if motion["low"] > 0:
        return f"Motion rose, {numbers}"
    return f"Motion did not change beyond chance, {numbers}"
