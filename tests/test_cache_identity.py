"""A cache of latents knows videos by content, and one of an older reader does not pass."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from latent_fixtures import save_allegro, save_text, small_space, video_folder, write_video

from nas.config import DataConfig
from nas.data.cached import LatentCache, read_index
from nas.data.caching import CacheConfig, build_cache
from nas.errors import NasError


@pytest.fixture
def made(tmp_path: Path) -> dict[str, Any]:
    """Two videos, cached."""
    shop = {
        "videos": video_folder(tmp_path / "videos", count=2, frames=24),
        "space": small_space(tmp_path),
        "config": CacheConfig(save_allegro(tmp_path / "allegro"), save_text(tmp_path / "text")),
        "out": tmp_path / "cache",
    }
    build(shop)
    return shop


def build(shop: dict[str, Any], **data: Any) -> dict[str, Any]:
    config = DataConfig(source="folder", path=shop["videos"], **data)
    return build_cache(config, shop["space"], shop["config"], shop["out"])


def held(shop: dict[str, Any]) -> set[str]:
    return {entry.name for entry in LatentCache(shop["out"]).entries}


def shards(shop: dict[str, Any]) -> int:
    return len(list(shop["out"].glob("*.safetensors")))


def test_a_renamed_or_copied_video_is_not_encoded_again(made: dict[str, Any]) -> None:
    before, videos = held(made), made["videos"]
    (videos / "0.mkv").rename(videos / "new.mkv")
    shutil.copy(videos / "1.mkv", videos / "copy.mkv")
    rows = "new.mkv,a blue ball falls\n1.mkv,a red ball falls\ncopy.mkv,a red ball falls\n"
    (videos / "captions.csv").write_text("path,caption\n" + rows)
    assert build(made)["videos"] == 2 and held(made) == before and shards(made) == 1


def test_a_file_with_other_content_loses_what_it_held_before(made: dict[str, Any]) -> None:
    before, videos = held(made), made["videos"]
    write_video(videos / "0.mkv", 24, seed=9)
    build(made)
    gone = before - held(made)
    assert len(gone) == len(before) / 2 and len(held(made)) == len(before)
    swapped = {name: (videos / name).read_bytes() for name in ("0.mkv", "1.mkv")}
    (videos / "0.mkv").write_bytes(swapped["1.mkv"])
    (videos / "1.mkv").write_bytes(swapped["0.mkv"])
    captions = (videos / "captions.csv").read_text()
    (videos / "captions.csv").write_text(captions.replace("0.mkv", "x").replace("1.mkv", "0.mkv").replace("x", "1.mkv"))
    now, count = held(made), shards(made)
    build(made)
    assert held(made) == now and shards(made) == count  # the same videos under each other's names


def test_what_could_not_be_read_is_looked_at_again(made: dict[str, Any]) -> None:
    videos = made["videos"]
    with (videos / "captions.csv").open("a") as captions:
        captions.write("late.mkv,a ball rises\n")
    assert [s for s in build(made)["skipped"] if "late" in s]
    write_video(videos / "late.mkv", 24, seed=5)
    summary = build(made)
    assert not summary["skipped"] and summary["videos"] == 3


def test_copies_are_on_one_side_of_the_split(made: dict[str, Any]) -> None:
    videos = made["videos"]
    shutil.copy(videos / "0.mkv", videos / "copy.mkv")
    (videos / "captions.csv").write_text(
        "path,caption,start,end\n0.mkv,a blue ball falls,,\ncopy.mkv,a ball,0,2\n1.mkv,a red ball falls,,\n"
    )
    build(made)
    splits: dict[str, set[str]] = {}
    for line in read_index(made["out"]):
        for clip in line["clips"]:
            splits.setdefault(clip["split"], set()).add(clip["caption"])
    assert splits["validation"] and len(read_index(made["out"])) == 3  # two videos, and the empty caption


def test_a_cache_of_an_older_reader_is_refused_in_one_line(made: dict[str, Any]) -> None:
    header = made["out"] / "cache.json"
    header.write_text(json.dumps({**json.loads(header.read_text()), "schema": 1}))
    for call in (lambda: LatentCache(made["out"]), lambda: build(made)):
        with pytest.raises(NasError, match="made by another version of the toolkit; make the cache again") as caught:
            call()
        assert "\n" not in str(caught.value)
