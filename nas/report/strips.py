"""Clips as pictures in the page: animated strips, and the same frames laid out in a sheet."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image


def animated_strip(clips: Sequence[np.ndarray], fps: float) -> str:
    """Clips side by side as one looping lossless WebP, a data URI; the browser scales it up without smoothing.

    Args:
        clips: each (T, H, W, 3) uint8, of one shape; they play in step.
    """
    frames = [_picture(_row([clip[t] for clip in clips])) for t in range(clips[0].shape[0])]
    buffer = io.BytesIO()
    frames[0].save(
        buffer,
        format="WEBP",
        save_all=True,
        append_images=frames[1:],
        duration=round(1000 / fps),
        loop=0,
        lossless=True,
        exact=True,
    )
    return _data_uri(buffer, "image/webp")


def still(clips: Sequence[np.ndarray]) -> str:
    """The middle frames side by side, for readers who asked for no motion."""
    return _png(_row([clip[clip.shape[0] // 2] for clip in clips]))


def sheet(clips: Sequence[np.ndarray]) -> str:
    """Every frame: a row a clip, a column a frame."""
    gap = _gap(clips[0].shape[2])
    rows = [_row(list(clip)) for clip in clips]
    spacer = np.zeros((gap, rows[0].shape[1], 4), np.uint8)
    return _png(np.concatenate([part for row in rows for part in (row, spacer)][:-1]))


def _gap(width: int) -> int:
    return max(1, width // 12)


def _row(frames: Sequence[np.ndarray]) -> np.ndarray:
    """(H, W, 3) frames side by side with transparent gaps: (H, ..., 4)."""
    height, width = frames[0].shape[:2]
    opaque = np.full((height, width, 1), 255, np.uint8)
    spacer = np.zeros((height, _gap(width), 4), np.uint8)
    parts = [part for frame in frames for part in (np.concatenate([frame, opaque], axis=2), spacer)]
    return np.concatenate(parts[:-1], axis=1)


def _picture(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels), mode=None)


def _png(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    _picture(pixels).save(buffer, format="PNG", optimize=True)
    return _data_uri(buffer, "image/png")


def _data_uri(buffer: io.BytesIO, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(buffer.getvalue()).decode()}"
