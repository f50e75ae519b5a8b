"""Checkpoints: safetensors and a JSON, written whole or not at all, refused when they belong to something else."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.errors import NasError

if TYPE_CHECKING:
    from torch import Tensor

LOCK = ".lock"
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
    partial = folder / f".{target.name}.partial"
    for left in folder.glob(f".{PREFIX}*.partial"):  # of a process that was killed here, perhaps at another step
        shutil.rmtree(left, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        sizes = {}
        for name, tensors in checkpoint.tensors.items():
            file = partial / f"{name}.safetensors"
            save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, str(file))
            sync(file)
            sizes[name] = file.stat().st_size
        state = partial / STATE
        state.write_text(json.dumps({**checkpoint.state, "step": step, "bytes": sizes}, indent=1))
        sync(state)
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        if not disk_is_full(error):
            raise
        raise NasError(
            f"{folder}: the disk is full, checkpoint {step} could not be written; earlier ones are intact. "
            "Free some space and run the same command to go on from the last one"
        ) from error
    if target.exists():
        shutil.rmtree(target)
    os.replace(partial, target)
    sync(folder)
    for old in list_checkpoints(folder)[:-keep]:
        if old not in {checkpoint_path(folder, other) for other in also}:
            gone = folder / f".{old.name}.partial"  # half deleted it is a leftover, and no damaged checkpoint
            os.replace(old, gone)
            shutil.rmtree(gone)
    return target


def write_whole(path: Path, text: str) -> None:
    """A small file, written whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    os.replace(partial, path)


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Keep other processes from writing ``folder`` while this lasts: two would delete each other's unfinished files.

    The lock is the kernel's and ends with the process, whatever ends it; the file ``.lock`` stays and means nothing.

    Raises:
        NasError: if another process writes there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NasError(
                f"{folder}: another process is writing there; wait for it or end it, or give another --out"
            ) from None
        yield


def disk_is_full(error: BaseException) -> bool:
    """Whether an error says so; safetensors has no errno in its own."""
    return isinstance(error, OSError) and error.errno == errno.ENOSPC or "No space left" in str(error)


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, oldest first."""
    return sorted(path for path in folder.glob(f"{PREFIX}*") if path.is_dir())


def load_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint.

    Raises:
        NasError: if a file is missing or cut short.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = json.loads((path / STATE).read_text())
        for name, size in state["bytes"].items():
            found = (path / f"{name}.safetensors").stat().st_size
            if found != size:
                raise NasError(f"{path}/{name}.safetensors: {found} bytes, {size} were written; {_REMEDY}")
        tensors = {name: load_file(str(path / f"{name}.safetensors")) for name in state["bytes"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        if isinstance(error, NasError):
            raise
        raise NasError(f"{path}: damaged checkpoint ({error}); {_REMEDY}") from error
    return Checkpoint(tensors, state)


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


def sync(path: Path) -> None:
    """Have a file, or a folder's list of files, on the disk itself before going on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
