"""Webdataset shards: tar files whose samples are a video or an image and its caption under one name."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from nas.data.captions import IMAGES, SUFFIXES, Caption
from nas.data.clip import Skip
from nas.errors import NasError
from nas.files import write_whole

WORDS = ("txt", "caption", "json")  # where a sample's caption may stand; of a JSON its "caption" or "text"


def find_shards(path: Path) -> list[Path]:
    """A tar, the tars of a folder, or those of ``shard-{000..041}.tar``, sorted.

    Raises:
        NasError: if there is none, or the library that reads them is missing.
    """
    if path.is_dir():
        found = sorted(path.glob("*.tar"))
    elif "{" in path.name:
        found = [Path(name) for name in _library().shardlists.expand_urls(str(path))]
    else:
        found = [path]
    gone = [shard for shard in found if not shard.is_file()]
    if gone or not found:
        raise NasError(
            f"{gone[0] if gone else path}: no such shard; set data.path to a tar, a folder of tars or a pattern"
        )
    return found


def unpack(path: Path, folder: Path) -> tuple[list[Caption], list[Skip]]:
    """Write the samples of all shards into ``folder``, those that are not there yet, and read their captions.

    Clips are drawn at random from decoded frames, so files are needed, not a stream. A sample without video or caption,
    or the part of a shard that cannot be read, is skipped with its reason.

    Raises:
        NasError: if there are no shards, or no sample in them.
    """
    tars = _library().tariterators
    captions: list[Caption] = []
    skipped: list[Skip] = []
    for shard in find_shards(path):
        stat = shard.stat()
        label = hashlib.sha256(f"{shard.resolve()}{stat.st_size}{stat.st_mtime_ns}".encode()).hexdigest()[:8]
        target = folder / f"{shard.stem}-{label}"
        target.mkdir(parents=True, exist_ok=True)

        def broken(error: Exception, shard: Path = shard) -> bool:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            skipped.append(Skip(shard, f"cannot be read to its end ({reason})"))
            return True

        if stat.st_size == 0:
            skipped.append(Skip(shard, "the file is empty"))
            continue
        with shard.open("rb") as stream:
            files = tars.tar_file_expander([{"url": str(shard), "stream": stream}], handler=broken)
            for sample in tars.group_by_keys(files, handler=broken):
                key = str(sample["__key__"])
                media = next((end for end in sample if f".{end.lower()}" in SUFFIXES | IMAGES), None)
                text = _caption(sample)
                if media is None or not text:
                    skipped.append(Skip(shard / key, "has no video or image" if media is None else "has no caption"))
                    continue
                file = target / f"{key.replace('/', '_')}.{media.lower()}"
                content = sample[media]
                if not file.is_file() or file.stat().st_size != len(content):
                    write_whole(file, content)
                captions.append(Caption(file, text))
    if not captions:
        reasons = "; ".join(map(str, skipped[:3]))
        raise NasError(f"{path}: no captioned video in the shards{f' ({reasons})' if reasons else ''}; check data.path")
    return captions, skipped


def _caption(sample: dict[str, Any]) -> str:
    for name in WORDS:
        content = sample.get(name)
        if content is None:
            continue
        text = content.decode("utf-8", errors="replace") if isinstance(content, bytes) else str(content)
        if name == "json":
            try:
                said = json.loads(text)
                text = str(said.get("caption") or said.get("text") or "") if isinstance(said, dict) else ""
            except ValueError:
                text = ""
        if text.strip():
            return " ".join(text.split())
    return ""


def _library() -> Any:
    try:
        import webdataset
    except ImportError:
        raise NasError(
            "data.source is shards, but webdataset is not installed; pip install 'temporal-nas[data]', or unpack them "
            "and use data.source=folder"
        ) from None
    return webdataset
