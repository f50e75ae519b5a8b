"""What a shard's samples are, and that shards are read where they lie, once, and never out of place."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from latent_fixtures import save_allegro, save_text, small_space, write_video
from PIL import Image

from nas.config import DataConfig
from nas.data import open_data
from nas.data import shards as shards_module
from nas.data.caching import CacheConfig, build_cache
from nas.data.media import content_digest
from nas.data.shards import read_shards
from nas.data.videos import Shape, VideoClips
from nas.errors import NasError

CLIP = Shape(4, 16, 16, 8.0)


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Three videos that differ."""
    scratch = tmp_path_factory.mktemp("footage")
    return [write_video(scratch / f"{i}.mkv", 16 + i, seed=i).read_bytes() for i in range(3)]


def pack(path: Path, members: list[tuple[str, bytes | str]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def samples(path: Path, footage: list[bytes]) -> tuple[dict[str, int], list[str]]:
    """Captions with the number of their video, and what was skipped."""
    captions, skipped = read_shards(path, path.parent / "lists")
    digests = [content_digest(_file(path.parent, content)) for content in footage]
    found = {c.text: digests.index(content_digest(c.media)) for c in captions if c.media}
    return found, [str(skip) for skip in skipped]


def _file(folder: Path, content: bytes) -> Path:
    (folder / "one").write_bytes(content)
    return folder / "one"


def test_a_video_goes_before_its_thumbnail(tmp_path: Path, footage: list[bytes]) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (32, 32)).save(picture, "JPEG")
    path = pack(
        tmp_path / "s.tar", [("1.jpg", picture.getvalue()), ("1.mkv", footage[0]), ("1.thumb.png", b""), ("1.txt", "a")]
    )
    assert samples(path, footage) == ({"a": 0}, [])


def test_names_that_differ_stay_apart(tmp_path: Path, footage: list[bytes]) -> None:
    names = ["a/b_c", "a_b/c", "clip.1", "clip.2"]
    members = [(f"{n}.{e}", footage[i % 3] if e == "mkv" else n) for i, n in enumerate(names) for e in ("mkv", "txt")]
    path = pack(tmp_path / "s.tar", members)  # type: ignore[arg-type]
    assert samples(path, footage) == ({name: i % 3 for i, name in enumerate(names)}, [])
    data = open_data(DataConfig(source="shards", path=path, cache=tmp_path / "cache"), CLIP)
    assert isinstance(data, VideoClips)
    said = {run.caption.text: run.frames.shape[0] for run in data.runs}
    assert said == {"a/b_c": 16, "a_b/c": 17, "clip.1": 18, "clip.2": 16}


def test_a_sample_need_not_lie_together_and_a_name_may_come_again(tmp_path: Path, footage: list[bytes]) -> None:
    apart = pack(tmp_path / "a.tar", [("1.mkv", footage[0]), ("2.mkv", footage[1]), ("1.txt", "one"), ("2.txt", "two")])
    assert samples(apart, footage) == ({"one": 0, "two": 1}, [])
    again = pack(tmp_path / "b.tar", [("1.mkv", footage[0]), ("1.txt", "one"), ("1.mkv", footage[1]), ("1.txt", "two")])
    assert samples(again, footage) == ({"one": 0, "two": 1}, [])


def test_files_of_the_system_are_no_samples_and_ends_may_be_capital(tmp_path: Path, footage: list[bytes]) -> None:
    members = [("._1.mkv", b"mac"), ("./x/1.MKV", footage[0]), ("./x/1.TXT", "\ufeffone"), (".DS_Store", b"")]
    assert samples(pack(tmp_path / "s.tar", members), footage) == ({"one": 0}, [])


def test_captions_of_a_list_are_several(tmp_path: Path, footage: list[bytes]) -> None:
    words = json.dumps({"caption": ["one", " two\u2028words "]})
    found = samples(pack(tmp_path / "s.tar", [("1.mkv", footage[0]), ("1.json", words)]), footage)
    assert found == ({"one": 0, "two words": 0}, [])


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("1.json", '{"caption": 5}', "1.json: the caption is a number: 5"),
        ("1.json", '{"caption": {"en": "x"}}', "1.json: the caption is an object"),
        ("1.json", "{", "1.json is no JSON"),
        ("1.json", "[]", "1.json is no JSON object with a caption"),
        ("1.txt", b"caf\xe9", "1.txt is no UTF-8 text"),
        ("1.txt", "  ", "has no caption"),
        ("1.md", "words", "has no caption"),
    ],
)
def test_a_reason_says_what_is_wrong(
    tmp_path: Path, footage: list[bytes], name: str, content: str | bytes, reason: str
) -> None:
    path = pack(tmp_path / "s.tar", [("1.mkv", footage[0]), (name, content), ("2.mkv", footage[1]), ("2.txt", "two")])
    found, (skip,) = samples(path, footage)
    assert found == {"two": 1} and reason in skip


def test_a_kind_of_file_that_is_not_known_is_named(tmp_path: Path, footage: list[bytes]) -> None:
    path = pack(tmp_path / "s.tar", [("1.xyz", footage[0]), ("1.txt", "one"), ("2.wmv", footage[1]), ("2.txt", "two")])
    assert samples(path, footage) == (
        {"two": 1},
        ["1: has no video or image: .xyz is no kind of file known here"],
    )


def test_hostile_members_reach_nothing_outside(tmp_path: Path, footage: list[bytes]) -> None:
    secret = tmp_path / "secret.mkv"
    secret.write_bytes(footage[2])
    path = tmp_path / "deep" / "er" / "s.tar"
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w") as tar:
        for name, kind in (("link.mkv", tarfile.SYMTYPE), ("hard.mkv", tarfile.LNKTYPE), ("dev.mkv", tarfile.CHRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, str(secret)
            tar.addfile(info)
            words = tarfile.TarInfo(name.replace("mkv", "txt"))
            words.size = 4
            tar.addfile(words, io.BytesIO(b"evil"))
        for name in ("../../evil", "/evil", "..", "a/../../evil"):
            for end, content in (("mkv", footage[0]), ("txt", f"of {name}".encode())):
                info = tarfile.TarInfo(f"{name}.{end}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    before = {p for p in tmp_path.rglob("*")}
    data = open_data(DataConfig(source="shards", path=path, cache=path.parent / "cache"), CLIP)
    assert set(data.captions) == {"of ../../evil", "of /evil", "of a/../../evil"}
    assert sum("is a link or a device" in str(skip) for skip in data.skipped) == 3
    new = {p for p in tmp_path.rglob("*")} - before
    assert all(path.parent / "cache" in (p, *p.parents) for p in new)


def test_a_shard_is_read_once_and_again_when_it_changes(
    tmp_path: Path, footage: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pack(tmp_path / "s.tar", [("1.mkv", footage[0]), ("1.txt", "one")])
    settings = DataConfig(source="shards", path=path, cache=tmp_path / "cache")
    assert open_data(settings, CLIP).captions == ("one",)
    with monkeypatch.context() as patched:
        patched.setattr(shards_module.tarfile, "open", lambda *_, **__: pytest.fail("read again"))
        assert open_data(settings, CLIP).captions == ("one",)
    pack(path, [("1.mkv", footage[1]), ("1.txt", "two")])
    os.utime(path, (1, 1))
    assert open_data(settings, CLIP).captions == ("two",)
    videos = [p for p in (tmp_path / "cache").rglob("*") if p.suffix in (".mkv", ".tar")]
    assert not videos  # nothing was unpacked


@pytest.mark.parametrize("packed", [gzip.compress, bz2.compress])
def test_a_compressed_shard_is_a_shard(tmp_path: Path, footage: list[bytes], packed: Any) -> None:
    path = pack(tmp_path / "s.tar", [("1.mkv", footage[0]), ("1.txt", "one"), ("2.mkv", footage[1]), ("2.txt", "two")])
    whole = packed(path.read_bytes())
    path.write_bytes(whole)
    assert samples(path, footage) == ({"one": 0, "two": 1}, [])
    path.write_bytes(whole[: len(whole) * 2 // 3])
    if packed is gzip.compress:
        found, (skip,) = samples(path, footage)
        assert found == {"one": 0} and "cannot be read to its end" in skip


def test_a_shard_that_breaks_off_gives_what_is_whole(tmp_path: Path, footage: list[bytes]) -> None:
    path = pack(tmp_path / "s.tar", [("1.mkv", footage[0]), ("1.txt", "one"), ("2.mkv", footage[1]), ("2.txt", "two")])
    path.write_bytes(path.read_bytes()[: len(footage[0]) + 2048 + len(footage[1]) // 2])
    found, (skip,) = samples(path, footage)
    assert found == {"one": 0} and "cannot be read to its end" in skip
    path.write_bytes(b"no tar at all" * 100)
    with pytest.raises(NasError, match="no captioned video in the shards .s.tar: cannot be read to its end"):
        read_shards(path, tmp_path / "lists")


def test_a_cache_of_latents_takes_shards_as_a_stream(tmp_path: Path, footage: list[bytes]) -> None:
    path = pack(tmp_path / "s.tar", [("a/1.mkv", footage[0]), ("a/1.txt", "a ball"), ("1.mkv", footage[1])])
    config = CacheConfig(save_allegro(tmp_path / "allegro"), save_text(tmp_path / "text"))
    space, out = small_space(tmp_path), tmp_path / "cache"
    summary = build_cache(DataConfig(source="shards", path=path), space, config, out)
    assert summary["videos"] == 1 and summary["clips"] == 2 and summary["skipped"] == ["1: has no caption"]
    assert build_cache(DataConfig(source="shards", path=path), space, config, out)["clips"] == 2
    assert not [p for p in out.rglob("*") if p.suffix in (".mkv", ".tar", ".npy")]
