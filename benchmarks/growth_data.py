"""What opening a folder of videos costs a file: at the first start, which hashes and decodes, and at the second.

The videos are made: one of a second, and copies of it that differ in a byte behind it. Exit code 1 where the second
start takes longer than its limit.

    python benchmarks/growth_data.py [--files 2000]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np

from nas.config import DataConfig
from nas.data import open_data
from nas.data.videos import Shape

LIMIT_MS, REPEATS = 0.5, 3
CLIP = Shape(4, 16, 16, 8.0)


def folder_of(count: int, folder: Path) -> DataConfig:
    """So many captioned videos, all different to a digest."""
    video = folder / "made.mkv"
    rng = np.random.default_rng(0)
    with av.open(str(video), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        for picture in rng.integers(0, 255, (8, 32, 32, 3), dtype=np.uint8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    content = video.read_bytes()
    video.unlink()
    for i in range(count):
        (folder / f"{i}.mkv").write_bytes(content + b"%d" % i)
    (folder / "captions.csv").write_text("path,caption\n" + "".join(f"{i}.mkv,video {i}\n" for i in range(count)))
    return DataConfig(source="folder", path=folder, cache=folder / "cache")


def open_folder(count: int) -> dict[str, float]:
    """Milliseconds a file at the first and at a later start; of the latter the quickest of some.

    Processor time is what a busy machine leaves unchanged.
    """
    with tempfile.TemporaryDirectory() as name:
        config = folder_of(count, Path(name))
        seconds, processor = [], []
        for _ in range(1 + REPEATS):
            started, worked = time.perf_counter(), time.process_time()
            with contextlib.redirect_stderr(io.StringIO()):
                open_data(config, CLIP)
            seconds.append(time.perf_counter() - started)
            processor.append(time.process_time() - worked)
    return {
        "first_start_ms_a_file": 1e3 * seconds[0] / count,
        "open_folder_ms_a_file": 1e3 * min(seconds[1:]) / count,
        "open_folder_processor_ms_a_file": 1e3 * min(processor[1:]) / count,
    }


def show(count: int) -> dict[str, float]:
    """Print a table and, last, one JSON line; the figures."""
    logging.disable(logging.WARNING)
    found = open_folder(count)
    print(f"{'open a folder of':<28}{count:>10} videos")
    print(f"{'first start, a file':<28}{found['first_start_ms_a_file']:>10.3f} ms")
    print(f"{'second start, a file':<28}{found['open_folder_ms_a_file']:>10.3f} ms  (limit {LIMIT_MS})")
    print(f"{'of it the processor':<28}{found['open_folder_processor_ms_a_file']:>10.3f} ms")
    print(json.dumps({"files": count, **{name: round(value, 4) for name, value in found.items()}}))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=2000)
    if show(parser.parse_args().files)["open_folder_ms_a_file"] > LIMIT_MS:
        sys.exit(1)


if __name__ == "__main__":
    main()
