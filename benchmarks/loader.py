"""Does the loader keep up with PyAV? Frames decoded per second, by the loader and by a bare decoding loop.

The loader decodes, resamples in time, averages over areas and writes the frame cache; the bare loop only decodes, with
the same threading. Rounds are interleaved and each side's best round counts. Exit code 1 below the target.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av

from nas.config import DataConfig
from nas.data import open_data
from nas.data.frames import FrameSpec, cached_frames
from nas.data.samples import sample_captions
from search_spaces.space import Clip

TARGET = 0.9


def bare(path: Path, convert: bool = False) -> int:
    """Decode every frame, and with ``convert`` make each an RGB array of its full size."""
    count = 0
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for frame in container.decode(stream):
            count += 1
            if convert:
                frame.to_ndarray(format="rgb24")
    return count


def best_seconds(jobs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Each job's best time over interleaved rounds."""
    best = dict.fromkeys(jobs, float("inf"))
    for _ in range(rounds):
        for name, job in jobs.items():
            started = time.perf_counter()
            job()
            best[name] = min(best[name], time.perf_counter() - started)
    return best


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    paths = list(dict.fromkeys(caption.path for caption in sample_captions()))
    clip = Clip(frames=8, height=16, width=16, fps=8)
    totals = dict.fromkeys(("bare", "rgb", "loader"), 0.0)
    frames = 0
    print(f"{'frames/s':24}{'bare decode':>14}{'bare + RGB':>14}{'loader':>14}{'loader/bare':>14}")
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"

        def load(path: Path) -> None:
            shutil.rmtree(cache, ignore_errors=True)
            cached_frames(path, FrameSpec(clip.height, clip.width, clip.fps), cache)

        for path in paths:
            count = bare(path)
            seconds = best_seconds(
                {
                    "bare": lambda path=path: bare(path),
                    "rgb": lambda path=path: bare(path, convert=True),
                    "loader": lambda path=path: load(path),
                },
                rounds,
            )
            frames += count
            for name, value in seconds.items():
                totals[name] += value
            speeds = "".join(f"{count / seconds[name]:>14.0f}" for name in ("bare", "rgb", "loader"))
            print(f"{path.name:24}{speeds}{seconds['bare'] / seconds['loader']:>14.2f}")
        ratio = totals["bare"] / totals["loader"]
        speeds = "".join(f"{frames / totals[name]:>14.0f}" for name in ("bare", "rgb", "loader"))
        print(f"{'all':24}{speeds}{ratio:>14.2f}")
        data = open_data(DataConfig(cache=cache), clip)
        started = time.perf_counter()
        for index in range(2000):
            data[index]
        clips = 2000 / (time.perf_counter() - started)
        print(f"from the cache: {clips:.0f} clips of {clip.frames}x{clip.height}x{clip.width} a second, one process")
    result = {
        "decode_ratio": round(ratio, 4),
        "decode_ratio_to_rgb": round(totals["rgb"] / totals["loader"], 4),
        "decoded_frames_per_s": round(frames / totals["loader"], 1),
        "cached_clips_per_s": round(clips, 1),
    }
    print(json.dumps(result))
    return 0 if ratio >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
