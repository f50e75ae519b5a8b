"""Frames for people: bytes, video files, contact sheets."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.files import whole
from nas.finite import check_finite
from nas.outputs import MADE_BY

Frames = NDArray[np.uint8]  # (T, H, W, 3)
SHOWN = 256  # pixels: smaller videos are enlarged by whole factors, so that a player does not blur them


def to_uint8(frames: NDArray[Any]) -> Frames:
    """Floats in 0..1 to bytes.

    Raises:
        NasError: if a value is not finite.
    """
    check_finite(frames, "the frames", "check the model and its weights")
    return np.round(np.clip(frames, 0, 1) * 255).astype(np.uint8)


def enlarge(frames: Frames) -> Frames:
    """Repeat pixels so that the longer side has about ``SHOWN`` of them; never shrinks."""
    factor = max(1, SHOWN // max(frames.shape[1:3]))
    return frames.repeat(factor, axis=1).repeat(factor, axis=2)


def write_video(path: Path, frames: Frames, fps: float) -> None:
    """H.264 in an MP4, whole or not at all; sizes must be even, as yuv420p wants them."""
    import av

    with whole(path) as file, av.open(file, "w", format="mp4") as container:
        container.metadata["comment"] = MADE_BY
        stream: Any = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "16"}
        for frame in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def write_contact_sheet(path: Path, frames: Frames, columns: int = 4) -> None:
    """All frames in reading order on one PNG, up to ``columns`` in a row; whole or not at all."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    count, height, width, _ = frames.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    gap = 4
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for i, frame in enumerate(frames):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        sheet[top : top + height, left : left + width] = frame
    told = PngInfo()
    told.add_text("Software", MADE_BY)
    with whole(path) as file:
        Image.fromarray(sheet).save(file, format="PNG", pnginfo=told)
