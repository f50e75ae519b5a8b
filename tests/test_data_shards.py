"""Webdataset shards, images beside videos, and buckets of shapes."""

from __future__ import annotations

import io
import multiprocessing
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from latent_fixtures import write_video
from PIL import Image

from nas.config import DataConfig
from nas.data import frames, open_data
from nas.data.clip import Buckets, images_of
from nas.data.decoding import choose_bucket
from nas.data.media import Media, content_digest
from nas.data.shards import find_shards
from nas.data.sources import Files, Video
from nas.data.videos import Shape, clip_buckets
from nas.errors import NasError

pytest.importorskip("webdataset", reason="shards need the extra data: pip install 'temporal-nas[data]'")

CLIP = Shape(4, 16, 16, 8.0)


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def shard(path: Path, names: list[str], scratch: Path) -> Path:
    """Each sample a video and its caption."""
    scratch.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for i, name in enumerate(names):
            add(tar, f"{name}.mkv", write_video(scratch / "v.mkv", 16, seed=i).read_bytes())
            add(tar, f"{name}.txt", f"a ball called {name}\n".encode())
    return path


def config(path: Path, cache: Path, **changes: object) -> DataConfig:
    return DataConfig.model_validate({"source": "shards", "path": path, "cache": cache, **changes})


def test_samples_of_all_shards_are_clips_with_their_captions(tmp_path: Path) -> None:
    (tmp_path / "tars").mkdir()
    for number, names in enumerate((["000", "001"], ["002"])):
        shard(tmp_path / "tars" / f"part-{number:03d}.tar", names, tmp_path / "scratch")
    wanted = {f"a ball called {name}" for name in ("000", "001", "002")}
    for path in (tmp_path / "tars", tmp_path / "tars" / "part-{000..001}.tar"):
        data = open_data(config(path, tmp_path / "cache"), CLIP)
        assert set(data.captions) == wanted and not data.skipped
        assert {data[i]["caption"] for i in range(40)} == wanted and data[0]["video"].shape == (4, 3, 16, 16)
    one = open_data(config(tmp_path / "tars" / "part-001.tar", tmp_path / "cache"), CLIP)
    assert set(one.captions) == {"a ball called 002"}


def test_what_is_wrong_in_a_shard_is_skipped_with_its_reason(tmp_path: Path) -> None:
    folder = tmp_path / "tars"
    folder.mkdir()
    shard(folder / "a.tar", ["good"], tmp_path / "scratch")
    with tarfile.open(folder / "b.tar", "w") as tar:
        add(tar, "silent.mkv", write_video(tmp_path / "v.mkv", 16).read_bytes())
        add(tar, "words.txt", b"a caption of nothing")
        add(tar, "broken.mkv", b"no video")
        add(tar, "broken.json", b'{"caption": "a broken ball"}')
        add(tar, "void.mkv", b"")
        add(tar, "void.json", b'{"text": "a void"}')
    whole = shard(folder / "c.tar", ["kept", "lost"], tmp_path / "scratch").read_bytes()
    (folder / "c.tar").write_bytes(whole[: int(len(whole) * 0.6)])
    (folder / "d.tar").touch()
    data = open_data(config(folder, tmp_path / "cache"), CLIP)
    assert "a ball called good" in data.captions and "a ball called kept" in data.captions
    said = "\n".join(map(str, data.skipped))
    for reason in (
        "silent: has no caption",
        "words: has no video or image",
        "broken.mkv: does not decode",
        "void.mkv: the file is empty",
        "c.tar: cannot be read to its end",
        "d.tar: the file is empty",
    ):
        assert reason in said


def test_shards_that_are_not_there_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (tmp_path / "gone.tar", tmp_path, tmp_path / "part-{000..003}.tar"):
        with pytest.raises(NasError, match="no such shard") as caught:
            find_shards(path)
        assert "\n" not in str(caught.value)
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    with pytest.raises(NasError, match="no captioned video in the shards"):
        open_data(config(tmp_path / "empty.tar", tmp_path / "cache"), CLIP)
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(NasError, match=r"pip install 'temporal-nas\[data\]'"):
        find_shards(tmp_path / "part-{000..003}.tar")


def test_images_join_the_image_half_and_never_the_videos(tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    write_video(folder / "v.mkv", 16)
    Image.fromarray(np.full((30, 50, 3), (0, 255, 0), np.uint8)).save(folder / "green.png")
    (folder / "captions.csv").write_text("path,caption\nv.mkv,a ball\ngreen.png,all green\n")
    data = open_data(DataConfig(source="folder", path=folder, cache=tmp_path / "cache"), CLIP)
    assert {data[i]["caption"] for i in range(20)} == {"a ball"} and "all green" in data.captions
    stills = images_of(data, 0)
    seen = [stills[i] for i in range(10)]
    assert all(item["video"].shape == (1, 3, 16, 16) for item in seen)
    green = [item["video"] for item in seen if item["caption"] == "all green"]
    assert len(green) == 5
    colour = green[0][0].mean(dim=(1, 2))
    assert float(colour[1]) > 0.95 and float(colour[0]) < -0.95 and float(colour[2]) < -0.95


def test_decoding_that_takes_a_while_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("nas.data.decoding.QUIET", 0.0)
    folder = tmp_path / "videos"
    folder.mkdir()
    for seed, name in enumerate("ab"):
        write_video(folder / f"{name}.mkv", 16, seed=seed)
    (folder / "captions.csv").write_text("path,caption\na.mkv,a ball\nb.mkv,a ball\n")
    open_data(DataConfig(source="folder", path=folder, cache=tmp_path / "cache"), CLIP)
    assert "decode     2/2" in capsys.readouterr().err
    assert not list((tmp_path / "cache").glob("*.lock"))


def open_there(path: Path, cache: Path, seen: Any) -> None:
    decoded: list[str] = []
    real = frames._decode_into

    def slowly(source: Any, *more: Any) -> Any:
        decoded.append(source.path.name)
        time.sleep(0.3)
        return real(source, *more)

    frames._decode_into = slowly
    shape = frames.cached_frames(path, frames.FrameSpec(16, 16, 8.0), cache).shape
    seen.put((len(decoded), shape))


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_of_processes_that_open_the_same_video_one_decodes_it(tmp_path: Path) -> None:
    video = write_video(tmp_path / "v.mkv", 16)
    context = multiprocessing.get_context("fork")
    seen = context.SimpleQueue()
    members = [context.Process(target=open_there, args=(video, tmp_path / "cache", seen)) for _ in range(3)]
    for process in members:
        process.start()
    for process in members:
        process.join()
    found = [seen.get() for _ in members]
    seen.close()
    assert sorted(count for count, _ in found) == [0, 0, 1] and len({shape for _, shape in found}) == 1


def test_each_video_goes_to_the_clip_that_suits_it(tmp_path: Path) -> None:
    clips = clip_buckets(CLIP, ["4x16x32", "12x16x32"])
    wide = write_video(tmp_path / "wide.mkv", 16, height=40, width=80)
    brief = write_video(tmp_path / "brief.mkv", 8, height=40, width=76)
    square = write_video(tmp_path / "square.mkv", 16, height=42, width=40)
    videos = [Video(path, Media.of(path), content_digest(path), ()) for path in (wide, brief, square)]
    files = Files(tmp_path / "index")
    assert [choose_bucket(video, clips, files) for video in videos] == [clips[2], clips[1], clips[0]]
    for text in ("16x32", "ax16x16", "0x16x16", "4x16x-16"):
        with pytest.raises(NasError, match="write FRAMESxHEIGHTxWIDTH"):
            clip_buckets(CLIP, [text])


def test_a_folder_of_many_shapes_trains_in_buckets_and_validates_in_one(tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    rows = ["path,caption"]
    for name, height, width in (("wide", 40, 80), ("square", 41, 39), ("tall", 64, 50)):
        write_video(folder / f"{name}.mkv", 24, height=height, width=width)
        rows.append(f"{name}.mkv,a {name} ball")
    (folder / "captions.csv").write_text("\n".join(rows))
    settings = DataConfig(source="folder", path=folder, cache=tmp_path / "cache", buckets=("4x16x32",))
    data = open_data(settings, CLIP)
    assert isinstance(data, Buckets)
    assert {part[0]["video"].shape for part in data.parts} == {(4, 3, 16, 16), (4, 3, 16, 32)}
    validation = open_data(settings, CLIP, "validation")
    assert {item["video"].shape for item in (validation[i] for i in range(6))} == {(4, 3, 16, 16)}
