"""What a training leaves in its folder: the log, the best step, and a supernet to load."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from nas.checkpoint import Checkpoint, check_belongs, list_checkpoints, load_checkpoint
from nas.errors import NasError
from nas.files import write_whole
from nas.supernet import Supernet
from nas.text import TextEncoder, open_text
from search_spaces.arrangement import Arrangement
from search_spaces.space import Space

METRICS = "metrics.jsonl"
TEXT = "text"
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


def fixed_paths(space: Space, count: int) -> list[Arrangement]:
    """The same few arrangements of a space whenever they are asked for."""
    import numpy as np

    return [space.sample(np.random.default_rng([2024, i])) for i in range(count)]


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


def read_best(folder: Path) -> dict[str, Any] | None:
    """Step and loss of the best validated checkpoint, if there is one."""
    try:
        best = json.loads((folder / BEST).read_text())
        return {"step": int(best["step"]), "loss": float(best["loss"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def load_supernet(space: Space, folder: Path) -> tuple[Supernet, TextEncoder, int]:
    """The averaged supernet and text encoder of the newest checkpoint, in evaluation mode, and its step.

    What it was trained to predict stands in the checkpoint; called, the supernet gives a velocity.

    Raises:
        NasError: if there is none, it is damaged, or it is of another space.
    """
    found = list_checkpoints(folder)
    if not found:
        raise NasError(f"{folder}: no checkpoint of a supernet there; train it with nas train {space.name} --out RUN")
    checkpoint = load_checkpoint(found[-1])
    check_belongs(checkpoint.state, {"space": space.fingerprint}, found[-1])
    settings = checkpoint.state.get("settings", {})
    supernet, text = Supernet(space, settings.get("prediction", "velocity")), open_text(folder / TEXT)
    average = checkpoint.tensors.get("average", {})
    parts = (("supernet.", supernet), ("text.", text))
    check_shapes(average, {prefix + n: p for prefix, module in parts for n, p in module.named_parameters()}, found[-1])
    for prefix, module in parts:
        module.load_state_dict(
            {name.removeprefix(prefix): tensor for name, tensor in average.items() if name.startswith(prefix)}
        )
        module.eval().requires_grad_(False)
    return supernet, text, int(checkpoint.state["step"])


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
