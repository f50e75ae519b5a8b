"""One reader for streams that change, headers that lie and files that were joined: right frames, right times, said."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pytest
from reader_fixtures import B_FRAMES, copied, grey, in_order, last_lasts, levels, with_cover, write

from nas.config import DataConfig
from nas.data import frames as frames_module
from nas.data import open_data
from nas.data.decoding import choose_bucket
from nas.data.frames import DecodeError, Frames, FrameSpec, cached_frames, content_digest
from nas.data.media import Media
from nas.data.sources import Files, Video
from nas.data.videos import Shape

SPEC = FrameSpec(48, 64, 16, 1.0)


def read(path: Path, spec: FrameSpec = SPEC) -> tuple[Frames, np.ndarray]:
    kept = cached_frames(path, spec, path.parent / "cache")
    return kept, np.load(kept.file)


def said(kept: Frames) -> str:
    return "; ".join(kept.repairs)


def test_a_plain_video_is_read_as_it_is_and_nothing_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.mp4", "a.mkv", "a.flv", "a.ts"):  # mkv and flv round times to milliseconds
        kept, pixels = read(write(tmp_path / name, grey(48), options=B_FRAMES))
        assert in_order(levels(pixels), range(48)) and kept.native_fps == 16, name
        assert not kept.repairs and not kept.closed and not kept.truncated
    assert not caplog.records


@pytest.mark.parametrize(("first", "then"), [((48, 64), (48, 96)), ((48, 96), (48, 64)), ((48, 64), (64, 48))])
def test_frames_of_another_size_are_scaled_to_the_first(
    tmp_path: Path, first: tuple[int, int], then: tuple[int, int]
) -> None:
    parts = [write(tmp_path / f"{i}.ts", grey(24, size, first=24 * i)) for i, size in enumerate((first, then))]
    (tmp_path / "both.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    kept, pixels = read(tmp_path / "both.ts", FrameSpec(*first, 16, 1.0))
    assert pixels.shape == (48, *first, 3) and in_order(levels(pixels), range(48))
    assert pixels.std(axis=(1, 2)).max() < 2  # whole frames of one grey: nothing scrambled, nothing black beside it
    assert f"changes from {first[1]}x{first[0]} to {then[1]}x{then[0]} after 1.5 s" in said(kept)


def test_a_changed_pixel_aspect_still_gives_the_first_displayed_size(tmp_path: Path) -> None:
    wide = write(tmp_path / "wide.ts", grey(16), options={"x264-params": "sar=2/1"})
    square = write(tmp_path / "square.ts", grey(16, first=16))
    for name, parts, width in (("w", (wide, square), 128), ("s", (square, wide), 64)):
        path = tmp_path / f"{name}.ts"
        path.write_bytes(b"".join(part.read_bytes() for part in parts))
        kept, pixels = read(path, FrameSpec(48, 48, 16, 1.0))
        assert pixels.shape == (32, 48, width, 3), name
        assert "pixels of" in said(kept)


@pytest.mark.parametrize("name", ["b.avi", "remuxed.mkv"])
def test_times_that_go_back_keep_every_frame_in_order(tmp_path: Path, name: str) -> None:
    """AVI holds no display times, so those of B-frames come out of order, also from what it was copied into."""
    path = write(tmp_path / "b.avi", grey(48), options=B_FRAMES)
    path = path if name == "b.avi" else copied(path, tmp_path / name)
    kept, pixels = read(path)
    assert kept.native_fps == 16 and in_order(levels(pixels), range(48))
    assert "times go back" in said(kept)


def test_a_rate_stated_at_double_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "double.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=32, options=B_FRAMES)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for i, frame in enumerate(grey(48)):
            frame.pts, frame.time_base = 2 * i, 1 / stream.codec_context.framerate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    kept, pixels = read(path)
    assert kept.native_fps == 16 and in_order(levels(pixels), range(48))
    assert "header says 32 frames a second, its frames come at 16" in said(kept)


@pytest.mark.parametrize("count", [2, 3])
def test_joined_streams_follow_one_another(tmp_path: Path, count: int) -> None:
    parts = [write(tmp_path / f"{i}.ts", grey(20, first=20 * i), options=B_FRAMES) for i in range(count)]
    (tmp_path / "joined.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    kept, pixels = read(tmp_path / "joined.ts")
    assert in_order(levels(pixels), range(20 * count))
    assert f"{count} parts follow one another" in said(kept)


def test_a_last_frame_that_is_to_last_for_minutes_does_not(tmp_path: Path) -> None:
    kept, pixels = read(last_lasts(write(tmp_path / "l.mp4", grey(48), options={"bf": "0"}), 600))
    assert kept.native_fps == 16 and in_order(levels(pixels), range(48))
    assert "header says 0.07" in said(kept) and "last frame is to last 600.0 s" in said(kept)


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_a_gap_is_closed_and_seconds_after_it_still_mean_the_same_frames(tmp_path: Path, suffix: str) -> None:
    times = [i / 16 + (600 if i >= 24 else 0) for i in range(48)]
    kept, pixels = read(write(tmp_path / f"g.{suffix}", grey(48), times=times, options={"bf": "0"}))
    assert kept.native_fps == 16 and in_order(levels(pixels), range(48))
    assert "held for 599.9 s from 1.6 s on is not" in said(kept) or "held for 600.0 s" in said(kept)
    assert kept.range(0, 1) == (0, 16)
    assert kept.range(601.5, 602.5) == (24, 40)  # as a player counts them
    assert kept.range(0, float("inf")) == (0, 48)


def test_a_frame_that_is_held_for_a_moment_is_held(tmp_path: Path) -> None:
    times = [i / 16 + (0.5 if i >= 24 else 0) for i in range(48)]
    kept, pixels = read(write(tmp_path / "v.mkv", grey(48), times=times, options={"bf": "0"}))
    assert len(pixels) == 56 and levels(pixels)[23:32] == [levels(pixels)[23]] * 9 and not kept.repairs


def test_times_much_too_close_give_way_to_the_header(tmp_path: Path) -> None:
    times = [i / 1000 for i in range(48)]
    kept, pixels = read(write(tmp_path / "c.mkv", grey(48), times=times, options={"bf": "0"}))
    assert kept.native_fps == 16 and in_order(levels(pixels), range(48)) and "1 ms apart" in said(kept)


def test_frames_without_times_are_shown_at_the_rate_that_is_stated(tmp_path: Path) -> None:
    kept, pixels = read(write(tmp_path / "raw.m4v", grey(48), codec="mpeg4"))
    assert kept.native_fps == 16 and len(pixels) == 48 and not kept.truncated
    assert max(abs(level - i) for i, level in enumerate(levels(pixels))) <= 3  # as coarse as the codec


def test_of_two_frames_of_one_time_the_second_is_shown(tmp_path: Path) -> None:
    times = [(i - (i == 24)) / 16 for i in range(48)]
    kept, pixels = read(write(tmp_path / "t.mkv", grey(48), times=times, codec="ffv1"))
    assert len(pixels) == 48 and levels(pixels)[22:26] == [22, 24, 24, 25] and "1 of its frames share" in said(kept)


def test_a_frame_that_turns_is_turned_back_to_the_first_ones_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a phone is turned while it films, and its file says so frame by frame."""
    path = write(tmp_path / "r.mp4", grey(24), options={"bf": "0"})
    turned = iter([0] * 12 + [1] * 200)
    seen: dict[int, int] = {}

    def turns(frame: av.VideoFrame) -> int:
        return seen.setdefault(frame.pts, next(turned))

    monkeypatch.setattr("nas.data.reader._turns", turns)
    kept, pixels = read(path)
    assert pixels.shape == (24, 48, 64, 3) and in_order(levels(pixels), range(24))
    assert "changes from 0 to 90 degrees" in said(kept)


def test_a_video_in_which_nothing_moves_is_skipped_with_the_reason(tmp_path: Path) -> None:
    path = write(tmp_path / "s.mkv", grey(8), times=[10.0 * i for i in range(8)], options={"bf": "0"})
    with pytest.raises(DecodeError, match=r"shows 0.1 frames a second, so that nothing moves within a clip"):
        read(path)


@pytest.mark.parametrize("marked", [True, False])
def test_a_cover_picture_is_not_the_video(tmp_path: Path, marked: bool) -> None:
    kept, pixels = read(with_cover(tmp_path / "c.mp4", grey(24), marked=marked))
    assert pixels.shape == (24, 48, 64, 3) and in_order(levels(pixels), range(24))
    assert "cover picture" in said(kept)


def test_a_file_with_a_cover_and_no_video_says_so(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "song.mp4"), "w") as container:
        picture = container.add_stream("mjpeg", rate=16)
        picture.height, picture.width, picture.pix_fmt = 32, 32, "yuvj420p"
        picture.disposition = av.stream.Disposition.attached_pic
        container.mux(picture.encode(grey(1, (32, 32))[0]))
        container.mux(picture.encode())
    with pytest.raises(DecodeError, match="no video in it but a cover picture"):
        read(tmp_path / "song.mp4")


def test_repairs_are_said_once_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "b.avi", grey(48), options=B_FRAMES)
    with caplog.at_level(logging.WARNING):
        read(path)
        read(path)
    assert [r.getMessage() for r in caplog.records] == [
        "b.avi: its times go back; frames are shown in the order in which they decode"
    ]


def test_frames_of_an_older_reader_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.mp4", grey(24))
    monkeypatch.setattr(frames_module, "SCHEMA", frames_module.SCHEMA - 1)
    old, _ = read(path)
    monkeypatch.undo()
    assert read(path)[0].file != old.file


@pytest.mark.parametrize("name", ["12:30:05.mp4", "http:a.mp4", "a%d.mp4", "subfile,,start,1,,:a.mp4", "-i.mp4"])
def test_a_name_is_a_name_and_no_protocol_or_pattern(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    write(tmp_path / "plain.mp4", grey(24)).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert read(Path(name))[0].shape[0] == 24
    assert choose_bucket(video(Path(name)), [Shape(4, 48, 64, 16), Shape(8, 48, 64, 16)], Files(Path("w"))).frames == 8


def video(path: Path) -> Video:
    return Video(path, Media.of(path), content_digest(path), ())


def test_a_playlist_in_disguise_opens_no_other_file(tmp_path: Path) -> None:
    write(tmp_path / "secret.ts", grey(24))
    (tmp_path / "list.mp4").write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.5,\nhttp://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n{tmp_path}"
    )
    (tmp_path / "concat.mp4").write_text(f"ffconcat version 1.0\nfile {tmp_path}/secret.ts\n")
    for name in ("list.mp4", "concat.mp4"):
        with pytest.raises(DecodeError, match="does not decode|no video"):
            read(tmp_path / name)


def test_a_bucket_is_chosen_by_the_frames_and_not_by_the_header(tmp_path: Path) -> None:
    path = last_lasts(write(tmp_path / "l.mp4", grey(24), options={"bf": "0"}), 600)
    clips = [Shape(8, 48, 64, 16), Shape(64, 48, 64, 16)]
    assert choose_bucket(video(path), clips, Files(tmp_path / "index")) == clips[0]  # 1.5 s, not 601


@dataclass(frozen=True)
class Clip:
    frames: int = 8
    height: int = 16
    width: int = 16
    fps: float = 8.0


def folder_of(tmp_path: Path, rows: Sequence[str]) -> DataConfig:
    (tmp_path / "captions.csv").write_text("\n".join(["path,caption", *rows]) + "\n")
    return DataConfig(source="folder", path=tmp_path, cache=tmp_path / "cache")


def test_validation_is_not_scored_on_a_frozen_picture(tmp_path: Path) -> None:
    last_lasts(write(tmp_path / "l.mp4", grey(64), options={"bf": "0"}), 600)
    validation = open_data(folder_of(tmp_path, ["l.mp4,grey"]), Clip(), "validation")
    assert all(float(validation[i]["video"].diff(dim=0).abs().max()) > 0 for i in range(len(validation)))


def test_the_reader_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import nas.data.frames, nas.data.captions, nas.data.shards"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
