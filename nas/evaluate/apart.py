"""Quality of few steps, apart: Frechet distance of single frames, and of what changes between frames.

A model of one step may lose motion and keep sharp frames, or the other way round (SF-V, arXiv 2406.04324, table 3:
spatial heads alone froze the clip, temporal heads alone lost the frames); one distance of whole clips hides which.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.evaluate.frechet import frechet_distance

CELLS = 4  # a side; a frame is told by the mean and the spread of each colour in every cell
MOST = 8192  # frames that are compared, evenly chosen


def frame_features(frames: NDArray[Any]) -> NDArray[np.float64]:
    """(N, H, W, 3) to (N, 96): mean and standard deviation of each colour in a grid of 4x4 cells; no weights needed."""
    rows = [np.array_split(band, CELLS, axis=2) for band in np.array_split(frames.astype(np.float64), CELLS, axis=1)]
    cells = [cell.reshape(len(frames), -1, frames.shape[-1]) for row in rows for cell in row if cell.size]
    return np.concatenate([told for cell in cells for told in (cell.mean(1), cell.std(1))], axis=1)


def apart(real: NDArray[Any], made: NDArray[Any]) -> dict[str, float]:
    """``frechet_frames`` and, for clips of two frames or more, ``frechet_differences``; (N, T, H, W, 3) in 0..1.

    Both are squared distances of colours in 0..1 and so small; they compare models on the same data and clip only.
    """
    told = {"frechet_frames": frechet_distance(_told(real), _told(made))}
    if real.shape[1] > 1 and made.shape[1] > 1:
        told["frechet_differences"] = frechet_distance(_told(_differences(real)), _told(_differences(made)))
    return told


def _differences(videos: NDArray[Any]) -> NDArray[np.float64]:
    return np.diff(videos.astype(np.float64), axis=1)


def _told(videos: NDArray[Any]) -> NDArray[np.float64]:
    frames = videos.reshape(-1, *videos.shape[2:])
    which = np.linspace(0, len(frames) - 1, min(MOST, len(frames))).round().astype(int)
    return frame_features(frames[which])
