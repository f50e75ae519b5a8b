"""A video file from a prompt, and a contact sheet beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.errors import NasError

Frames = NDArray[np.uint8]  # (T, H, W, 3)

SHOWN = 256  # pixels: smaller videos are enlarged by whole factors, so that a player does not blur them


def sample_video(
    model: Path, prompt: str, out: Path, *, steps: int = 25, guidance: float = 1.0, seed: int = 0
) -> dict[str, Any]:
    """Sample ``model`` (a folder as ``nas build`` writes it) and write ``out`` and ``out`` with ``.png``.

    Returns:
        Paths, shape and settings of the sample.

    Raises:
        NasError: if the folder holds no model of this toolkit, or the prompt does not fit its text encoder.
    """
    import torch

    if steps < 1:
        raise NasError(f"--steps must be 1 or more, but is {steps}")
    if out.suffix.lower() != ".mp4":
        raise NasError(f"--out must end in .mp4, but is {out}; the contact sheet is written beside it as .png")
    pipeline = load_pipeline(model)
    generator = torch.Generator().manual_seed(seed)
    output = pipeline(prompt, num_inference_steps=steps, guidance_scale=guidance, generator=generator)
    frames = to_uint8(output.frames[0].numpy())
    fps = pipeline.unet.space.clip("training").fps
    out.parent.mkdir(parents=True, exist_ok=True)
    write_video(out, enlarge(frames), fps)
    sheet = out.with_suffix(".png")
    write_contact_sheet(sheet, enlarge(frames))
    return {
        "video": str(out),
        "contact_sheet": str(sheet),
        "prompt": prompt,
        "frames": int(frames.shape[0]),
        "height": int(frames.shape[1]),
        "width": int(frames.shape[2]),
        "steps": steps,
        "guidance": guidance,
        "seed": seed,
    }


def load_pipeline(model: Path) -> Any:
    """The pipeline of a model folder; one sentence instead of a library's traceback when it is none."""
    from safetensors import SafetensorError

    from nas.pipeline import TextToVideoPipeline

    if not (model / "model_index.json").is_file():
        raise NasError(f"{model}: no model_index.json there; give the folder that nas build wrote, such as RUN/model")
    try:
        with no_bars():
            return TextToVideoPipeline.from_pretrained(str(model), local_files_only=True)
    except (OSError, KeyError, RuntimeError, TypeError, ValueError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise NasError(f"{model}: damaged, or of another version of the toolkit ({first}); build it again") from error


@contextmanager
def no_bars() -> Iterator[None]:
    """diffusers and transformers draw a bar for every file, over ours; off while this lasts."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries: list[Any] = [diffusers_logging, transformers_logging]
    shown = [library.is_progress_bar_enabled() for library in libraries]
    for library in libraries:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, was_shown in zip(libraries, shown, strict=True):
            if was_shown:
                library.enable_progress_bar()


def to_uint8(frames: NDArray[Any]) -> Frames:
    """Floats in 0..1 to bytes."""
    return np.round(np.clip(frames, 0, 1) * 255).astype(np.uint8)


def enlarge(frames: Frames) -> Frames:
    """Repeat pixels so that the longer side has about ``SHOWN`` of them; never shrinks."""
    factor = max(1, SHOWN // max(frames.shape[1:3]))
    return frames.repeat(factor, axis=1).repeat(factor, axis=2)


def write_video(path: Path, frames: Frames, fps: float) -> None:
    """H.264 in an MP4; sizes must be even, as yuv420p wants them."""
    import av

    with av.open(str(path), "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "16"}
        for frame in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def write_contact_sheet(path: Path, frames: Frames) -> None:
    """All frames in reading order on one PNG."""
    from PIL import Image

    count, height, width, _ = frames.shape
    columns = min(4, count)
    rows = -(-count // columns)
    gap = 4
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for i, frame in enumerate(frames):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        sheet[top : top + height, left : left + width] = frame
    Image.fromarray(sheet).save(path)
