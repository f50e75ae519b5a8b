"""What can be looked at while a training runs: curves through accelerate's trackers, and strips of sampled frames."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from nas.data.clip import Dataset
from nas.errors import NasError
from nas.sample import to_uint8

if TYPE_CHECKING:
    from nas.supernet import Supernet
    from nas.trained import Step
    from search_spaces.space import Space

STRIPS = "strips"
CURVES = ("loss", "loss_video", "loss_image", "learning_rate", "grad_norm", "frames_per_s", "loader_frames_per_s")
SAMPLED = 3  # captions a strip
STEPS = 20  # evaluations a sample
GAP = 4  # white pixels between frames


class Watch:
    """Curves of a training, in ``folder`` and wherever the trackers send them.

    Args:
        trackers: ``tensorboard`` writes to ``folder/tensorboard``; ``wandb`` needs its package and an account, or
            ``WANDB_MODE=offline``.
        step: where the training goes on; curves past it are drawn again.

    Raises:
        NasError: if a tracker's package is not installed.
    """

    def __init__(self, folder: Path, trackers: Sequence[str], step: int) -> None:
        self.folder = folder
        self.trackers: list[Any] = []
        for name in trackers:
            self.trackers.append(_tensorboard(folder, step) if name == "tensorboard" else _wandb(folder))

    def log(self, done: Step) -> None:
        """One step's curves."""
        values = {name: getattr(done, name) for name in CURVES if getattr(done, name) is not None}
        values["memory_mb"] = done.memory_mb
        if done.validation is not None:
            values["validation"] = done.validation
        for tracker in self.trackers:
            tracker.log(values, step=done.step)

    def strip(self, picture: NDArray[np.uint8], captions: Sequence[str], step: int) -> None:
        """Keep a strip, (height, width, 3), as a PNG, the captions of its rows beside it, and it with the curves."""
        from PIL import Image

        folder = self.folder / STRIPS
        folder.mkdir(exist_ok=True)
        (folder / "captions.json").write_text(json.dumps(list(captions), indent=1))
        Image.fromarray(picture).save(folder / f"step-{step:08d}.png")
        for tracker in self.trackers:
            order = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({"samples": picture[None]}, step=step, **order)

    def close(self) -> None:
        """Flush."""
        for tracker in self.trackers:
            tracker.finish()


def _tensorboard(folder: Path, step: int) -> Any:
    from accelerate.tracking import TensorBoardTracker

    try:
        tracker = TensorBoardTracker("tensorboard", folder, purge_step=step + 1)
        tracker.start()
    except ImportError:
        raise NasError(
            "train.trackers names tensorboard, which is not installed; pip install tensorboard, or train.trackers=[]"
        ) from None
    return tracker


def _wandb(folder: Path) -> Any:
    from accelerate.utils import is_wandb_available

    if not is_wandb_available():
        raise NasError("train.trackers names wandb, which is not installed; pip install wandb, or leave it out")
    from accelerate.tracking import WandBTracker

    tracker = WandBTracker("temporal-nas", dir=str(folder), resume="allow", id=folder.resolve().parent.name)
    tracker.start()
    return tracker


@torch.no_grad()
def draw_strip(
    supernet: Supernet,
    text: Any,
    data: Dataset,
    space: Space,
    device: torch.device,
    warn: Callable[[str], None],
) -> tuple[NDArray[np.uint8], list[str]] | None:
    """Sampled frames of a few captions, one a row, along the same path and from the same noise each time.

    Latents are decoded by the autoencoder that made them; where it cannot be loaded the strip is left out.

    Returns:
        (height, width, 3) bytes and the captions from top to bottom, or None.
    """
    from nas.data.cached import CachedLatents
    from nas.trained import fixed_paths

    captions = list(data.captions)[:: max(1, len(data.captions) // SAMPLED)][:SAMPLED]
    path = fixed_paths(space, 1)[0]
    frames, channels, height, width = space.latent_shape("training")
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(len(captions), frames, channels, height, width, generator=generator).to(device)
    context = text(captions)
    levels = torch.linspace(1, 0, STEPS + 1).tolist()
    for level, following in zip(levels, levels[1:], strict=False):
        told = torch.full((len(captions),), 1000.0 * level, device=device)
        velocity = supernet(sample.flatten(0, 1), told, context, frames, path).unflatten(0, (-1, frames))
        sample = sample + (following - level) * velocity.float()
    if isinstance(data, CachedLatents):
        try:
            autoencoder = data.autoencoder(device)
        except NasError as error:
            warn(f"no strip of samples: {error}")
            return None
        sample = torch.stack([autoencoder.decode(one) for one in sample])
    pixels = to_uint8(((sample.float() + 1) / 2).permute(0, 1, 3, 4, 2).cpu().numpy())
    factor = max(1, 64 // pixels.shape[2])
    pixels = pixels.repeat(factor, axis=2).repeat(factor, axis=3)
    edged = np.pad(pixels, ((0, 0), (0, 0), (0, GAP), (0, GAP), (0, 0)), constant_values=255)
    picture = np.concatenate([np.concatenate(list(video), axis=1) for video in edged], axis=0)
    return np.ascontiguousarray(picture[:-GAP, :-GAP]), captions
