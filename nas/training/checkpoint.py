"""Checkpoints: safetensors and a JSON, written whole or not at all, refused when they belong to something else."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from nas.errors import NasError, why_full
from nas.files import disk_is_full as disk_is_full
from nas.files import partial_name
from nas.files import sole_writer as sole_writer
from nas.files import sync as sync
from nas.files import write_whole as write_whole

if TYPE_CHECKING:
    from torch import Tensor

STATE = "state.json"
PREFIX = "step-"


@dataclass(frozen=True)
class Checkpoint:
    """Named groups of tensors (weights, averages, optimiser state) and plain JSON facts about them."""

    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return folder / f"{PREFIX}{step:08d}"


def save_checkpoint(
    folder: Path, step: int, checkpoint: Checkpoint, keep: int, also: Collection[int] = frozenset()
) -> Path:
    """Write ``folder/step-N`` and drop all but the newest ``keep`` and the steps in ``also``.

    Everything goes to a temporary folder first and is renamed once it is on disk, so a process killed at any moment,
    or a disk that fills up, leaves the earlier checkpoints as they were.

    Raises:
        NasError: if the disk is full.
    """
    from safetensors.torch import save_file

    target = checkpoint_path(folder, step)
    partial = partial_name(target)
    for left in folder.glob(f".{PREFIX}*.partial"):  # of a process that was killed here, perhaps at another step
        shutil.rmtree(left, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        sizes, digests = {}, {}
        for name, tensors in checkpoint.tensors.items():
            file = partial / f"{name}.safetensors"
            save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, str(file))
            sync(file)
            sizes[name], digests[name] = file.stat().st_size, _digest(file)
        state = {**checkpoint.state, "step": step, "bytes": sizes, "sha256": digests}
        write_whole(partial / STATE, json.dumps(state, indent=1))
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        full = why_full(error)
        if full is None:
            raise
        raise NasError(
            f"{folder}: {full[0]}, checkpoint {step} could not be written; earlier ones are intact. "
            f"{full[1].capitalize()}, and run the same command to go on from the last one"
        ) from error
    if target.exists():
        shutil.rmtree(target)
    os.replace(partial, target)
    sync(folder)
    drop_old(folder, keep, also)
    return target


def drop_old(folder: Path, keep: int, also: Collection[int] = frozenset()) -> None:
    """Delete all but the newest ``keep`` checkpoints and the steps in ``also``, and what a killed process left."""
    for old in list_checkpoints(folder)[:-keep]:
        if old not in {checkpoint_path(folder, other) for other in also}:
            os.replace(old, partial_name(old))  # half deleted it is a leftover, and no damaged checkpoint
    for left in folder.glob(f".{PREFIX}*.partial"):
        shutil.rmtree(left, ignore_errors=True)


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, oldest first."""
    return sorted(path for path in folder.glob(f"{PREFIX}*") if path.is_dir())


class _State(BaseModel):
    """What every checkpoint's JSON holds; whoever wrote it has more in it."""

    model_config = ConfigDict(extra="allow")

    step: int = Field(ge=0)
    bytes: dict[Annotated[str, Field(pattern=r"^[\w-]+$")], int]  # a name with a slash would lead to other folders
    sha256: dict[str, str] = {}


def load_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint.

    Raises:
        NasError: if a file is missing, cut short or altered. PermissionError: if it cannot be read by this user.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        facts = _State.model_validate(state)
        for name, size in facts.bytes.items():
            file = path / f"{name}.safetensors"
            if file.stat().st_size != size:
                raise NasError(f"{file}: {file.stat().st_size} bytes, {size} were written; {_REMEDY}")
            if name in facts.sha256 and _digest(file) != facts.sha256[name]:
                raise NasError(f"{file}: not the bytes that were written (its SHA-256 differs); {_REMEDY}")
        tensors = {name: load_file(str(path / f"{name}.safetensors")) for name in facts.bytes}
    except (NasError, PermissionError):
        raise
    except (OSError, ValueError, RecursionError, SafetensorError) as error:  # pydantic's are ValueErrors
        reason = " ".join(str(error).split())
        raise NasError(f"{path}: damaged checkpoint ({reason}); {_REMEDY}") from error
    return Checkpoint(tensors, state)


def _digest(file: Path) -> str:
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


_REMEDY = "delete this folder to go on from the checkpoint before it"


def check_belongs(state: Mapping[str, Any], expected: Mapping[str, Any], path: Path) -> None:
    """Refuse a checkpoint that was made of something else.

    Raises:
        NasError: naming what differs.
    """
    for name, value in expected.items():
        found = state.get(name)
        if found == value:
            continue
        what = f"{name} is {found!r}, the run's is {value!r}"
        if isinstance(found, Mapping) and isinstance(value, Mapping):
            changed = [key for key in {**found, **value} if found.get(key) != value.get(key)]
            what = f"{name} differ: " + ", ".join(
                f"{k} is {found.get(k)!r}, the run's {value.get(k)!r}" for k in changed
            )
        raise NasError(f"{path}: this checkpoint's {what}; train in another run folder, or with the same {name}")
