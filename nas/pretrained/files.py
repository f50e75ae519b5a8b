"""Which of a folder's weights to load: by a stated rank, whole, and never a pickle.

Rank: full precision (no variant in the name), then ``fp32``, ``fp16``, ``bf16``, then other variants by name; of one
variant a single file before shards. What was not downloaded (git-lfs pointers, missing shards) gives way to the next;
what is damaged is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas.errors import NasError

STEMS = ("diffusion_pytorch_model", "model")  # what diffusers and transformers call weights
WEIGHTS = re.compile(
    rf"(?P<stem>{'|'.join(STEMS)})(\.(?P<variant>\w+))?(?P<shard>-\d{{5}}-of-(?P<of>\d{{5}}))?(\.(?P<late>\w+))?"
    r"\.safetensors"
)
INDEX = re.compile(rf"(?P<stem>{'|'.join(STEMS)})(\.(?P<early>\w+))?\.safetensors\.index(\.(?P<variant>\w+))?\.json")
PRECISE = ("", "fp32", "fp16", "bf16")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")
POINTER = b"version https://git-lfs.github.com/spec/"
MOST_HEADER = 100_000_000
SEAL = "temporal_nas.sha256"  # of the tensors' bytes, in the file's own metadata


class UnusableError(NasError):
    """A file of a model that cannot be used; the message starts with the file and ends with its own remedy."""


@dataclass(frozen=True)
class Weights:
    """One set of weights in a folder.

    Attributes:
        variant: of its names; empty for full precision. files: with tensors. index: of the shards; empty for one file.
    """

    variant: str
    files: tuple[str, ...]
    index: str = ""

    @property
    def stored(self) -> tuple[str, ...]:
        """All files that loading it reads."""
        return (*self.files, *((self.index,) if self.index else ()))

    @property
    def rank(self) -> tuple[int, str, bool]:
        place = PRECISE.index(self.variant) if self.variant in PRECISE else len(PRECISE)
        return place, self.variant, bool(self.index)


def rank_weights(names: Iterable[str]) -> list[Weights]:
    """The sets of weights that these names make up, the best first; of shards the names that are there."""
    known = sorted(names)
    found: dict[tuple[str, bool], Weights] = {}
    shards: dict[str, list[str]] = {}
    for name in known:
        match = WEIGHTS.fullmatch(name)
        if match is None:
            continue
        variant = match["variant"] or match["late"] or ""
        if match["shard"]:
            shards.setdefault(variant, []).append(name)
        else:
            found[variant, False] = Weights(variant, (name,))
    for name in known:
        match = INDEX.fullmatch(name)
        if match is not None:
            variant = match["variant"] or match["early"] or ""
            found[variant, True] = Weights(variant, tuple(shards.get(variant, ())), name)
    return sorted(found.values(), key=lambda weights: weights.rank)


def choose_weights(folder: Path) -> Weights:
    """The set of weights of first rank that is there.

    Raises:
        UnusableError: if there is none, or the one of first rank is damaged.
    """
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    ranked = rank_weights(names)
    absent = [_absent(folder, weights) for weights in ranked]
    chosen = next((weights for weights, reason in zip(ranked, absent, strict=True) if not reason), None)
    if chosen is None:
        if absent:
            raise UnusableError(absent[0])
        pickled = [name for name in names if name.endswith(PICKLES)]
        if pickled:
            raise UnusableError(
                f"{folder}: holds only pickled weights ({', '.join(pickled[:3])}), which are never opened, as they can "
                "run code; save the model with safe_serialization=True where you trust it, or give one in safetensors"
            )
        raise UnusableError(
            f"{folder}: holds no weights in safetensors; give a folder or hub id that holds the whole model"
        )
    for name in chosen.files:
        check_whole(folder / name)
    return chosen


def _absent(folder: Path, weights: Weights) -> str:
    """Why a set of weights is not there, as a sentence; empty where it is."""
    files: Sequence[str] = weights.files
    if weights.index:
        try:
            listed = json.loads((folder / weights.index).read_text("utf-8"))["weight_map"]
            files = sorted({str(name) for name in listed.values()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            return f"{folder / weights.index}: is no index of shards ({error!r}); get the file anew"
        outside = [name for name in files if Path(name).name != name or not WEIGHTS.fullmatch(name)]
        if outside:
            return f"{folder / weights.index}: names {outside[0]!r}, which is no shard beside it; get the model anew"
        missing = [name for name in files if not (folder / name).is_file()]
        if missing or not files:
            return f"{folder}: lacks {', '.join(missing[:3]) or 'every shard'} of {len(files)} shards; get them too"
    for name in files:
        with (folder / name).open("rb") as file:
            if file.read(len(POINTER)) == POINTER:
                return f"{folder / name}: is a git-lfs pointer, not weights; run git lfs pull in that folder"
    return ""


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """A safetensors file's header, and where its tensors begin.

    Raises:
        UnusableError: if it is none, or is cut short.
    """
    remedy = "get the file anew"
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(MOST_HEADER, size - 8):
            raise UnusableError(f"{path}: cut short, or no safetensors ({size:,} bytes); {remedy}")
        try:
            header = dict(json.loads(file.read(length)))
            ends = [int(told["data_offsets"][1]) for name, told in header.items() if name != "__metadata__"]
        except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
            raise UnusableError(f"{path}: no safetensors ({type(error).__name__} in its header); {remedy}") from None
    if size - 8 - length != max(ends, default=0):
        raise UnusableError(
            f"{path}: cut short or damaged: {size:,} bytes, its header tells of {8 + length + max(ends, default=0):,}; "
            f"{remedy}"
        )
    return header, 8 + length


def check_whole(path: Path) -> None:
    """Whether a safetensors file has all its bytes, and those that were sealed into it.

    Raises:
        UnusableError: if not.
    """
    header, start = read_header(path)
    metadata = header.get("__metadata__")
    sealed = metadata.get(SEAL) if isinstance(metadata, dict) else None
    if sealed is not None and sealed != digest_from(path, start):
        raise UnusableError(f"{path}: damaged: its tensors are not those that were written; get or build it anew")


def digest_from(path: Path, start: int) -> str:
    """SHA-256 of a file's bytes from ``start`` on."""
    with path.open("rb") as file:
        file.seek(start)
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(path: Path) -> None:
    """Put the checksum of a safetensors file's tensors into its own metadata, so that it goes wherever the file goes.

    A file that somebody writes anew has none and is taken as it is; bytes that flip are noticed by ``check_whole``.
    """
    import shutil

    header, start = read_header(path)
    header["__metadata__"] = {**header.get("__metadata__", {}), SEAL: digest_from(path, start)}
    told = json.dumps(header, separators=(",", ":")).encode()
    told += b" " * (-len(told) % 8)  # tensors begin at a multiple of eight bytes
    partial = path.with_name(f".{path.name}.sealing")
    with path.open("rb") as old, partial.open("wb") as new:
        new.write(len(told).to_bytes(8, "little") + told)
        old.seek(start)
        shutil.copyfileobj(old, new, 1 << 20)
    os.replace(partial, path)
