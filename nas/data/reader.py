"""One reader for whatever a video file holds: frames of one size, in order, at times that make sense.

A stream is not constant and its header is not the truth. What is made right is told in ``FrameReader.repairs``:

- The video is the first stream that is no cover picture.
- Every frame is turned upright by its own rotation and scaled to the first frame's displayed size (its pixel aspect
  included), whatever its own size.
- The rate is the median of the times between frames; the header's is taken where it agrees, being exact.
- Where times start again (streams joined end to end), the later part follows the earlier one. Where they go back within
  a part (AVI holds none for B-frames), frames keep the decoder's order and get the times in order. Times that are
  missing, all the same or much too close give way to the header's rate.
- A frame is held until the next one, and no longer than ``LONGEST_HOLD``: a longer gap is closed to one frame, and
  captions' seconds after it are moved along. The last frame lasts as long as the others, whatever the header says.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import Interpolation, VideoReformatter

from nas.data.media import DecodeError, Media, opened

MOST_PHASES = 2  # kept frames for one clip frame: more would cost more to convert than they teach
LONGEST_HOLD = 1.0  # seconds that a frame stays on the screen; more teaches a frozen picture
SLOWEST, FASTEST = 1.0, 240.0  # frames a second that a file can be believed to show
AGREE = 0.02  # share within which a header's rate is the measured one
FAR_OFF = 0.1  # share from which on a header's rate is wrong enough to say so
AREA = Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


@dataclass(frozen=True)
class FrameSpec:
    """How frames are kept: ``margin`` times larger than height x width on the tighter side, for clips of ``fps``."""

    height: int
    width: int
    fps: float
    margin: float = 1.25

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the kept frames of a source: its aspect, covering the clip, enlarged only if it must be.

        >>> FrameSpec(16, 16, 8).size(272, 640)
        (20, 47)
        """
        cover = max(self.height / height, self.width / width)
        scale = max(cover, min(cover * self.margin, 1.0))
        return max(self.height, round(height * scale)), max(self.width, round(width * scale))

    def stride(self, native_fps: float) -> int:
        """Kept frames from one clip frame to the next: a 25/s video gives 8/s clips at two phases, not at one.

        >>> FrameSpec(16, 16, 8).stride(25)
        2
        """
        return max(1, min(MOST_PHASES, math.floor(native_fps / self.fps + 1e-6)))


class OutOfOrder(DecodeError):
    """Frames come with times that go back: read again with ``by_order``."""


@dataclass(frozen=True)
class Part:
    """A stretch of packets whose times go forward.

    Attributes:
        first: its first packet's number. count: packets in it. times: theirs in seconds, sorted, where they have any.
    """

    first: int
    count: int
    times: list[float]


@dataclass(frozen=True)
class Survey:
    """What a file's packets say, before anything is decoded.

    Attributes:
        stream: the video's index in the container. rate: frames a second. by_order: frames' own times are no use.
        repairs: sentences on what had to be made right.
    """

    stream: int
    parts: list[Part]
    rate: float
    by_order: bool
    repairs: list[str] = field(default_factory=list)

    @property
    def longest(self) -> float:
        """Seconds that a frame may be held."""
        return max(LONGEST_HOLD, 4 / self.rate)

    @property
    def seconds(self) -> float:
        """Of the video as it is read, long gaps closed."""
        gaps = [b - a for part in self.parts for a, b in zip(part.times, part.times[1:], strict=False)]
        step = 1 / self.rate
        return sum(gap if gap <= self.longest else step for gap in gaps) + step * len(self.parts)


def survey(media: Media) -> Survey:
    """Read a video's packets for their times.

    Raises:
        DecodeError: if it does not open, or holds no video stream.
    """
    with opened(media) as container:
        stream = video_stream(container)
        repairs = [] if stream.index == container.streams.video[0].index else ["its first stream is a cover picture"]
        parts, last = _stamps(container, stream)
        if not parts:
            raise DecodeError("no frame in it")
        still = sum(part.count for part in parts) < 2
        header = [float(rate) for rate in (stream.average_rate, stream.guessed_rate) if rate]
        rate, trusted, told = _rate(parts, header)
        if not still:
            repairs += told
            if rate < SLOWEST:
                raise DecodeError(f"shows {rate:.2g} frames a second, so that nothing moves within a clip")
            if last > LONGEST_HOLD and last > 4 / rate:
                repairs.append(f"its last frame is to last {last:.1f} s, and is held for {1 / rate:.2f} s")
        if len(parts) > 1:
            repairs.append(f"its times start again, as where files are joined: {len(parts)} parts follow one another")
        by_order = not trusted or container.format.name == "avi"
        if not trusted:
            parts = [Part(part.first, part.count, [i / rate for i in range(part.count)]) for part in parts]
        return Survey(stream.index, parts, rate, by_order, repairs)


def video_stream(container: Any) -> Any:
    """The first video stream that is no cover picture or thumbnail.

    Raises:
        DecodeError: if there is none.
    """
    streams = list(container.streams.video)
    if not streams:
        raise DecodeError("no video stream in it")
    cover = Disposition.attached_pic | Disposition.timed_thumbnails
    moving = [stream for stream in streams if not stream.disposition & cover]
    if not moving:
        raise DecodeError("no video in it but a cover picture")
    moving = [stream for stream in moving if stream.codec_context is not None]
    if not moving:
        raise DecodeError("its codec is not known here")
    longer = [stream for stream in moving if stream.frames != 1]  # a cover that is not marked as one
    return (longer or moving)[0]


def _packets(container: Any, stream: Any) -> Iterator[Any]:
    try:
        yield from container.demux(stream)
    except IndexError:  # of PyAV, where libavformat numbers streams that it does not give
        raise DecodeError("does not decode (its streams are damaged)") from None


def _stamps(container: Any, stream: Any) -> tuple[list[Part], float]:
    """The packets' times, apart where they start again, and how long the last frame is said to last."""
    base = float(stream.time_base)
    parts: list[tuple[int, list[float | None]]] = []
    latest, back, last = -math.inf, False, 0.0
    try:
        for number, packet in enumerate(_packets(container, stream)):
            if not packet.size:
                continue
            at = packet.dts if packet.dts is not None else packet.pts
            back = at is not None and (at < latest if not back else at <= latest)
            if not parts or (back and packet.is_keyframe):
                parts.append((number, []))
                latest, back = -math.inf, False
            shown = packet.pts if packet.pts is not None else packet.dts
            parts[-1][1].append(shown * base if shown is not None else None)
            if at is not None:
                latest = max(latest, at)
            last = (packet.duration or 0) * base
    except (av.FFmpegError, EOFError):
        if not parts:
            raise
        # What comes before can be read; decoding will end there too, and say so.
    return [Part(first, len(times), sorted(t for t in times if t is not None)) for first, times in parts], last


def _rate(parts: list[Part], header: list[float]) -> tuple[float, bool, list[str]]:
    """Frames a second by the times between frames, whether those can be believed, and what is to be told."""
    stated = next((rate for rate in header if SLOWEST <= rate <= FASTEST), 25.0)
    wanted = sum(part.count - 1 for part in parts)
    gaps = [b - a for part in parts for a, b in zip(part.times, part.times[1:], strict=False) if b > a]
    if not wanted:
        return stated, True, []
    if 2 * len(gaps) < wanted:
        return stated, False, [f"its frames have no times of their own; shown at {stated:g}/s"]
    middle = statistics.median_low(gaps)
    rate = 1 / statistics.fmean(gap for gap in gaps if 0.5 * middle < gap < 1.5 * middle)
    exact = next((r for r in header if abs(r / rate - 1) <= AGREE), None)
    if exact is not None:
        rate = exact
    elif rate > FASTEST:
        return stated, False, [f"its times lie {1e3 / rate:.2g} ms apart; shown at {stated:g}/s"]
    if header and abs(header[0] / rate - 1) > FAR_OFF:
        return rate, True, [f"its header says {header[0]:.4g} frames a second, its frames come at {rate:.4g}"]
    return rate, True, []


@dataclass
class _Clock:
    """Turns frames' own times into times on one line without a break.

    Attributes:
        closed: gaps, as seconds of the file at which they begin and how many of them are left out.
        dropped: frames that share their time with the next one. back: their own times went back.
    """

    survey: Survey
    by_order: bool
    now: float = 0.0
    told: float = 0.0  # the file's seconds, gaps included
    part: int = -1
    count: int = 0
    own: float = 0.0
    seen: float = -math.inf  # the latest of the frames' own times in this part
    back: bool = False
    dropped: int = 0
    closed: list[tuple[float, float]] = field(default_factory=list)

    def at(self, part: int, time: float | None) -> float:
        """Seconds from the first frame to one of a part, by its own time."""
        step = 1 / self.survey.rate
        fresh, first = part != self.part, self.part < 0
        self.count = 0 if fresh else self.count + 1
        self.part = part
        if time is not None:
            self.back |= not fresh and time < self.seen
            self.seen = time if fresh else max(self.seen, time)
        if self.by_order:
            known = self.survey.parts[part].times
            time = known[self.count] if self.count < len(known) else None
        elif self.back:
            raise OutOfOrder("its times go back")
        gap = step if fresh or time is None else time - self.own
        self.own = self.own + step if time is None else time
        if first:
            return 0.0
        self.dropped += gap == 0
        self.told += gap
        if gap > self.survey.longest:
            self.closed.append((self.told - gap + step, gap - step))
            gap = step
        self.now += gap
        return self.now


class FrameReader:
    """Iterates over a video's frames as (h, w, 3) uint8 at a spec's rate and size, repaired as the module says.

    Frame k is the one on the screen at k / rate seconds: dropped or repeated, never blended. Only frames that are shown
    are converted, averaged over areas.

    Args:
        by_order: frames get the packets' times in order, not their own.

    Attributes:
        native_fps: the video's own rate, and rate: the kept frames', once iteration has begun.
        decoded: frames decoded so far. repairs: what was made right, once iteration has ended.
        closed: gaps that were left out: seconds of the file at which each begins, and how long it is.

    Raises:
        OutOfOrder: while iterating, if the frames' own times go back and ``by_order`` is not set.
        DecodeError: while iterating, if the file does not open or stops decoding.
    """

    def __init__(self, path: Path | Media, spec: FrameSpec, by_order: bool = False, threads: str = "AUTO") -> None:
        self.media, self.spec, self.by_order, self.threads = Media.of(path), spec, by_order, threads
        self.native_fps = self.rate = 0.0
        self.decoded = 0
        self.repairs: list[str] = []
        self.closed: list[tuple[float, float]] = []

    def __iter__(self) -> Iterator[np.ndarray]:
        found = survey(self.media)
        self.native_fps = found.rate
        self.rate = self.spec.fps * self.spec.stride(found.rate)
        clock = _Clock(found, self.by_order or found.by_order)
        self.repairs, self.closed = list(found.repairs), clock.closed
        try:
            with opened(self.media) as container:
                stream = container.streams[found.stream]
                if self.threads == "AUTO":
                    stream.thread_type = "AUTO"
                else:
                    stream.codec_context.thread_count = 1
                picture = _Picture(self.spec, stream)
                shown: av.VideoFrame | None = None
                pixels = np.empty(0)
                for frame in self._at_rate(container, stream, clock, picture):
                    if frame is not shown:
                        shown, pixels = frame, picture.convert(frame)
                    yield pixels
        finally:
            if clock.back:
                self.repairs.append("its times go back; frames are shown in the order in which they decode")
            if clock.dropped:
                self.repairs.append(f"{clock.dropped} of its frames share their time with the next one and are dropped")
            for at, seconds in clock.closed[:1]:
                more = f", and {len(clock.closed) - 1} such gaps more" if clock.closed[1:] else ""
                self.repairs.append(f"a frame that would be held for {seconds:.1f} s from {at:.1f} s on is not{more}")

    def _at_rate(self, container: Any, stream: Any, clock: _Clock, picture: _Picture) -> Iterator[av.VideoFrame]:
        """Hold each frame until the next one's time, at the kept rate; times count from the first frame."""
        held: av.VideoFrame | None = None
        now, base = 0.0, float(stream.time_base)
        epsilon = 0.1 / max(self.native_fps, self.rate)  # containers round times, many to milliseconds
        emitted = 0
        for part, frame in _decode(container, stream, {p.first for p in clock.survey.parts[1:]}):
            at = clock.at(part, frame.pts * base if frame.pts is not None else None)
            self.decoded += 1
            told = picture.changed(frame, at)
            if told:
                self.repairs.append(told)
            while held is not None and emitted / self.rate < at - epsilon:
                yield held
                emitted += 1
            held, now = frame, at
        while held is not None and (emitted == 0 or emitted / self.rate < now + 1 / self.native_fps - epsilon):
            yield held
            emitted += 1


def _decode(container: Any, stream: Any, starts: set[int]) -> Iterator[tuple[int, av.VideoFrame]]:
    """Frames with the number of their part; the decoder gives all of a part before the next one begins."""
    decoder = stream.codec_context
    part = 0
    for number, packet in enumerate(_packets(container, stream)):
        if not packet.size:  # an empty chunk of an AVI, which a decoder takes for the end
            continue
        if number in starts:
            yield from ((part, frame) for frame in decoder.decode(None))
            decoder.flush_buffers()
            part += 1
        yield from ((part, frame) for frame in decoder.decode(packet))
    yield from ((part, frame) for frame in decoder.decode(None))


class _Picture:
    """Brings every frame to the first one's displayed size."""

    def __init__(self, spec: FrameSpec, stream: Any) -> None:
        self.spec, self.stream = spec, stream
        self.reformatter = VideoReformatter()
        self.size: tuple[int, int] | None = None
        self.first: tuple[int, int, int, float] | None = None
        self.told = False

    def changed(self, frame: av.VideoFrame, at: float) -> str:
        """What is to be told of a frame that is not like the first one; said once."""
        seen = (frame.width, frame.height, _turns(frame), float(self.stream.codec_context.sample_aspect_ratio or 1))
        if self.first is None:
            self.first = seen
            self.size = self.spec.size(*displayed(frame, self.stream))
        if self.told or seen == self.first:
            return ""
        self.told = True
        old, new = self.first, seen
        what = f"{old[0]}x{old[1]} to {new[0]}x{new[1]}"
        if old[:2] == new[:2]:
            what = f"pixels of {old[3]:g} to {new[3]:g}"
            what = what if old[2] == new[2] else f"{old[2] * 90} to {new[2] * 90} degrees"
        return f"its picture changes from {what} after {at:.1f} s; every frame is scaled to the first one's size"

    def convert(self, frame: av.VideoFrame) -> np.ndarray:
        assert self.size is not None
        turns = _turns(frame)
        height, width = self.size if turns % 2 == 0 else (self.size[1], self.size[0])
        small = self.reformatter.reformat(frame, width, height, "rgb24", interpolation=AREA, threads=1)
        pixels = small.to_ndarray()
        return np.rot90(pixels, turns) if turns else pixels


def _turns(frame: av.VideoFrame) -> int:
    return round(frame.rotation / 90) % 4


def displayed(frame: av.VideoFrame, stream: Any) -> tuple[int, int]:
    """(height, width) at which a frame is shown: pixels square, turned upright."""
    width = max(1, round(frame.width * (float(stream.sample_aspect_ratio or 1) or 1.0)))
    return (width, frame.height) if _turns(frame) % 2 else (frame.height, width)


def probe(path: Path | Media) -> tuple[int, int, float]:
    """Height, width and seconds of a video as it is shown, from its first frame and the times of its packets.

    Raises:
        DecodeError: if it does not open or has no frame.
    """
    media = Media.of(path)
    found = survey(media)
    with opened(media) as container:
        stream = container.streams[found.stream]
        for _, frame in _decode(container, stream, set()):
            return (*displayed(frame, stream), found.seconds)
        raise DecodeError("no frame in it")


def expected_bytes(path: Path | Media, spec: FrameSpec) -> float | None:
    """About what a video's kept frames will take, by its header alone; None where that does not say."""
    try:
        with opened(Media.of(path)) as container:
            stream = video_stream(container)
            header = [float(rate) for rate in (stream.average_rate, stream.guessed_rate) if rate]
            rate = next((rate for rate in header if SLOWEST <= rate <= FASTEST), 25.0)
            seconds = stream.frames / rate if stream.frames else (container.duration or 0) / av.time_base
            if not seconds or not stream.height or not stream.width:
                return None
            height, width = spec.size(stream.height, stream.width)
            return height * width * 3 * max(1.0, seconds * spec.fps * spec.stride(rate))
    except DecodeError:
        return None
