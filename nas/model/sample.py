"""A video file from a prompt, and a contact sheet beside it; or a sheet of pictures."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from nas.errors import NasError
from nas.media import enlarge, to_uint8, write_contact_sheet, write_video
from nas.model.packages import Packages, is_packages
from nas.outputs import MADE_BY
from search_spaces.reading import check_text
from search_spaces.space import latent_shape

if TYPE_CHECKING:
    import torch

    from nas.model.pipeline import VideoOutput

Shape = tuple[int, int, int]  # frames, height, width in pixels


class Sampler(Protocol):
    """What a video is sampled from: a model folder, or packages."""

    @property
    def fps(self) -> float: ...

    def shape(self, *wanted: int | None) -> tuple[Shape, bool]:
        """The size with its own in place of what is not given, and whether the model was made for it."""
        ...

    def unknown_words(self, prompt: str) -> list[str]: ...

    def sample(
        self,
        prompts: Sequence[str],
        shape: Shape,
        generators: Sequence[torch.Generator],
        steps: int | None,
        guidance: float | None,
        callback: Callable[[int, int], None],
    ) -> VideoOutput: ...


class Model:
    """A model folder as a ``Sampler``."""

    def __init__(self, folder: Path) -> None:
        from nas.model.pipeline import load_pipeline

        self._pipeline = load_pipeline(folder)
        self._space = self._pipeline.unet.space

    @property
    def fps(self) -> float:
        return float(self._space.clip("training").fps)

    def shape(self, *wanted: int | None) -> tuple[Shape, bool]:
        own, deployed = self._space.clip("training"), self._space.clip("deployment")
        sizes = (own.frames, own.height, own.width)
        frames, height, width = (size if size is not None else ours for size, ours in zip(wanted, sizes, strict=True))
        made = [list(sizes), [deployed.frames, deployed.height, deployed.width]]
        latent_shape(self._space, frames, height, width)  # refused here, before a prompt is read
        return (frames, height, width), [frames, height, width] in [*made, *self._pipeline.sampling.get("clips", [])]

    def unknown_words(self, prompt: str) -> list[str]:
        return list(self._pipeline.unknown_words(prompt))

    def sample(
        self,
        prompts: Sequence[str],
        shape: Shape,
        generators: Sequence[torch.Generator],
        steps: int | None,
        guidance: float | None,
        callback: Callable[[int, int], None],
    ) -> VideoOutput:
        frames, height, width = latent_shape(self._space, *shape)
        output: VideoOutput = self._pipeline(
            list(prompts),
            num_inference_steps=steps,
            guidance_scale=guidance,
            num_frames=frames,
            height=height,
            width=width,
            generator=list(generators) if len(prompts) > 1 else generators[0],
            callback=callback,
        )
        return output


def sample_video(
    model: Path,
    prompts: Sequence[str],
    out: Path | None = None,
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
    """Sample ``model`` (what ``nas build`` or ``nas export`` wrote) and write ``out`` and ``out`` with ``.png``.

    Pictures, which are videos of one frame, go on one sheet, a ``.png``, in the prompts' order.

    Several prompts are sampled as one batch and written as ``NAME-0.mp4``, ``NAME-1.mp4`` and so on. The noise of a
    video depends on the seed and its place alone, so a video does not change with what stands after it.

    Args:
        out: by default ``out.mp4``, or ``out.png`` for pictures.
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

    _check_options(prompts, out, steps, guidance)
    opened: Sampler = Packages(model) if is_packages(model) else Model(model)
    shape, known = opened.shape(frames, height, width)
    names = _names(out, len(prompts), pictures=shape[0] == 1)
    if not overwrite:
        check_outputs([file for name in names for file in dict.fromkeys((name, name.with_suffix(".png")))])
    _warn(opened, prompts, shape, known, warn)
    progress(0, steps or 1, "steps")  # large sizes take their time until the first one is done
    output = opened.sample(
        list(prompts),
        shape,
        [torch.Generator().manual_seed(seed + 1_000_003 * i) for i in range(len(prompts))],
        steps,
        guidance,
        lambda done, total: progress(done, total, "steps" if done < total else "decoding"),
    )
    size = dict(zip(("frames", "height", "width"), shape, strict=True))
    made_with = {"steps": output.steps, "sigmas": output.sigmas, "guidance": output.guidance, "seed": seed}
    return {**_written(names, output.frames, prompts, opened.fps), **size, **made_with}


def _warn(opened: Sampler, prompts: Sequence[str], shape: Shape, known: bool, warn: Callable[[str], None]) -> None:
    """Say what the model was not made for: the size, and words of the prompts."""
    if not known:
        warn(f"{'x'.join(map(str, shape))} is none of the sizes that this model was made for; expect less of it")
    for prompt in prompts:
        if unknown := opened.unknown_words(prompt):
            warn(f"the text encoder has no word for {', '.join(map(repr, unknown))} in {prompt!r}")


def _names(out: Path | None, count: int, *, pictures: bool) -> list[Path]:
    """The files that samples are written to: a sheet of pictures, or a video each."""
    out = out or Path("out.png" if pictures else "out.mp4")
    if pictures and out.suffix.lower() != ".png":
        raise NasError(f"--out must end in .png, but is {out}; of one frame each, samples are pictures on one sheet")
    if not pictures and out.suffix.lower() != ".mp4":
        raise NasError(f"--out must end in .mp4, but is {out}; the contact sheet is written beside it as .png")
    return [out] if pictures or count == 1 else [out.with_stem(f"{out.stem}-{i}") for i in range(count)]


def _check_options(prompts: Sequence[str], out: Path | None, steps: int | None, guidance: float | None) -> None:
    if steps is not None and steps < 1:
        raise NasError(f"--steps must be 1 or more, but is {steps}")
    if not prompts:
        raise NasError("nothing to sample; give --prompt, once or several times")
    if out is not None and out.suffix.lower() not in (".mp4", ".png"):
        raise NasError(f"--out must end in .mp4, or in .png for pictures, but is {out}")
    for prompt in prompts:
        if (wrong := check_text(prompt)) is not None:
            raise NasError(f"--prompt {prompt!r} {wrong}; write plain text")
    if guidance is not None and not math.isfinite(guidance):
        raise NasError(f"--guidance must be a finite number, but is {guidance}; 1 is off")


def _written(names: Sequence[Path], videos: Any, prompts: Sequence[str], fps: float) -> dict[str, Any]:
    """Write pictures or videos, and tell of the files."""
    if videos.shape[1] == 1:
        return _write_pictures(names[0], videos, prompts)
    files = _write(names, videos, prompts, fps)
    return {**files[0], "videos": files}


def _write(names: Sequence[Path], videos: Any, prompts: Sequence[str], fps: float) -> list[dict[str, str]]:
    """Videos (N, T, H, W, 3) in 0..1 as files, each with its contact sheet."""
    names[0].parent.mkdir(parents=True, exist_ok=True)
    files = []
    for name, video, prompt in zip(names, videos, prompts, strict=True):
        pixels = enlarge(to_uint8(video.numpy()))
        write_video(name, pixels, fps)
        write_contact_sheet(name.with_suffix(".png"), pixels)
        files.append({"video": str(name), "contact_sheet": str(name.with_suffix(".png")), "prompt": prompt})
    return files


def _write_pictures(sheet: Path, videos: Any, prompts: Sequence[str]) -> dict[str, Any]:
    """Pictures (N, 1, H, W, 3) in 0..1 on one sheet, in reading order."""
    sheet.parent.mkdir(parents=True, exist_ok=True)
    write_contact_sheet(sheet, enlarge(to_uint8(videos[:, 0].numpy())))
    return {"picture": str(sheet), "prompts": list(prompts)}


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
