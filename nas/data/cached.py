"""Latents and text states that ``nas cache`` made, as training data."""

from __future__ import annotations

import functools
import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from nas.data.clip import TRAIN_LENGTH, Buckets, Dataset, Images, Item, Skip, check_index
from nas.errors import NasError
from nas.pretrained.text import NoText, TextEncoder
from nas.tasks import task_class

if TYPE_CHECKING:
    from nas.config import DataConfig
    from nas.pretrained.autoencoder import VideoAutoencoder
    from search_spaces.space import Space

SCHEMA = 2  # of the cache and of the reader of videos: frames of an older one are not to be trusted
HEADER, INDEX = "cache.json", "index.jsonl"
REFERENCE = "cached.json"


@dataclass(frozen=True)
class Entry:
    """One cached clip or still: a tensor of a shard."""

    name: str
    shard: str
    split: str
    caption: str
    shape: tuple[int, int, int, int]
    still: bool


class LatentCache:
    """The folder that ``nas cache`` writes: ``cache.json``, ``index.jsonl`` and shards in safetensors.

    Attributes:
        header: what it was made with. entries: all that is whole. skipped: what could not be encoded, and why.

    Raises:
        NasError: if there is none, it is of another version, or a shard is gone, cut short or of another model.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.header = read_header(folder)
        self.entries: list[Entry] = []
        self.skipped: list[Skip] = []
        self._texts: dict[str, str] = {}
        self._open = threading.local()
        checked: set[str] = set()
        for line in read_index(folder):
            self.skipped += [Skip(Path(skip["path"]), skip["reason"]) for skip in line["skipped"]]
            if line["shard"] is None:
                continue
            if line["shard"] not in checked:
                self._check(line["shard"], line["bytes"])
                checked.add(line["shard"])
            for clip in line["clips"]:
                shape = (clip["shape"][0], clip["shape"][1], clip["shape"][2], clip["shape"][3])
                self.entries.append(
                    Entry(clip["name"], line["shard"], clip["split"], clip["caption"], shape, clip["still"])
                )
            self._texts |= {name: line["shard"] for name in line["texts"]}

    def _check(self, shard: str, size: int) -> None:
        path = self.folder / shard
        found = path.stat().st_size if path.is_file() else 0
        if found != size:
            raise NasError(f"{path}: {found} bytes, {size} were written; run nas cache again to make it anew")
        try:
            with safe_open(path, "pt") as file:
                made = file.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise NasError(f"{path}: damaged ({error}); delete it and run nas cache again") from error
        for model in ("autoencoder", "text"):
            if made.get(model) != self.header[model]["digest"]:
                raise NasError(
                    f"{path}: made with another {model} model ({made.get(model)}) than this cache "
                    f"({self.header[model]['digest']}); delete it and run nas cache again"
                )

    @property
    def facts(self) -> dict[str, Any]:
        """What a checkpoint must share with the cache that its training goes on with."""
        return {"models": {model: self.header[model]["digest"] for model in ("autoencoder", "text")}}

    def tensor(self, shard: str, name: str) -> Tensor:
        """One tensor, float32."""
        opened = self._open.__dict__.setdefault("files", {})
        if shard not in opened:
            if len(opened) >= 64:
                opened.clear()
            opened[shard] = safe_open(self.folder / shard, "pt")
        return opened[shard].get_tensor(name).float()

    def text(self, caption: str) -> Tensor | None:
        """(L, D) states of a caption, if they are here."""
        name = text_name(caption)
        return self.tensor(self._texts[name], name) if name in self._texts else None


class Cached:
    """Cached clips of one shape; a training split goes through all of them, shuffled anew each time.

    Args:
        away: half a pass away from the index, as stills are, so that a step's are not of its own clips.
    """

    def __init__(self, cache: LatentCache, entries: Sequence[Entry], split: str, seed: int, away: bool = False) -> None:
        self.cache, self.entries, self.split, self.seed = cache, tuple(entries), split, seed
        self._away = len(self.entries) // 2 if away else 0
        self.captions = tuple(dict.fromkeys(entry.caption for entry in self.entries))
        self.skipped: Sequence[Skip] = cache.skipped
        self._order = functools.lru_cache(maxsize=8)(self._shuffled)

    def __len__(self) -> int:
        return TRAIN_LENGTH if self.split == "train" else len(self.entries)

    def _shuffled(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.entries))

    def __getitem__(self, index: int) -> Item:
        epoch, place = divmod(check_index(index, len(self)), len(self.entries))
        place = (place + self._away) % len(self.entries)
        entry = self.entries[int(self._order(epoch)[place]) if self.split == "train" else place]
        return {"video": self.cache.tensor(entry.shard, entry.name), "caption": entry.caption}


class CachedLatents(Buckets):
    """A split of a cache, one bucket a shape, drawn as often as it has clips.

    Attributes:
        cache: where it comes from.
    """

    def __init__(self, cache: LatentCache, split: Literal["train", "validation"], seed: int, limit: int) -> None:
        self.cache, self.split = cache, split
        self._autoencoder: VideoAutoencoder | None = None
        clips = [e for e in cache.entries if e.split == split and not e.still]
        if not clips:
            raise NasError(
                f"{cache.folder}: no {split} clips in this cache; let nas cache finish, or cache more or longer videos"
            )
        shapes = sorted({entry.shape for entry in clips}, key=lambda shape: (-_count(clips, shape), shape))
        if split == "validation":  # one shape, so that any few clips can be scored together
            own = tuple(cache.header["clips"][0]["latent"])
            shapes = [own if own in shapes else shapes[0]]
            order = np.random.default_rng(0).permutation(_count(clips, shapes[0]))[:limit]
            mine = [e for e in clips if e.shape == shapes[0]]
            super().__init__([Cached(cache, [mine[i] for i in order], split, seed)], [1.0], seed)
            return
        parts = [Cached(cache, [e for e in clips if e.shape == shape], split, seed) for shape in shapes]
        super().__init__(parts, [len(part.entries) for part in parts], seed)

    @property
    def skipped(self) -> Sequence[Skip]:
        return self.cache.skipped

    def check_fits(self, space: Space) -> None:
        """Refuse a space that wants other latents or other text.

        Raises:
            NasError: naming what differs.
        """
        header = self.cache.header
        made, text = header["autoencoder"], header["text"]
        found = {
            "time": (made["time"], space.autoencoder.time),
            "space": (made["space"], space.autoencoder.space),
            "causal": (made.get("causal", False), space.autoencoder.causal),
            "channels": (made["channels"], space.latent_channels),
            "text width": (text["dim"], space.text.dim),
            "text tokens": (text["tokens"], space.text.tokens),
        }
        wrong = [
            f"{name} is {here} there, {wanted} in the space" for name, (here, wanted) in found.items() if here != wanted
        ]
        if wrong:
            raise NasError(
                f"{self.cache.folder}: this cache does not fit space {space.name}: {', '.join(wrong)}; make one with "
                f"nas cache DATA --space {space.name}"
            )

    def stills(self, seed: int) -> Dataset:
        """Cached stills; where time is not divided and none were made, frames of the clips.

        Raises:
            NasError: if there are none, and a latent frame is no image.
        """
        stills = [e for e in self.cache.entries if e.split == self.split and e.still]
        if stills:
            shapes = sorted({entry.shape for entry in stills})
            # Shuffled as the clips are: with one still a clip, the ones of a step are then half a pass apart.
            parts = [
                Cached(self.cache, [e for e in stills if e.shape == shape], self.split, self.seed, away=True)
                for shape in shapes
            ]
            return Buckets(parts, [len(part.entries) for part in parts], seed)
        if self.cache.header["autoencoder"]["time"] == 1:
            mine = [part.entries for part in self.parts if isinstance(part, Cached)]
            clips = [Cached(self.cache, entries, self.split, self.seed, away=True) for entries in mine]
            return Buckets([Images(part, seed, away=0) for part in clips], self._share.tolist(), seed)
        return _NoStills(self.cache.folder)

    def autoencoder(self, device: torch.device | str = "cpu") -> VideoAutoencoder:
        """The autoencoder that made the latents.

        Raises:
            NasError: if it cannot be loaded any more, or is not the same.
        """
        if self._autoencoder is None:
            self._autoencoder = load_autoencoder(self.cache.header)
        return self._autoencoder.to(device)


class _NoStills:
    """A cache without stills is fine as long as nobody asks for one."""

    captions: Sequence[str] = ()
    skipped: Sequence[Skip] = ()

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Item:
        raise NasError(
            f"{self.folder}: holds no stills, and a frame of these latents is no image; run nas cache with --stills 1, "
            "or train on none: --set train.images=0, joint.images=0 or adversarial.images=0"
        )


class CachedText(nn.Module):
    """Text states from a cache, in the place of an encoder; a caption that it lacks is encoded by its model."""

    place: Tensor

    def __init__(self, cache: LatentCache) -> None:
        super().__init__()
        self.cache = cache
        self.register_buffer("place", torch.zeros(0), persistent=False)
        self._encoder: Any = None

    def forward(self, captions: Sequence[str]) -> Tensor:
        """(B, L, D) states of the captions."""
        states = [self.cache.text(caption) for caption in captions]
        found = [self._encode(c) if state is None else state for c, state in zip(captions, states, strict=True)]
        return torch.stack(found).to(self.place.device)

    def _encode(self, caption: str) -> Tensor:
        with torch.no_grad():
            return self._real([caption])[0].cpu()

    @property
    def _real(self) -> Any:
        if self._encoder is None:
            from nas.pretrained.text import TextEncoder

            made = self.cache.header["text"]
            encoder = TextEncoder.pretrained(made["source"]).eval()
            _check_same(encoder.model, made)
            self._encoder = [encoder]  # in a list: it is no part of this module
        return self._encoder[0]

    @property
    def model(self) -> nn.Module:
        return self._real.model

    @property
    def tokenizer(self) -> Any:
        return self._real.tokenizer

    @property
    def facts(self) -> dict[str, Any]:
        return self.cache.facts

    def save(self, folder: Path) -> None:
        """Write down which cache it is."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / REFERENCE).write_text(json.dumps({"cache": str(self.cache.folder.resolve()), **self.facts}, indent=1))

    @classmethod
    def load(cls, folder: Path) -> CachedText:
        """The cache that a training names.

        Raises:
            NasError: if it is gone or was made with other models.
        """
        try:
            known = json.loads((folder / REFERENCE).read_text())
            place, models = Path(known["cache"]), known["models"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise NasError(f"{folder / REFERENCE}: damaged ({error}); train again in a new run folder") from error
        text = cls(LatentCache(place))
        if text.facts["models"] != models:
            raise NasError(f"{place}: this cache was made with other models than the training in {folder}")
        return text


def open_cached(config: DataConfig, split: Literal["train", "validation"], seed: int) -> CachedLatents:
    """One split of the cache at ``config.path``."""
    if config.path is None:
        raise NasError("data.source is 'cache' but data.path is not set; give the folder that nas cache wrote")
    return CachedLatents(LatentCache(config.path), split, seed, config.validation_clips)


def load_autoencoder(header: Mapping[str, Any]) -> VideoAutoencoder:
    """The autoencoder that a cache's header names, if it still is the same."""
    from nas.pretrained.autoencoder import VideoAutoencoder

    made = header["autoencoder"]
    autoencoder = VideoAutoencoder.load(made["source"])
    _check_same(autoencoder.model, made)
    return autoencoder


def _check_same(model: Any, made: Mapping[str, Any]) -> None:
    from nas.pretrained.hub import model_digest

    found = model_digest(model)
    if found != made["digest"]:
        raise NasError(
            f"{made['source']}: is not the model that the cache was made with ({found} now, {made['digest']} then); "
            "put that one back, or make a new cache"
        )


def _count(entries: Sequence[Entry], shape: tuple[int, ...]) -> int:
    return sum(entry.shape == shape for entry in entries)


def text_name(caption: str) -> str:
    """A caption's tensor."""
    return f"text/{hashlib.sha256(caption.encode()).hexdigest()[:24]}"


def read_header(folder: Path) -> dict[str, Any]:
    """What a cache was made with."""
    path = folder / HEADER
    if not path.is_file():
        raise NasError(f"{folder}: no {HEADER} there, so this is no cache of latents; make one with nas cache")
    try:
        header = dict(json.loads(path.read_text()))
        if header["schema"] == SCHEMA and header["autoencoder"]["digest"] and header["text"]["digest"]:
            return header
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NasError(f"{path}: damaged ({error}); make the cache again in a new folder") from error
    raise NasError(f"{path}: made by another version of the toolkit; make the cache again in a new folder")


def read_index(folder: Path) -> list[dict[str, Any]]:
    """The finished videos of a cache, the newest line of each ``id``; a last line that was cut off is not there.

    A video's ``id`` is its content's digest: called otherwise it is the same, and changed it is another.
    """
    lines: dict[str, dict[str, Any]] = {}
    try:
        content = (folder / INDEX).read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    for text in content:
        try:
            line = json.loads(text)
            lines[line["id"]] = {name: line[name] for name in FIELDS}
        except (ValueError, KeyError, TypeError):
            continue
    return [line for line in lines.values() if line["clips"] or line["texts"] or line["skipped"]]


FIELDS = ("id", "path", "key", "shard", "bytes", "clips", "texts", "skipped")


def check_source(space: Space, source: str) -> None:
    """Refuse pixels for a network on latents, and latents for an autoencoder, before any video is decoded.

    Raises:
        NasError: with the command that makes the cache.
    """
    if task_class(space.backbone.family.task).pixels:
        if source == "cache":
            raise NasError(
                f"space {space.name} is an autoencoder's and learns from pixels, but data.source is a cache of "
                "latents; give it videos: --set data.source=folder --set data.path=VIDEOS"
            )
        return
    if source != "cache" and (space.autoencoder.space != 1 or space.autoencoder.time != 1):
        raise NasError(
            f"space {space.name} works in the latents of an autoencoder; encode the data first "
            f"(nas cache DATA --space {space.name} --autoencoder MODEL --text MODEL --out CACHE) and train with "
            "--set data.source=cache --set data.path=CACHE"
        )


def check_data(space: Space, data: Dataset) -> None:
    """Refuse latents of another space, and pixels for a space of latents.

    Raises:
        NasError: naming what differs.
    """
    from nas.data.cached import CachedLatents

    if isinstance(data, CachedLatents) and not task_class(space.backbone.family.task).pixels:
        data.check_fits(space)
    elif isinstance(data, CachedLatents):
        check_source(space, "cache")
    else:
        check_source(space, "pixels")


def text_encoder_of(space: Space, data: Any) -> Any:
    """The text side of training on ``data``: its cached states, or a small encoder trained along."""
    from nas.data.cached import CachedLatents, CachedText

    if not space.text:
        return NoText()
    if isinstance(data, CachedLatents):
        return CachedText(data.cache)
    return TextEncoder.small(space, data.captions)


def open_text(folder: Path) -> Any:
    """The text side that a training saved in ``folder``; weights trained along come with the checkpoint.

    Raises:
        NasError: if nothing is there, or the cache that it names is gone.
    """
    from nas.data.cached import REFERENCE, CachedText

    return CachedText.load(folder) if (folder / REFERENCE).is_file() else TextEncoder.load(folder)
