"""Small videos as cameras, muxers and cat make them: frame n is grey of level 2 n."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

B_FRAMES = {"bf": "3", "g": "12", "x264-params": "b-adapt=0"}
SIZE = (48, 64)


def grey(count: int, size: tuple[int, int] = SIZE, first: int = 0) -> list[av.VideoFrame]:
    """Frames of (height, width)."""
    return [
        av.VideoFrame.from_ndarray(np.full((*size, 3), 2 * (first + i), np.uint8), format="rgb24") for i in range(count)
    ]


def write(
    path: Path,
    frames: Sequence[av.VideoFrame],
    *,
    rate: int = 16,
    times: Sequence[float] | None = None,
    base: Fraction = Fraction(1, 16000),
    codec: str = "libx264",
    options: dict[str, str] | None = None,
) -> Path:
    """Encode frames, at a constant rate or at times in seconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=dict(options or {}))
        stream.height, stream.width, stream.pix_fmt = frames[0].height, frames[0].width, "yuv420p"
        if times is not None:
            stream.codec_context.time_base = base
        for i, frame in enumerate(frames):
            if times is not None:
                frame.pts, frame.time_base = round(times[i] / base), base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def copied(source: Path, target: Path) -> Path:
    """The same packets in another container."""
    with av.open(str(source)) as given, av.open(str(target), "w") as container:
        old = given.streams.video[0]
        new = container.add_stream_from_template(old)
        for packet in given.demux(old):
            if packet.dts is not None:
                packet.stream = new
                container.mux(packet)
    return target


def with_cover(path: Path, frames: Sequence[av.VideoFrame], *, marked: bool) -> Path:
    """A picture as the first stream, marked as a cover or not, and a video after it."""
    with av.open(str(path), "w") as container:
        picture = container.add_stream("mjpeg", rate=16)
        picture.height, picture.width, picture.pix_fmt = 32, 32, "yuvj420p"
        if marked:
            picture.disposition = av.stream.Disposition.attached_pic
        stream = container.add_stream("libx264", rate=16)
        stream.height, stream.width, stream.pix_fmt = frames[0].height, frames[0].width, "yuv420p"
        container.mux(picture.encode(grey(1, (32, 32), first=99)[0]))
        container.mux(picture.encode())
        for frame in frames:
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    if marked:
        _tags_first(path)
    return path


def _tags_first(path: Path) -> None:
    """Move an MP4's tags, the cover among them, before its tracks, as some tools write them."""
    content = path.read_bytes()
    at = content.index(b"moov") + 4
    boxes, place = {}, at
    while place < len(content):
        size = struct.unpack(">I", content[place : place + 4])[0]
        boxes[content[place + 4 : place + 8]] = content[place : place + size]
        place += size
    order = [b"mvhd", b"udta", *(name for name in boxes if name not in (b"mvhd", b"udta"))]
    path.write_bytes(content[:at] + b"".join(boxes[name] for name in order))


def last_lasts(path: Path, seconds: float) -> Path:
    """Give the last frame of an MP4 of constant rate another duration."""
    content = bytearray(path.read_bytes())
    at = content.find(b"mdhd")
    scale = struct.unpack(">I", content[at + 16 : at + 20])[0]
    table = content.find(b"stts")
    entries, count, step = struct.unpack(">III", content[table + 8 : table + 20])
    assert entries == 1
    content[table + 8 : table + 20] = struct.pack(">IIIII", 2, count - 1, step, 1, int(seconds * scale))
    for box in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stts"):
        at = content.find(box)
        content[at - 4 : at] = struct.pack(">I", struct.unpack(">I", content[at - 4 : at])[0] + 8)
    at = content.find(b"mdhd")
    content[at + 20 : at + 24] = struct.pack(">I", (count - 1) * step + int(seconds * scale))
    at = content.find(b"edts")
    content[at : at + 4] = b"free"
    path.write_bytes(content)
    return path


def levels(pixels: np.ndarray) -> list[int]:
    """Which frames of ``grey`` are shown: exact to one, as codecs round."""
    return [round(float(frame.mean()) / 2) for frame in pixels]


def in_order(found: Sequence[int], wanted: Sequence[int]) -> bool:
    """Whether every frame is there once, to a codec's rounding."""
    return len(found) == len(wanted) and all(abs(a - b) <= 1 for a, b in zip(found, wanted, strict=True))
