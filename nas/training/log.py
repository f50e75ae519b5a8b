"""What a training leaves for others to read: a row a step, the best step, the newest sound checkpoint."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from nas.errors import NasError
from nas.files import write_whole
from nas.training.checkpoint import STATE, Checkpoint, check_belongs, list_checkpoints, load_checkpoint

METRICS = "metrics.jsonl"
BEST = "best.json"


@dataclass(frozen=True)
class Step:
    """What one step reports.

    Attributes:
        loss, loss_video: means over the paths that learn and over all processes. loss_image: None where images teach
            nothing: no temporal layer sees them.
        path: the largest-first path's key. seconds: all of the step. waited: of them, for data.
        frames_per_s: video frames and images trained on, over all processes. loader_frames_per_s: what the workers of
            one process can load; training waits where that is less than its share.
        memory_mb: peak on the device so far; of a CPU, of the process. validation: loss of the averaged weights.
    """

    step: int
    loss: float
    loss_video: float
    loss_image: float | None
    learning_rate: float
    grad_norm: float
    seconds: float
    path: str
    waited: float = 0.0
    frames_per_s: float = 0.0
    loader_frames_per_s: float = 0.0
    memory_mb: float = 0.0
    validation: float | None = None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Step:
        """A row of the log, without the parts of the loss that a task adds of its own."""
        return cls(**{field.name: row[field.name] for field in fields(cls) if field.name in row})

    @property
    def sentence(self) -> str:
        """The step as a progress line shows it."""
        best = f", validation {self.validation:.4f}" if self.validation is not None else ""
        return (
            f"loss {self.loss:.4f}{best}, {1 / self.seconds:.1f} steps/s, {self.frames_per_s:.0f} frames/s of "
            f"{self.loader_frames_per_s:.0f} loadable, {self.memory_mb:.0f} MB"
        )


def newest_checkpoint(
    folder: Path, expected: Mapping[str, Any], warn: Callable[[str], None]
) -> tuple[Checkpoint, Path] | None:
    """The newest checkpoint that is whole; a damaged one is passed over with a sentence.

    Args:
        expected: what it must be made of, see ``check_belongs``.

    Raises:
        NasError: if every one is damaged, it was made of something else, or one cannot be read, which says nothing of
            what is in it: going back to an earlier one would lose the steps between.
    """
    damaged: NasError | None = None
    try:
        os.listdir(folder)  # a search in a folder that is closed to us finds nothing, and says nothing
        for path in reversed(list_checkpoints(folder)):
            try:
                checkpoint = load_checkpoint(path)
            except NasError as error:
                damaged = error
                warn(f"{error}. Going on from an earlier one")
                continue
            check_belongs(checkpoint.state, expected, path)
            return checkpoint, path
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise NasError(
            f"{error.filename or folder}: cannot be read ({error.strerror}); nothing was changed: have it readable and "
            "run the same command again"
        ) from error
    if damaged is not None:
        raise damaged
    return None


def begun_state(folder: Path) -> dict[str, Any]:
    """What the newest checkpoint says beside its tensors; empty where none can be read."""
    for path in reversed(list_checkpoints(folder)):
        try:
            state = json.loads((path / STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(state, dict):
            return state
    return {}


def begun_settings(folder: Path) -> dict[str, Any]:
    """The settings that the newest checkpoint was made with; empty where none can be read."""
    settings = begun_state(folder).get("settings")
    return settings if isinstance(settings, dict) else {}


def read_best(folder: Path) -> dict[str, Any] | None:
    """Step and loss of the best validated checkpoint, if there is one."""
    try:
        best = json.loads((folder / BEST).read_text())
        return {"step": int(best["step"]), "loss": float(best["loss"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def check_shapes(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path) -> None:
    for name in sorted({*found, *wanted}):
        shapes = [tuple(side[name].shape) if name in side else None for side in (found, wanted)]
        if shapes[0] != shapes[1]:
            raise NasError(
                f"{path}: {name} has shape {shapes[0]} there and {shapes[1]} here; it was made by another version or "
                "its tokenizer was replaced: train in a new run folder"
            )


def cut_metrics(path: Path, step: int) -> None:
    """Drop what was logged after ``step``, as those steps will be made again, and damaged lines."""
    if not path.exists():
        return
    write_whole(path, b"".join(line + b"\n" for line in path.read_bytes().split(b"\n") if _logged_until(line, step)))


def _logged_until(line: bytes, step: int) -> bool:
    """Whether a line of the log is whole and of a step up to this one; a damaged one costs itself, not those after."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and isinstance(row.get("step"), int) and row["step"] <= step
