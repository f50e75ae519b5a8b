"""A preference set on disk: one file a group of clips, written whole, and beside it what each reward says of it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from nas.errors import NasError
from nas.files import held, only_leftovers, whole, write_whole
from nas.preferences.rewards import averaged

HEADER, GROUPS, SCORES, LOCKS = "set.json", "groups", "scores", ".locks"
NAME = re.compile(r"^s\d{1,10}-\d{6,7}$")


class Header(BaseModel):
    """What all groups of a set share.

    Attributes:
        kind: ``samples`` or ``guided``. clips: of a group.
        model: fingerprint of the weights that made them. made: how: steps, guidance, noise of guided pairs.
        latents: (C, T, H, W) of a clip. autoencoder: whose latents they are, or ``pixels``. fps: of the clips.
        shape: frames, height and width in pixels.
        segments: of each frame of pixels. latent_segments: of each frame of latents: that of its last frame of pixels.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int = Field(1, ge=1, le=1)
    kind: str
    clips: int = Field(ge=2)
    model: str
    made: dict[str, Any]
    latents: tuple[int, int, int, int]
    autoencoder: str
    fps: float
    shape: tuple[int, int, int]
    segments: tuple[int, ...] = Field(min_length=1)
    latent_segments: tuple[int, ...] = Field(min_length=1)

    @property
    def count(self) -> int:
        """How many segments a clip has."""
        return max(self.segments) + 1


@dataclass(frozen=True)
class Group:
    """Clips of one prompt: (k, C, T, H, W) of latents, the noise that each began with, and what they were made from."""

    name: str
    prompt: str
    clips: Tensor
    noise: Tensor
    real: Tensor | None
    share: float  # of noise, where the clips began


class PreferenceSet:
    """The set in a folder.

    Args:
        header: what it must be; where it is not given, the set must be there already.

    Raises:
        NasError: if there is none, it is damaged, or it was made otherwise than ``header`` says.
    """

    def __init__(self, folder: Path, header: Header | None = None) -> None:
        self.folder = folder
        if header is not None:
            self._claim(header)
        self.header = self._read_header()
        if header is not None and self.header != header:
            ours, theirs = self.header.model_dump(), header.model_dump()
            what = "; ".join(
                f"{key} is {ours[key]} there, {theirs[key]} here" for key in ours if ours[key] != theirs[key]
            )
            raise NasError(f"{folder} holds another preference set: {what}. Give another --out")

    def _claim(self, header: Header) -> None:
        if self.folder.is_dir() and not (self.folder / HEADER).exists():
            if not only_leftovers(self.folder, but=(GROUPS, SCORES, LOCKS)):
                raise NasError(f"{self.folder} is not empty and holds no preference set; give a new folder to --out")
        for part in (GROUPS, SCORES, LOCKS):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        with held(self.folder / LOCKS / "set", wait=True):
            if not (self.folder / HEADER).exists():
                write_whole(self.folder / HEADER, header.model_dump_json(indent=1))

    def _read_header(self) -> Header:
        path = self.folder / HEADER
        if not path.is_file():
            raise NasError(f"{self.folder}: no {HEADER} there; make a preference set with nas prefer MODEL --out DATA")
        try:
            return Header.model_validate_json(path.read_text("utf-8"))
        except (ValidationError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise NasError(f"{path}: damaged, or of another version ({reason}); make the set again") from None

    # Groups -----------------------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Groups that are whole, in order."""
        found = (path.stem for path in (self.folder / GROUPS).glob("*.safetensors"))
        return sorted(name for name in found if NAME.match(name))

    def path(self, name: str) -> Path:
        return self.folder / GROUPS / f"{name}.safetensors"

    def lock(self, name: str) -> Path:
        """Held by whoever makes or judges a group."""
        return self.folder / LOCKS / name

    def write(self, group: Group) -> None:
        """Keep a group, whole or not at all."""
        from safetensors.torch import save

        tensors = {"clips": group.clips, "noise": group.noise}
        if group.real is not None:
            tensors["real"] = group.real
        kept = {name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()}
        told = {"prompt": group.prompt, "share": repr(group.share), "sha256": _digest(kept)}
        with whole(self.path(group.name)) as file:
            file.write(save(kept, metadata=told))

    def read(self, name: str) -> Group:
        """One group.

        Raises:
            NasError: if its file is damaged or holds other shapes than the set's.
        """
        from safetensors import SafetensorError, safe_open

        path = self.path(name)
        try:
            with safe_open(str(path), "pt") as file:
                told = dict(file.metadata() or {})
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no mapping
            group = Group(
                name, told["prompt"], tensors["clips"], tensors["noise"], tensors.get("real"), float(told["share"])
            )
            wanted = (self.header.clips, *self.header.latents)
            if tuple(group.clips.shape) != wanted or tuple(group.noise.shape) != wanted:
                raise ValueError(f"clips of {tuple(group.clips.shape)}, the set's are {wanted}")
            if told["sha256"] != _digest(tensors):
                raise ValueError("not the values that were written")
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:200]
            raise NasError(f"{path}: damaged ({reason}); delete it and run nas prefer again") from None
        return group

    # What is said of them ---------------------------------------------------------------------------------------------

    def _scores(self, reward: str, name: str) -> Path:
        return self.folder / SCORES / _slug(reward) / f"{name}.json"

    def judged(self, reward: str, name: str) -> bool:
        """Whether a reward has judged a group."""
        return self._scores(reward, name).is_file()

    def keep(self, reward: str, name: str, wins: NDArray[Any], scores: NDArray[Any] | None = None) -> None:
        """Keep what a reward says of a group: (k, S) win rates, and the scores behind them."""
        path = self._scores(reward, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        told = {"reward": reward, "wins": _listed(wins), "scores": None if scores is None else _listed(scores)}
        write_whole(path, json.dumps(told))

    def said(self, name: str) -> dict[str, dict[str, Any]]:
        """Reward -> ``wins`` and ``scores`` of a group, each (k, S) with NaN where nothing was said, or None.

        Raises:
            NasError: if a file of them is damaged.
        """
        found = {}
        for path in sorted((self.folder / SCORES).glob(f"*/{name}.json")):
            try:
                told = json.loads(path.read_text("utf-8"))
                wins = np.asarray(told["wins"], dtype=np.float64)
                scores = None if told["scores"] is None else np.asarray(told["scores"], dtype=np.float64)
                if wins.shape != (self.header.clips, self.header.count):
                    raise ValueError(f"win rates of {wins.shape}")
                found[str(told["reward"])] = {"wins": wins, "scores": scores}
            except (ValueError, KeyError, TypeError) as error:
                raise NasError(f"{path}: damaged ({error}); delete it and run nas prefer again") from None
        return found

    def preference(self, name: str, rewards: Sequence[str] = ()) -> NDArray[np.float64] | None:
        """(k, S) win rates averaged over the rewards that judged a group, or over some of them; None if none did."""
        said = self.said(name)
        wins = [told["wins"] for reward, told in said.items() if not rewards or reward in rewards]
        return averaged(wins) if wins else None

    def fingerprint(self) -> str:
        """12 hex characters of what training reads of it: names and preferences."""
        digest = hashlib.sha256(self.header.model_dump_json().encode())
        for name in self.names():
            found = self.preference(name)
            digest.update(f"{name}{None if found is None else found.round(9).tolist()}".encode())
        return digest.hexdigest()[:12]

    def join(self, other: PreferenceSet) -> int:
        """Take over the groups and judgements of another set that are not here yet; how many groups came.

        Raises:
            NasError: if it was made otherwise, or holds another group under the same name.
        """
        if other.header != self.header:
            mine, theirs = self.header.model_dump(), other.header.model_dump()
            what = "; ".join(f"{k} is {theirs[k]} there, {mine[k]} here" for k in mine if mine[k] != theirs[k])
            raise NasError(f"{other.folder} does not join {self.folder}: {what}")
        came = 0
        for name in other.names():
            with held(self.lock(name), wait=True):
                group = other.read(name)
                if self.path(name).exists():
                    if not torch.equal(self.read(name).clips, group.clips):
                        raise NasError(
                            f"{other.folder}: group {name} holds other clips than {self.folder}'s of that name"
                        )
                else:
                    self.write(group)
                    came += 1
                for reward, told in other.said(name).items():
                    if not self.judged(reward, name):
                        self.keep(reward, name, told["wins"], told["scores"])
        return came


def _slug(reward: str) -> str:
    plain = re.sub(r"[^A-Za-z0-9]+", "-", os.path.basename(reward)).strip("-")[:40]
    return plain if plain == reward else f"{plain}-{hashlib.sha256(reward.encode()).hexdigest()[:8]}"


def _listed(values: NDArray[Any]) -> list[Any]:
    return [[None if np.isnan(value) else float(value) for value in row] for row in values]


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
