"""The videos that a configuration names, each once: what a video is, its content says, and not how its path is spelled.

A copy, a link or another spelling of a path is the same video; all that is said of any of them is said of it. Digests
are kept beside the frames by size, time and inode, so that a folder that was opened before is not read again.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nas.data.captions import Caption, read_captions, uncaptioned
from nas.data.clip import Skip
from nas.data.media import DecodeError, Media, content_digest
from nas.data.reader import probe
from nas.errors import NasError
from nas.files import append, write_whole

if TYPE_CHECKING:
    from nas.config import DataConfig

log = logging.getLogger(__name__)

INDEX = "files.jsonl"
SHARDS = "shards"  # lists of what shards hold


@dataclass(frozen=True)
class Video:
    """A video or an image and all that is said of it.

    Attributes:
        path: as the first caption calls it. digest: of its content.
    """

    path: Path
    media: Media
    digest: str
    captions: tuple[Caption, ...]


class Files:
    """What is known of files from earlier starts: digests by size, time and inode, shapes by digest.

    Lines are added to ``folder/files.jsonl``; one that was cut off, or a folder that takes none, costs time alone.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / INDEX
        self._digests: dict[tuple[str, int], tuple[list[int], str]] = {}
        self._shapes: dict[str, tuple[int, int, float]] = {}
        self._new: list[str] = []
        try:
            lines = self.path.read_bytes().split(b"\n")
        except OSError:
            return
        for line in lines:
            with suppress(ValueError, TypeError, IndexError):
                found = json.loads(line)
                if len(found) == 4:
                    name, start, stamp, digest = found
                    self._digests[name, start] = (stamp, digest)
                elif len(found) == 2:
                    self._shapes[found[0]] = (found[1][0], found[1][1], found[1][2])

    def known(self, media: Media) -> tuple[list[int], str | None]:
        """A file's size, time and inode, and its digest if it was read with these before.

        Raises:
            DecodeError: if there is no such file.
        """
        try:
            found = media.file.stat()
        except OSError as error:
            raise DecodeError((error.strerror or str(error)).lower()) from error
        except ValueError as error:
            raise DecodeError(str(error)) from error
        size = found.st_size if media.size is None else media.size
        stamp = [size, found.st_mtime_ns, found.st_ino]
        before, digest = self._digests.get((str(media.file), media.start), (None, None))
        return stamp, digest if before == stamp else None

    def digests(self, media: Sequence[Media]) -> list[str | DecodeError]:
        """The digest of each, or why it has none; files that were not read before are read side by side."""
        found: list[str | DecodeError | None] = []
        stamps: list[list[int]] = []
        for one in media:
            try:
                stamp, answer = self.known(one)
                found.append(answer)
                stamps.append(stamp)
            except DecodeError as error:
                found.append(error)
                stamps.append([])
        missing = [i for i, answer in enumerate(found) if answer is None]
        with ThreadPoolExecutor(max_workers=processors()) as pool:
            for i, digest in zip(missing, pool.map(_digest, [media[i] for i in missing]), strict=True):
                found[i] = digest
                if isinstance(digest, str):
                    name, start = str(media[i].file), media[i].start
                    self._digests[name, start] = (stamps[i], digest)
                    self._new.append(json.dumps([name, start, stamps[i], digest]))
        self._write()
        return [answer for answer in found if answer is not None]

    def shape(self, video: Video) -> tuple[int, int, float]:
        """Height, width and seconds of a video as it is shown.

        Raises:
            DecodeError: if it cannot be opened.
        """
        if video.digest not in self._shapes:
            self._shapes[video.digest] = probe(video.media)
            self._new.append(json.dumps([video.digest, self._shapes[video.digest]]))
            if len(self._new) >= 100:
                self._write()
        return self._shapes[video.digest]

    def _write(self) -> None:
        if not self._new:
            return
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            ignore = self.path.with_name(".gitignore")
            if not ignore.exists():
                write_whole(ignore, "*\n")
            with append(self.path) as file:  # whole lines at once: processes that train together write here too
                file.write("".join(f"\n{line}" for line in self._new) + "\n")
        self._new = []

    def close(self) -> None:
        """Write down what was found."""
        self._write()


def _digest(media: Media) -> str | DecodeError:
    try:
        return content_digest(media)
    except DecodeError as error:
        return error


def processors() -> int:
    """How many threads may read and decode at once."""
    return max(1, min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))


def by_content(captions: Sequence[Caption], files: Files) -> tuple[list[Video], list[Skip]]:
    """The videos that captions name, in their order, and files that cannot be read."""
    named: dict[tuple[Path, int], list[Caption]] = {}
    for caption in captions:
        media = caption.media or Media.of(caption.path)
        named.setdefault((media.file, media.start), []).append(caption)
    groups = list(named.values())
    files_of = [said[0].media or Media.of(said[0].path) for said in groups]
    videos: dict[str, list[list[Caption]]] = {}
    skipped = []
    for said, digest in zip(groups, files.digests(files_of), strict=True):
        if isinstance(digest, DecodeError):
            skipped.append(Skip(said[0].path, str(digest)))
        else:
            videos.setdefault(digest, []).append(said)
    found, doubles = [], []
    for digest, copies in videos.items():
        first = copies[0][0]
        doubles += [(copy[0].path.name, first.path.name) for copy in copies[1:]]
        captions_of = {_said(caption): caption for copy in copies for caption in copy}
        found.append(Video(first.path, first.media or Media.of(first.path), digest, tuple(captions_of.values())))
    if doubles:
        one, other = doubles[0]
        log.warning("%d of %d files are copies (%s of %s); each is taken once", len(doubles), len(groups), one, other)
    return found, skipped


def _said(caption: Caption) -> tuple[object, ...]:
    return caption.text, caption.start, caption.end, caption.x, caption.y


@contextmanager
def video_source(config: DataConfig, scratch: Path) -> Iterator[tuple[list[Caption], list[Skip]]]:
    """Captions of what a configuration names, and what is no use; copies that reading took are removed in the end."""
    from nas.data.shards import clear_copies

    try:
        yield source_captions(config, scratch)
    finally:
        clear_copies(scratch)


def source_captions(config: DataConfig, scratch: Path) -> tuple[list[Caption], list[Skip]]:
    """Captions of what a configuration names, and what is no use.

    Args:
        scratch: where lists of shards are kept.

    Raises:
        NasError: if it names no videos.
    """
    if config.source == "sample_clips":
        from nas.data.samples import sample_captions

        return sample_captions(), []
    if config.source not in ("folder", "shards"):
        raise NasError(
            f"data.source is {config.source!r}, which has no video files; give folder, shards or sample_clips"
        )
    if config.path is None:
        raise NasError(
            f"data.source is {config.source!r} but data.path is not set; give the folder that holds the videos"
        )
    if config.source == "shards":
        from nas.data.shards import read_shards

        return read_shards(config.path, scratch)
    captions = read_captions(config.path, config.captions, config.outside)
    return captions, uncaptioned(config.path, captions)
