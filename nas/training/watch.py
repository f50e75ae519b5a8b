"""What can be looked at while a training runs: curves through accelerate's trackers, and strips of sampled frames."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nas.errors import NasError

if TYPE_CHECKING:
    from nas.training.log import Step

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
