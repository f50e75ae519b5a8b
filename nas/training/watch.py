"""What can be looked at while a training runs: curves through accelerate's trackers, and strips of sampled frames."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.errors import NasError

STRIPS = "strips"
Strip = tuple[NDArray[np.uint8], list[str]]  # (height, width, 3) and the captions of its rows
NO_CURVES = ("step", "seconds", "waited")
GAP = 4  # white pixels between frames


class Watch:
    """Curves of a training, in ``folder`` and wherever the trackers send them.

    Args:
        trackers: ``tensorboard`` writes to ``folder/tensorboard``; ``wandb`` needs its package and an account, or
            ``WANDB_MODE=offline``.
        step: where the training goes on; curves past it are drawn again. key: the setting that names the trackers.

    Raises:
        NasError: if a tracker's package is not installed.
    """

    def __init__(self, folder: Path, trackers: Sequence[str], step: int, key: str) -> None:
        self.folder = folder
        self.trackers: list[Any] = []
        for name in trackers:
            self.trackers.append(_tensorboard(folder, step, key) if name == "tensorboard" else _wandb(folder, key))

    def log(self, step: int, row: Mapping[str, Any]) -> None:
        """One step's curves: every number of its row."""
        values = {
            name: value for name, value in row.items() if isinstance(value, int | float) and name not in NO_CURVES
        }
        for tracker in self.trackers:
            tracker.log(values, step=step)

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


def _tensorboard(folder: Path, step: int, key: str) -> Any:
    from accelerate.tracking import TensorBoardTracker

    try:
        tracker = TensorBoardTracker("tensorboard", folder, purge_step=step + 1)
        tracker.start()
    except ImportError:
        raise NasError(
            f"{key} names tensorboard, which is not installed; pip install tensorboard, or {key}=[]"
        ) from None
    return tracker


def _wandb(folder: Path, key: str) -> Any:
    from accelerate.utils import is_wandb_available

    if not is_wandb_available():
        raise NasError(f"{key} names wandb, which is not installed; pip install wandb, or leave it out")
    from accelerate.tracking import WandBTracker

    tracker = WandBTracker("temporal-nas", dir=str(folder), resume="allow", id=folder.resolve().parent.name)
    tracker.start()
    return tracker
