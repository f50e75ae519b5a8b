"""Webdataset shards: tar files whose samples are a video or an image and its caption under one name."""

from __future__ import annotations

import hashlib
import json
import logging
import lzma
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from nas.data.captions import IMAGES, SUFFIXES, Caption, texts_of
from nas.data.clip import Skip
from nas.data.media import Media
from nas.errors import NasError
from nas.files import partial_name, write_whole

log = logging.getLogger(__name__)

WORDS = ("txt", "caption", "json")  # where a sample's caption may stand; of a JSON its "caption" or "text"
BROKEN = (tarfile.TarError, OSError, EOFError, ValueError, zlib.error, lzma.LZMAError)
LONGEST_WORDS = 1 << 20  # bytes of a caption's file; more is none
SCHEMA = 1  # of the list of a shard's samples


def find_shards(path: Path) -> list[Path]:
    """A tar, the tars of a folder, or those of ``shard-{000..041}.tar``, sorted.

    Raises:
        NasError: if there is none, or the library that reads patterns is missing.
    """
    if path.is_dir():
        found = sorted(path.glob("*.tar"))
    elif "{" in path.name and not path.is_file():
        found = [Path(name) for name in _library().shardlists.expand_urls(str(path))]
    else:
        found = [path]
    gone = [shard for shard in found if not shard.is_file()]
    if gone or not found:
        raise NasError(
            f"{gone[0] if gone else path}: no such shard; set data.path to a tar, a folder of tars or a pattern"
        )
    return found


def read_shards(path: Path, folder: Path) -> tuple[list[Caption], list[Skip]]:
    """Captions of the samples of all shards, each with the stretch of its tar that is the video.

    Nothing is unpacked: videos are read where they lie. What a shard holds is listed once, in ``folder``, and the list
    stands as long as the shard's size and time do; a compressed shard is unpacked there whole. A sample without video
    or caption, or the part of a shard that cannot be read, is skipped with its reason.

    Raises:
        NasError: if there are no shards, or no sample in them.
    """
    captions: list[Caption] = []
    skipped: list[Skip] = []
    for shard in find_shards(path):
        listed = _listed(shard, folder)
        tar = Path(listed["tar"])
        for sample in listed["samples"]:
            name = shard / sample["name"].lstrip("/")
            media = Media(name, tar, sample["start"], sample["size"])
            captions += [Caption(name, text, where=sample["where"], media=media) for text in sample["captions"]]
        skipped += [Skip(shard / name.lstrip("/") if name else shard, reason) for name, reason in listed["skipped"]]
    if not captions:
        reasons = "; ".join(map(str, skipped[:3]))
        raise NasError(f"{path}: no captioned video in the shards{f' ({reasons})' if reasons else ''}; check data.path")
    return captions, skipped


def _listed(shard: Path, folder: Path) -> Mapping[str, Any]:
    """What a shard holds, from its list or read anew."""
    found = shard.stat()
    stamp = [SCHEMA, str(shard.resolve()), found.st_size, found.st_mtime_ns, found.st_ino]
    label = f"{shard.stem[:80]}-{hashlib.sha256(repr(stamp).encode()).hexdigest()[:12]}"
    notes = folder / f"{label}.json"
    try:
        known = dict(json.loads(notes.read_text(encoding="utf-8")))
        if known["stamp"] == stamp and Path(known["tar"]).is_file():
            return known
    except (OSError, ValueError, KeyError, TypeError):
        pass
    samples: list[dict[str, Any]] = []
    skipped: list[tuple[str, str]] = []
    tar = shard.resolve()
    if found.st_size == 0:
        skipped.append(("", "the file is empty"))
    else:
        tar, broken = _plain(shard, folder / f"{label}.tar")
        entries = _Entries()
        try:
            _read_entries(tar, entries)
        except BROKEN as error:
            broken = broken or _reason(error)
        samples, skipped = entries.samples(shard)
        if broken:
            skipped.append(("", f"cannot be read to its end ({broken})"))
    known = {"stamp": stamp, "tar": str(tar), "samples": samples, "skipped": skipped}
    _keep(notes, known)
    return known


def _keep(notes: Path, known: Mapping[str, Any]) -> None:
    """Write a list whole or not at all; a folder that cannot be written costs the next start, no more."""
    try:
        notes.parent.mkdir(parents=True, exist_ok=True)
        write_whole(notes, json.dumps(known))
    except OSError as error:
        log.warning("%s: cannot keep the list of a shard (%s)", notes.parent, error.strerror or error)


def _plain(shard: Path, unpacked: Path) -> tuple[Path, str]:
    """A tar whose samples lie as they are; of a compressed one a copy, and why the copy ends early, if it does.

    Raises:
        NasError: if the copy cannot be written.
    """
    opener = _opener(shard)
    if opener is None:
        return shard.resolve(), ""
    broken = ""
    partial = partial_name(unpacked)
    try:
        unpacked.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("xb") as target, opener(shard, "rb") as source:
            while True:
                try:
                    block = source.read1(1 << 20)  # what there is, also before where it breaks off
                except BROKEN as error:
                    broken = _reason(error)
                    break
                if not block:
                    break
                target.write(block)
        os.replace(partial, unpacked)
    except OSError as error:
        raise NasError(
            f"{unpacked.parent}: cannot unpack {shard.name} ({error.strerror or error}); free space there, or set "
            "data.cache to a folder with room"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return unpacked.resolve(), broken


def _opener(shard: Path) -> Any:
    """How a compressed file is opened; None for a plain one."""
    import bz2
    import gzip

    with shard.open("rb") as file:
        start = file.read(6)
    kinds = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
    return next((opener for mark, opener in kinds.items() if start.startswith(mark)), None)


@dataclass
class _Entry:
    """A member of a tar that may be part of a sample."""

    name: str
    start: int
    size: int
    words: bytes | None


@dataclass
class _Entries:
    """Members by sample: folder and name up to the first dot, then what stands between it and the last one.

    So the parts of a sample need not follow one another, and ``clip.1.mp4`` and ``clip.2.mp4`` are two. Where a name
    comes again, another sample of that name begins.
    """

    groups: dict[tuple[str, int], dict[str, dict[str, _Entry]]] = field(default_factory=dict)
    times: dict[str, int] = field(default_factory=dict)
    links: list[tuple[str, str]] = field(default_factory=list)

    def add(self, entry: _Entry) -> None:
        path = PurePosixPath(entry.name)
        if path.name.startswith("."):  # of macOS and editors
            return
        stem, _, ends = path.name.partition(".")
        between, _, end = ends.rpartition(".")
        turn = self.times[entry.name] = self.times.get(entry.name, -1) + 1
        group = self.groups.setdefault((str(path.parent / stem), turn), {})
        group.setdefault(between, {})[end.lower()] = entry

    def samples(self, shard: Path) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
        """What can be used, and the names of the others with their reasons."""
        found: list[dict[str, Any]] = []
        skipped = list(self.links)
        for (key, turn), group in self.groups.items():
            media = _media(group)
            name = key + (f" (no. {turn + 1})" if turn else "")
            if not media:
                ends = sorted({f".{end}" for parts in group.values() for end in parts if end not in WORDS and end})
                kinds = f": {', '.join(ends)} is no kind of file known here" if ends else ""
                skipped.append((name, f"has no video or image{kinds}"))
            for between, entry in media:
                try:
                    words = _caption({**group.get("", {}), **group[between]}, shard)
                except NasError as error:
                    skipped.append((entry.name, str(error)))
                    continue
                if words is None:
                    skipped.append((name, "has no caption"))
                    continue
                texts, where = words
                found.append(
                    {
                        "name": entry.name + (f" (no. {turn + 1})" if turn else ""),
                        "start": entry.start,
                        "size": entry.size,
                        "captions": texts,
                        "where": where,
                    }
                )
        return found, skipped


def _media(group: Mapping[str, Mapping[str, _Entry]]) -> list[tuple[str, _Entry]]:
    """A sample's videos or, where it has none, its images: a picture beside a video is its thumbnail."""
    for kind in (SUFFIXES, IMAGES):
        found = []
        for between, parts in group.items():
            mine = [entry for end, entry in parts.items() if f".{end}" in kind]
            said = any(end in WORDS for end in parts) or between == ""
            if mine and (said or kind is SUFFIXES):
                found.append((between, mine[0]))
        if found:
            return found
    return []


def _read_entries(tar: Path, entries: _Entries) -> None:
    size = tar.stat().st_size
    with tarfile.open(tar, "r:") as file:
        for member in _members(file):
            suffix = PurePosixPath(member.name).suffix.lower()
            if member.issym() or member.islnk() or member.isdev():
                entries.links.append((member.name, "is a link or a device; only plain files are read"))
                continue
            if not member.isreg() or member.issparse():
                continue
            if member.offset_data + member.size > size:
                raise tarfile.ReadError("unexpected end of data")
            words = None
            if suffix[1:] in WORDS and member.size <= LONGEST_WORDS:
                source = file.extractfile(member)
                words = source.read() if source is not None else None
            entries.add(_Entry(member.name, member.offset_data, member.size, words))


def _members(file: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """One by one, without keeping them."""
    while (member := file.next()) is not None:
        file.members = []  # type: ignore[attr-defined]
        yield member


def _caption(sample: Mapping[str, _Entry], shard: Path) -> tuple[list[str], str] | None:
    """A sample's captions and where they stand; None if it has none.

    Raises:
        NasError: if what stands there is no caption.
    """
    for end in WORDS:
        entry = sample.get(end)
        if entry is None:
            continue
        where = f"{shard}/{entry.name}"
        if entry.words is None:
            raise NasError(f"{entry.name} is too large for a caption ({entry.size} bytes)")
        try:
            value: Any = entry.words.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise NasError(f"{entry.name} is no UTF-8 text ({error.reason})") from None
        if end == "json":
            try:
                said = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise NasError(f"{entry.name} is no JSON ({getattr(error, 'msg', 'numbers beyond use')})") from None
            if not isinstance(said, dict):
                raise NasError(f"{entry.name} is no JSON object with a caption")
            value = said.get("caption") or said.get("text")
        if value is None or (isinstance(value, str) and not value.strip()):
            continue
        return [" ".join(text.split()) for text in texts_of(value, entry.name)], where
    return None


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _library() -> Any:
    try:
        import webdataset
    except ImportError:
        raise NasError(
            "data.path is a pattern, but webdataset, which reads patterns, is not installed; pip install "
            "'temporal-nas[data]', or give a folder of tars"
        ) from None
    return webdataset


def clear_copies(folder: Path) -> None:
    """Remove copies of compressed shards; the lists stay."""
    for copy in folder.glob("*.tar"):
        copy.unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        shutil.rmtree(folder, ignore_errors=True)
