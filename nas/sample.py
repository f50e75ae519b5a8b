"""A video file from a prompt, and a contact sheet beside it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.errors import NasError
from nas.files import whole
from nas.finite import check_finite
from nas.outputs import MADE_BY
from nas.pretrained.folder import load_pipeline as load_pipeline

Frames = NDArray[np.uint8]  # (T, H, W, 3)

SHOWN = 256  # pixels: smaller videos are enlarged by whole factors, so that a player does not blur them


def sample_video(
    model: Path,
    prompts: Sequence[str],
    out: Path,
    *,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
    frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    overwrite: bool = False,
    warn: Callable[[str], None] = lambda message: None,
    progress: Callable[[int, int, str], None] = lambda done, total, told: None,
) -> dict[str, Any]:
    """Sample ``model`` (a folder as ``nas build`` writes it) and write ``out`` and ``out`` with ``.png``.

    Several prompts are sampled as one batch and written as ``NAME-0.mp4``, ``NAME-1.mp4`` and so on. The noise of a
    video depends on the seed and its place alone, so a video does not change with what stands after it.

    Args:
        steps, guidance: by default what the model was made for; see ``TextToVideoPipeline``.
        frames, height, width: in pixels; by default the training clip's. Other sizes are sampled too, and `warn` is
            told that the model has not seen them.
        overwrite: whether files that carry no line of ours are replaced too.
        progress: called with evaluations of the network done, how many there are, and a word.

    Returns:
        Paths, shape and settings of the samples.

    Raises:
        NasError: if the folder holds no model of this toolkit, a prompt does not fit its text encoder, a size does not
            divide, a file of somebody else stands in the way, or a frame holds what is no number.
    """
    import torch

    if steps is not None and steps < 1:
        raise NasError(f"--steps must be 1 or more, but is {steps}")
    if not prompts:
        raise NasError("nothing to sample; give --prompt, once or several times")
    if out.suffix.lower() != ".mp4":
        raise NasError(f"--out must end in .mp4, but is {out}; the contact sheet is written beside it as .png")
    if guidance is not None and not math.isfinite(guidance):
        raise NasError(f"--guidance must be a finite number, but is {guidance}; 1 is off")
    names = [out if len(prompts) == 1 else out.with_stem(f"{out.stem}-{i}") for i in range(len(prompts))]
    if not overwrite:
        check_outputs([file for name in names for file in (name, name.with_suffix(".png"))])
    pipeline = load_pipeline(model)
    space = pipeline.unet.space
    clip = space.clip("training")
    shape = (
        clip.frames if frames is None else frames,
        clip.height if height is None else height,
        clip.width if width is None else width,
    )
    latent = latent_shape(space, *shape)
    known = [[c.frames, c.height, c.width] for c in (clip, space.clip("deployment"))]
    if list(shape) not in [*known, *pipeline.sampling.get("clips", [])]:
        warn(f"{'x'.join(map(str, shape))} is none of the sizes that this model was made for; expect less of it")
    for prompt in prompts:
        if unknown := pipeline.unknown_words(prompt):
            warn(f"the text encoder has no word for {', '.join(map(repr, unknown))} in {prompt!r}")
    generators = [torch.Generator().manual_seed(seed + 1_000_003 * i) for i in range(len(prompts))]
    output = pipeline(
        list(prompts),
        num_inference_steps=steps,
        guidance_scale=guidance,
        num_frames=latent[0],
        height=latent[1],
        width=latent[2],
        generator=generators if len(prompts) > 1 else generators[0],
        callback=lambda done, total: progress(done, total, "steps" if done < total else "decoding"),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    files = []
    for i, video in enumerate(output.frames):
        name = names[i]
        pixels = enlarge(to_uint8(video.numpy()))
        write_video(name, pixels, clip.fps)
        write_contact_sheet(name.with_suffix(".png"), pixels)
        files.append({"video": str(name), "contact_sheet": str(name.with_suffix(".png")), "prompt": prompts[i]})
    return {
        **files[0],
        "videos": files,
        "frames": shape[0],
        "height": shape[1],
        "width": shape[2],
        "steps": output.steps,
        "sigmas": output.sigmas,
        "guidance": output.guidance,
        "seed": seed,
    }


def latent_shape(space: Any, frames: int, height: int, width: int) -> tuple[int, int, int]:
    """Latent frames, height and width of a clip in pixels.

    Raises:
        NasError: naming what a length or a side must divide by, and the nearest that does.
    """
    time, side = space.autoencoder.time, space.autoencoder.space
    down = max((position.downscale for position in space.positions), default=1) * side
    if space.autoencoder.causal and not space.autoencoder.divides(frames):
        near = 1 + max(0, round((frames - 1) / time)) * time
        raise NasError(
            f"frames must be 1 + a multiple of {time} for this model, but is {frames}; the nearest is {near}"
        )
    unit = 1 if space.autoencoder.causal else time
    for name, value, by in (("frames", frames, unit), ("height", height, down), ("width", width, down)):
        if value < 1 or value % by:
            near = max(by, round(value / by) * by)
            raise NasError(f"{name} must be a multiple of {by} for this model, but is {value}; the nearest is {near}")
    return space.autoencoder.latent_frames(frames), height // side, width // side


def check_outputs(files: Sequence[Path]) -> None:
    """Refuse to replace a video or picture that carries no line of ours.

    Raises:
        NasError: naming the first.
    """
    for file in files:
        if os.path.lexists(file) and not is_ours(file):
            raise NasError(
                f"{file}: is there already and was not made by nas sample; give another --out, or --overwrite"
            )


def is_ours(file: Path) -> bool:
    """Whether a video's or picture's own metadata says that this toolkit made it."""
    import av
    from PIL import Image

    try:
        if file.suffix.lower() == ".png":
            with Image.open(file) as picture:
                return picture.info.get("Software") == MADE_BY
        with av.open(str(file)) as container:
            return container.metadata.get("comment") == MADE_BY
    except (OSError, ValueError, SyntaxError, av.FFmpegError):
        return False


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
