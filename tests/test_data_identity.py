"""What a video is, its content says: copies, links and other spellings are one video, in splits, caches and indexes."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from latent_fixtures import write_video

from nas.config import DataConfig
from nas.data import media, open_data, sources
from nas.data.captions import Caption, read_captions
from nas.data.frames import FrameSpec, cached_frames, content_digest
from nas.data.sources import Files, by_content
from nas.data.videos import VideoClips
from nas.errors import NasError


@dataclass(frozen=True)
class Clip:
    frames: int = 4
    height: int = 16
    width: int = 16
    fps: float = 8.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One footage under five names with captions of other stretches, and another one."""
    made = tmp_path / "videos"
    (made / "more").mkdir(parents=True)
    write_video(made / "a.mkv", 48)
    write_video(made / "b.mkv", 32, seed=1)
    shutil.copy(made / "a.mkv", made / "more" / "copy.mkv")
    (made / "link.mkv").symlink_to("a.mkv")
    os.link(made / "a.mkv", made / "hard.mkv")
    rows = [
        "path,caption,start,end",
        "a.mkv,a,,",
        "more/copy.mkv,a copy,0,3",
        "./../videos/a.mkv,another spelling,1,4",
        "link.mkv,a link,0,2",
        "hard.mkv,a,,",
        "b.mkv,b,,",
    ]
    (made / "captions.csv").write_text("\n".join(rows))
    return made


def config(folder: Path, **changes: Any) -> DataConfig:
    return DataConfig(source="folder", path=folder, cache=folder.parent / "cache", **changes)


def frames_shown(folder: Path, split: Any, **changes: Any) -> set[tuple[str, int]]:
    data = open_data(config(folder, **changes), Clip(), split)
    assert isinstance(data, VideoClips)
    ends = [(run, run.first + run.count - 1 + run.frames.span(4)) for run in data.runs]
    return {(run.frames.digest, frame) for run, end in ends for frame in range(run.first, end)}


@pytest.mark.parametrize("holdout", ["time", "video"])
def test_no_frame_of_a_copy_a_link_or_another_spelling_is_in_both_splits(folder: Path, holdout: str) -> None:
    train, validation = (frames_shown(folder, split, holdout=holdout) for split in ("train", "validation"))
    assert train and validation and not train & validation


def test_a_video_is_decoded_once_and_all_that_is_said_of_it_is_kept(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        data = open_data(config(folder), Clip())
    assert set(data.captions) == {"a", "a copy", "another spelling", "a link", "b"}
    assert len(list((folder.parent / "cache").glob("*.npy"))) == 2
    assert [r.getMessage() for r in caplog.records] == [
        "2 of 4 files are copies (copy.mkv of a.mkv); each is taken once"
    ]
    videos, _ = by_content(read_captions(folder), Files(folder.parent / "cache"))
    assert [len(video.captions) for video in videos] == [4, 1]  # said twice of one video, it is one caption


def test_a_copy_elsewhere_is_not_decoded_again(folder: Path, tmp_path: Path) -> None:
    spec, cache = FrameSpec(16, 16, 8.0), tmp_path / "cache"
    first = cached_frames(folder / "a.mkv", spec, cache)
    copy = shutil.copy(folder / "a.mkv", tmp_path / "elsewhere.mkv")
    os.utime(copy, (1, 1))
    assert cached_frames(tmp_path / "elsewhere.mkv", spec, cache).file == first.file


def test_equal_ends_do_not_make_two_files_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "SAMPLE_BYTES", 100)
    monkeypatch.setattr(media, "BETWEEN_BYTES", 10)
    one, other = tmp_path / "1", tmp_path / "2"
    one.write_bytes(bytes(1000))
    other.write_bytes(bytes(480) + b"x" * 40 + bytes(480))
    assert content_digest(one) != content_digest(other) and content_digest(one) == content_digest(one)


def test_the_second_start_hashes_and_decodes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(folder, buckets=("4x16x32",))
    first = open_data(settings, Clip())
    for module, name in ((sources, "content_digest"), (sources, "probe"), (media.av, "open")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("read again"))
    for split in ("train", "validation"):
        assert set(open_data(settings, Clip(), split).captions) <= set(first.captions)  # type: ignore[arg-type]


@pytest.mark.parametrize("change", ["size", "time", "inode"])
def test_a_file_that_changed_is_hashed_again(tmp_path: Path, change: str) -> None:
    path = tmp_path / "v.mkv"
    path.write_bytes(b"a" * 100)
    os.utime(path, ns=(10**18, 10**18))

    def digest() -> str:
        (video,), skipped = by_content([Caption(path, "x")], Files(tmp_path / "cache"))
        assert not skipped
        return video.digest

    before = digest()
    assert digest() == before
    if change == "inode":
        (tmp_path / "new").write_bytes(b"b" * 100)
        os.replace(tmp_path / "new", path)
    else:
        path.write_bytes(b"b" * (100 + (change == "size")))
    if change != "time":
        os.utime(path, ns=(10**18, 10**18))
    assert digest() != before


def test_an_index_that_is_damaged_or_cannot_be_kept_costs_time_alone(folder: Path) -> None:
    wanted = open_data(config(folder), Clip()).captions
    index = folder.parent / "cache" / "files.jsonl"
    index.write_bytes(index.read_bytes()[:-30] + b'\n[1, 2, 3, 4]\n{"a": 1}\n\xff\n["x", [1]]\nnull')
    assert open_data(config(folder), Clip()).captions == wanted
    index.unlink()
    index.mkdir()
    assert open_data(config(folder), Clip()).captions == wanted


def test_what_the_cache_will_take_is_said_before_it_is_filled(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    open_data(config(folder), Clip())
    told = capsys.readouterr().err
    assert "2 videos to decode: their frames will take about" in told and "free" in told
    taken = sum(path.stat().st_size for path in (folder.parent / "cache").glob("*.npy"))
    size, unit = told.split("about ")[1].split()[:2]
    assert float(size) * {"kB": 1e3, "MB": 1e6}[unit] == pytest.approx(taken, rel=0.1)
    open_data(config(folder), Clip())
    assert "decode" not in capsys.readouterr().err
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))  # type: ignore[attr-defined]
    shutil.rmtree(folder.parent / "cache")
    with pytest.raises(ValueError, match="will take about .* are free; set data.cache"):
        open_data(config(folder), Clip())


def test_a_file_system_without_locks_is_decoded_to_all_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", missing)
    monkeypatch.setattr("fcntl.lockf", missing)
    assert open_data(config(folder), Clip())[0]["video"].shape == (4, 3, 16, 16)


def test_a_link_in_the_place_of_a_file_of_ours_is_not_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("dear")
    cache = folder.parent / "cache"
    cache.mkdir()
    for name in ("files.jsonl", ".gitignore"):
        (cache / name).unlink(missing_ok=True)
        (cache / name).symlink_to(tmp_path / "mine.txt")
        with contextlib.suppress(NasError):
            open_data(config(folder), Clip())
        (cache / name).unlink(missing_ok=True)
    assert (tmp_path / "mine.txt").read_text() == "dear"
