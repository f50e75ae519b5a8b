"""Measures that need no weights: flicker, motion, consistency of frames; contrast and edges of pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.errors import NasError

Videos = NDArray[Any]  # (N, T, H, W, 3) floats in 0..1


def pixel_metrics(videos: Videos) -> dict[str, float]:
    """Mean over videos of three measures; read them beside those of real clips, a frozen video has the best flicker.

    Of pictures, which are videos of one frame, ``contrast``, the standard deviation of their values, and ``edges``, the
    mean absolute difference of neighbouring pixels, both 0..1.

    Returns:
        flicker: mean absolute second difference in time, 0..1: brightness that comes and goes, where a steady motion
            mostly cancels. motion: mean absolute difference of neighbouring frames, 0..1. consistency: correlation of
            neighbouring frames' pixels, -1..1; a pair without any contrast counts as 1 if its frames are equal.

    Raises:
        NasError: if the videos have two frames; a second difference needs three.
    """
    check_frames(videos.shape[1])
    v = videos.astype(np.float64)
    if v.shape[1] == 1:
        across, down = (np.abs(np.diff(v, axis=axis)).mean() for axis in (3, 2))
        return {"contrast": float(v.std(axis=(1, 2, 3)).mean()), "edges": float((across + down) / 2)}
    first = np.diff(v, axis=1)
    flat = v.reshape(v.shape[0], v.shape[1], -1)
    flat = flat - flat.mean(axis=2, keepdims=True)
    left, right = flat[:, :-1], flat[:, 1:]
    scale = np.sqrt((left**2).sum(2) * (right**2).sum(2))
    same = np.all(left == right, axis=2).astype(np.float64)
    consistency = np.where(scale > 1e-12, (left * right).sum(2) / np.maximum(scale, 1e-12), same)
    return {
        "flicker": float(np.abs(np.diff(first, axis=1)).mean()),
        "motion": float(np.abs(first).mean()),
        "consistency": float(consistency.mean()),
    }


def check_frames(count: int) -> None:
    """Refuse videos that are too short to be measured.

    Raises:
        NasError: if they have two frames; pictures, of one, are measured otherwise.
    """
    if count == 2:
        raise NasError(f"flicker is measured over three frames or more, but the videos have {count}")
