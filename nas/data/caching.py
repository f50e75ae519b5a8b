"""``nas cache``: videos and captions to latents and text states on disk, because a search trains on latents."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nas.config import DataConfig
from nas.data.cached import HEADER, INDEX, SCHEMA, read_header, read_index, text_name
from nas.data.captions import IMAGES, Caption
from nas.data.clip import ClipLike, Skip
from nas.data.decoding import choose_bucket
from nas.data.frames import DecodeError, Frames, FrameSpec, cached_frames
from nas.data.lengths import fits
from nas.data.sources import Files, Video, by_content, processors, video_source
from nas.data.splits import held_videos, split_runs
from nas.data.videos import clip_buckets, cut
from nas.errors import NasError
from nas.files import append, disk_is_full, partial_name, sole_writer, sync, write_whole
from nas.pretrained.autoencoder import VideoAutoencoder, folder_or_hub
from nas.pretrained.hub import model_digest
from nas.pretrained.text import TextEncoder
from search_spaces.space import Space

FLUSH_SECONDS = 120.0  # at most this much work is lost when the process is killed


@dataclass(frozen=True)
class CacheConfig:
    """How a cache is made.

    Attributes:
        autoencoder, text: hub id or folder. clip: the space's clip that is cut out, and with ``data.buckets`` others.
        stills: images a training clip, single frames encoded as images.
        shard_mb: size from which on a shard is written. device: where the models run.
    """

    autoencoder: str
    text: str
    clip: str = "training"
    stills: int = 1
    shard_mb: float = 256.0
    device: str = "cpu"


@dataclass(frozen=True)
class Progress:
    """After each video: how many are done of how many, clips made, and frames encoded a second."""

    done: int
    total: int
    clips: int
    frames_per_s: float


def build_cache(
    data: DataConfig,
    space: Space,
    config: CacheConfig,
    out: Path,
    *,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> dict[str, Any]:
    """Encode every video of ``data`` that ``out`` lacks, and every caption.

    A video is known by its content: a renamed one is not encoded again, copies are encoded once.

    Each captioned segment is cut into clips one after another, training and validation apart, as ``data`` says.
    Decoded frames live only until their video is encoded. Stopped at any moment, it goes on with the next video.

    Returns:
        Path, videos, clips, stills, what was skipped, and size in MB.

    Raises:
        NasError: if a model cannot be loaded or does not fit the space, or ``out`` is a cache of another model,
            or another process is writing it.
    """
    autoencoder = VideoAutoencoder.load(config.autoencoder)
    autoencoder.check_fits(space)
    text = TextEncoder.pretrained(config.text)
    if (text.max_tokens, text.width) != (space.text.tokens, space.text.dim):
        raise NasError(
            f"{config.text}: gives {text.max_tokens} tokens of width {text.width}, but space {space.name} wants "
            f"{space.text.tokens} of {space.text.dim}; give another text model, or a space for it"
        )
    clips = clip_buckets(space.clip(config.clip), data.buckets)
    for clip in clips:
        check_clip(space, clip)
    header = _header(config, clips, autoencoder, text)
    _claim(out, header)
    device = torch.device(config.device)
    with sole_writer(out), video_source(data, out / ".shards") as (captions, missing):
        fits(text.tokenizer, text.max_tokens)(captions)
        writer = _Writer(out, header, config.shard_mb)
        maker = _Maker(data, clips, config, autoencoder.to(device), text.to(device), writer.known_texts)
        files = Files(out)
        videos, gone = by_content(captions, files)
        held = _held_whole(videos, clips, data)
        writer.forget_others(videos)
        jobs = [(video, key) for video in videos if not writer.has(video.digest, key := maker.key(video))]
        done, frames, started = len(videos) - len(jobs), 0, time.perf_counter()
        for video, key, decoded in _ahead(jobs, clips, files, out / ".frames"):
            writer.forget(video.digest)
            tensors, found, skipped = maker.encode(video, key, decoded, held)
            frames += sum(maker.frames(clip) for clip in found)
            writer.put(video.digest, video.path, key, tensors, found, skipped)
            done += 1
            progress(Progress(done, len(videos), writer.clips, frames / (time.perf_counter() - started)))
        if not jobs:
            progress(Progress(done, done, writer.clips, 0.0))
        files.close()
        for skip in (*missing, *gone):
            writer.put(str(skip.path), skip.path, "", {}, [], [skip])
        _complete(writer, maker)
    return _summary(out)


def _header(
    config: CacheConfig, clips: Sequence[ClipLike], autoencoder: VideoAutoencoder, text: TextEncoder
) -> dict[str, Any]:
    """What a cache is made with, and the version of all that makes it."""
    return {
        "schema": SCHEMA,
        "autoencoder": {
            "source": folder_or_hub(config.autoencoder),
            "kind": autoencoder.kind,
            "digest": autoencoder.digest,
            "time": autoencoder.time,
            "space": autoencoder.space,
            "channels": autoencoder.channels,
            "causal": autoencoder.causal,
        },
        "text": {
            "source": folder_or_hub(config.text),
            "digest": model_digest(text.model),
            "tokens": text.max_tokens,
            "dim": text.width,
        },
        "clips": [{**vars(clip), "latent": list(_latent_shape(clip, autoencoder))} for clip in clips],
    }


def _complete(writer: _Writer, maker: _Maker) -> None:
    """Write what is waiting, and states of captions that stood with a video that has another one now."""
    writer.texts({text_name(""): maker.states("")})
    writer.flush()
    lines = read_index(writer.out)
    stored = {name for line in lines for name in line["texts"]}
    for caption in sorted({clip["caption"] for line in lines for clip in line["clips"]}):
        name = text_name(caption)
        if name not in stored:
            writer.put(name, None, "", {name: maker.states(caption)}, [], [])
    writer.flush()


def _summary(out: Path) -> dict[str, Any]:
    lines = read_index(out)
    made = [clip for line in lines for clip in line["clips"]]
    return {
        "cache": str(out),
        "videos": sum(bool(line["clips"]) for line in lines),
        "clips": sum(not clip["still"] for clip in made),
        "validation_clips": sum(not clip["still"] and clip["split"] == "validation" for clip in made),
        "stills": sum(clip["still"] for clip in made),
        "skipped": [f"{Path(s['path']).name}: {s['reason']}" for line in lines for s in line["skipped"]],
        "mb": round(sum(f.stat().st_size for f in out.glob("*.safetensors")) / 1e6, 3),
    }


def check_clip(space: Space, clip: ClipLike) -> None:
    """Refuse a clip that does not divide by the autoencoder and the backbone's strides."""
    down = space.autoencoder.space * max(position.space_scale for position in space.positions)
    if not space.autoencoder.divides(clip.frames):
        alone = "be 1 + a multiple of" if space.autoencoder.causal else "divide by"
        raise NasError(
            f"data.buckets: frames of {clip.frames}x{clip.height}x{clip.width} must {alone} {space.autoencoder.time}"
        )
    for name, size, by in (
        ("height", clip.height, down),
        ("width", clip.width, down),
    ):
        if size % by:
            raise NasError(f"data.buckets: {name} of {clip.frames}x{clip.height}x{clip.width} must divide by {by}")


def _latent_shape(clip: ClipLike, made: VideoAutoencoder) -> tuple[int, int, int, int]:
    return made.factors.latent_frames(clip.frames), made.channels, clip.height // made.space, clip.width // made.space


def _claim(out: Path, header: dict[str, Any]) -> None:
    """Make ``out`` a cache of these models, or check that it is one."""
    if not (out / HEADER).exists():
        if out.is_dir() and any(out.iterdir()):
            raise NasError(f"{out} is not empty and holds no {HEADER}; give a new or empty folder to --out")
        out.mkdir(parents=True, exist_ok=True)
        write_whole(out / ".gitignore", "*\n")
        write_whole(out / HEADER, json.dumps(header, indent=1))
        return
    known = read_header(out)
    for model in ("autoencoder", "text"):
        if known[model]["digest"] != header[model]["digest"]:
            raise NasError(
                f"{out}: is a cache of another {model} model ({known[model]['source']}, {known[model]['digest']}; "
                f"given is {header[model]['source']}, {header[model]['digest']}); give another --out, or the same model"
            )
    if known["clips"] != header["clips"]:
        raise NasError(f"{out}: is a cache of other clips ({_sizes(known)}, not {_sizes(header)}); give another --out")


def _sizes(header: dict[str, Any]) -> str:
    return ", ".join(f"{c['frames']}x{c['height']}x{c['width']} at {c['fps']:g}/s" for c in header["clips"])


def _ahead(
    jobs: Sequence[tuple[Video, str]], clips: Sequence[ClipLike], files: Files, scratch: Path
) -> Iterator[tuple[Video, str, tuple[ClipLike, Frames] | DecodeError]]:
    """Videos with their frames or why there are none, some decoded while another is encoded.

    Frames are removed once their turn is over.
    """

    def decode(number: int, video: Video, clip: ClipLike) -> tuple[ClipLike, Frames] | DecodeError:
        spec = FrameSpec(clip.height, clip.width, clip.fps, 1.0)
        try:
            return clip, cached_frames(video.media, spec, scratch / str(number), video.digest, "ONE")
        except DecodeError as error:
            return error

    pool = ThreadPoolExecutor(processors(), "decode")
    coming: deque[Future[tuple[ClipLike, Frames] | DecodeError]] = deque()
    begun = 0
    try:
        for number, (video, key) in enumerate(jobs):
            while begun < min(len(jobs), number + 1 + processors()):
                try:
                    coming.append(
                        pool.submit(decode, begun, jobs[begun][0], choose_bucket(jobs[begun][0], clips, files))
                    )
                except DecodeError as error:
                    failed: Future[tuple[ClipLike, Frames] | DecodeError] = Future()
                    failed.set_result(error)
                    coming.append(failed)
                begun += 1
            yield video, key, coming.popleft().result()
            shutil.rmtree(scratch / str(number), ignore_errors=True)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        shutil.rmtree(scratch, ignore_errors=True)


def _held_whole(videos: Sequence[Video], clips: Sequence[ClipLike], data: DataConfig) -> frozenset[str]:
    """Digests of the videos kept for validation as a whole; of pictures, where clips have one frame, always."""
    by_video, pictures = data.holdout == "video", all(clip.frames == 1 for clip in clips)
    whole = [v.digest for v in videos if by_video or (pictures and v.path.suffix.lower() in IMAGES)]
    return held_videos(whole, data) if whole or by_video else frozenset()


class _Maker:
    """Turns one video with its captions into named latents."""

    def __init__(
        self,
        data: DataConfig,
        clips: Sequence[ClipLike],
        config: CacheConfig,
        autoencoder: VideoAutoencoder,
        text: TextEncoder,
        known_texts: set[str],
    ) -> None:
        self.data, self.clips, self.config = data, clips, config
        self.autoencoder, self.text, self.known_texts = autoencoder, text, known_texts

    def key(self, video: Video) -> str:
        """What a video's latents depend on, beside the models: its content, its captions, and how it is cut."""
        said = [(c.text, c.start, c.end, c.x, c.y) for c in video.captions]
        how = (self.data.holdout, self.data.validation_share, self.config.stills, [vars(clip) for clip in self.clips])
        return hashlib.sha256(repr((video.digest, said, how)).encode()).hexdigest()[:16]

    def states(self, caption: str) -> Tensor:
        """(L, D) float16."""
        with torch.no_grad():
            return self.text([caption])[0].half().cpu()

    def frames(self, clip: dict[str, Any]) -> int:
        return self.autoencoder.factors.pixel_frames(int(clip["shape"][0]))

    def encode(
        self, video: Video, key: str, decoded: tuple[ClipLike, Frames] | DecodeError, held: frozenset[str]
    ) -> tuple[dict[str, Tensor], list[dict[str, Any]], list[Skip]]:
        """Tensors by name, what the index says of each, and what was skipped."""
        if isinstance(decoded, DecodeError):
            return {}, [], [Skip(video.path, str(decoded))]
        tensors: dict[str, Tensor] = {}
        found: list[dict[str, Any]] = []
        for caption in video.captions:
            self._text(caption.text, tensors)
        clip, frames = decoded
        self._clips(frames, video.captions, clip, key, held, tensors, found)
        if not found:
            return tensors, found, [Skip(video.path, "no captioned segment is as long as a clip")]
        return tensors, found, []

    def _clips(
        self,
        frames: Frames,
        captions: Sequence[Caption],
        clip: ClipLike,
        key: str,
        held: frozenset[str],
        tensors: dict[str, Tensor],
        found: list[dict[str, Any]],
    ) -> None:
        rng = np.random.default_rng(0)

        def keep(pixels: np.ndarray, caption: Caption, split: str, still: bool) -> None:
            top = cut(caption.y, pixels.shape[1], clip.height, 0.0, rng)
            left = cut(caption.x, pixels.shape[2], clip.width, 0.0, rng)
            pixels = pixels[:, top : top + clip.height, left : left + clip.width].transpose(0, 3, 1, 2)
            video = torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32)).div_(127.5).sub_(1.0)
            latents = self.autoencoder.encode(video).half().contiguous()
            name = f"{'still' if still else 'clip'}/{key}/{len(found)}"
            tensors[name] = latents
            found.append(
                {
                    "name": name,
                    "split": split,
                    "caption": caption.text,
                    "shape": list(latents.shape),
                    "still": still,
                }
            )

        if frames.shape[0] == 1:  # an image
            split = "validation" if frames.digest in held else "train"
            for caption in captions:
                keep(frames.read(0, 1), caption, split, clip.frames > 1)
            return
        span = frames.span(clip.frames)
        for split in ("train", "validation"):
            for run in split_runs(frames, captions, clip.frames, self.data, held, split):  # type: ignore[arg-type]
                for first in range(run.first, run.first + run.count, span):
                    pixels = frames.read(first, clip.frames)
                    keep(pixels, run.caption, split, False)
                    for _ in range(self.config.stills if split == "train" else 0):
                        which = int(rng.integers(len(pixels)))
                        keep(pixels[which : which + 1], run.caption, split, True)

    def _text(self, caption: str, tensors: dict[str, Tensor]) -> None:
        name = text_name(caption)
        if name not in self.known_texts and name not in tensors:
            tensors[name] = self.states(caption)


class _Writer:
    """Shards and their index: a shard appears whole, then the index vouches for it."""

    def __init__(self, out: Path, header: dict[str, Any], shard_mb: float) -> None:
        self.out, self.limit = out, shard_mb * 1e6
        self.metadata = {model: header[model]["digest"] for model in ("autoencoder", "text")}
        for left in out.glob(".*.partial"):
            left.unlink()
        lines = read_index(out)
        sizes = {line["shard"]: line["bytes"] for line in lines if line["shard"]}
        whole = {s for s, size in sizes.items() if (out / s).is_file() and (out / s).stat().st_size == size}
        # What was skipped unread is looked at again, and said again if it still is so.
        lines = [line for line in lines if line["shard"] in whole or (line["shard"] is None and line["key"])]
        self.lines = {line["id"]: line for line in lines}
        write_whole(out / INDEX, "".join(json.dumps(line) + "\n" for line in lines))
        for shard in out.glob("latents-*.safetensors"):
            if shard.name not in whole:
                shard.unlink()  # of a process that was killed before the index knew of it
        self.known_texts = {name for line in lines for name in line["texts"]}
        self.clips = sum(len(line["clips"]) for line in lines)
        self._number = 1 + max((int(s.split("-")[1].split(".")[0]) for s in whole), default=-1)
        self._clear()

    def _clear(self) -> None:
        self._tensors: dict[str, Tensor] = {}
        self._waiting: list[dict[str, Any]] = []
        self._bytes = 0
        self._since = time.monotonic()

    def has(self, digest: str, key: str) -> bool:
        """Whether a video was encoded just so before."""
        return digest in self.lines and self.lines[digest]["key"] == key

    def put(
        self,
        name: str,
        path: Path | None,
        key: str,
        tensors: dict[str, Tensor],
        clips: list[dict[str, Any]],
        skipped: Sequence[Skip],
    ) -> None:
        """One finished video, or what else has a ``name``; it takes the place of what had that name before."""
        texts = [name for name in tensors if name.startswith("text/")]
        self.known_texts.update(texts)
        self._tensors |= tensors
        self._bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        reasons = [{"path": str(skip.path), "reason": skip.reason} for skip in skipped]
        where = str(path or "")
        self._waiting.append(
            {"id": name, "path": where, "key": key, "clips": clips, "texts": texts, "skipped": reasons}
        )
        self.clips += len(clips)
        if self._bytes >= self.limit or time.monotonic() - self._since > FLUSH_SECONDS:
            self.flush()

    def forget(self, name: str) -> None:
        """What is made anew brings its captions again: its old line will not be read."""
        line = self.lines.pop(name, None)
        if line is not None:
            self.known_texts.difference_update(line["texts"])
            self.clips -= len(line["clips"])

    def forget_others(self, videos: Sequence[Video]) -> None:
        """Drop what files held before they were changed."""
        kept, paths = {video.digest for video in videos}, {str(video.path) for video in videos}
        for name, line in list(self.lines.items()):
            if line["path"] in paths and name not in kept:
                self.forget(name)
                self.put(name, None, "", {}, [], [])

    def texts(self, tensors: dict[str, Tensor]) -> None:
        """States that belong to no video."""
        new = {name: tensor for name, tensor in tensors.items() if name not in self.known_texts}
        if new:
            self.put("", None, "", new, [], [])

    def flush(self) -> None:
        """Write what is waiting."""
        from safetensors.torch import save_file

        if not self._waiting:
            return
        shard = f"latents-{self._number:05d}.safetensors" if self._tensors else None
        try:
            size = None
            if shard is not None:
                partial = partial_name(self.out / shard)
                save_file(self._tensors, str(partial), metadata=self.metadata)
                sync(partial)
                os.replace(partial, self.out / shard)
                size = (self.out / shard).stat().st_size
                self._number += 1
            with append(self.out / INDEX) as index:
                for line in self._waiting:
                    index.write(json.dumps({**line, "shard": shard, "bytes": size}) + "\n")
            sync(self.out / INDEX)
        except Exception as error:
            for left in self.out.glob(".*.partial"):
                left.unlink()
            if not disk_is_full(error):
                raise
            raise NasError(
                f"{self.out}: the disk is full; free some space and run the same command to go on from here"
            ) from error
        self._clear()
