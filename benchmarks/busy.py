"""What a busy machine does to a training step of `tiny`, with threads that share the machine and with torch's own.

Three processes hold the same supernet and take one step at a time in turn: as the product starts them, as torch starts
by itself (its threads spin at every barrier), and with passive waiting. First on the machine as it is, then beside
busy programs, one for each core. Ratios are of medians; the machine is quiet where the default's steps spread little.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from device_profiler.threads import OURS, SHARED, share_cores
from search_spaces.planning import load_plan

QUIET_RATIO, BUSY_RATIO = 1.05, 3.0
NAMES = (OURS, *SHARED, "OMP_WAIT_POLICY", "OMP_NUM_THREADS")
CLIPS = 4


def serve() -> None:
    """One step of the deepest path for every line read; answers with its seconds."""
    import torch

    from nas.supernet.supernet import Supernet
    from search_spaces.space import Space

    torch.manual_seed(0)
    space = Space.load("tiny")
    supernet = Supernet(space).train()
    frames, channels, height, width = space.latent_shape("training")
    noisy = torch.randn(CLIPS * frames, channels, height, width)
    context = torch.randn(CLIPS, space.text.tokens, space.text.dim)
    path = load_plan(space).largest()
    for _ in sys.stdin:
        start = time.perf_counter()
        supernet(noisy, torch.full((CLIPS,), 500.0), context, frames, path).square().mean().backward()
        print(time.perf_counter() - start, flush=True)


class Side:
    """One process of the three."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        command = [sys.executable, "-W", "ignore", __file__, "--serve"]
        self._process = subprocess.Popen(
            command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def step(self) -> float:
        """Seconds of one step."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def environments() -> dict[str, dict[str, str]]:
    """The three ways to wait, from the environment as it would be without any of them."""
    bare = {name: value for name, value in os.environ.items() if name not in NAMES}
    sharing = dict(bare)
    share_cores(sharing)
    return {"sharing": sharing, "torch's own": bare, "passive": {**bare, "OMP_WAIT_POLICY": "passive"}}


@contextmanager
def busy_programs(count: int) -> Iterator[None]:
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def measure(sides: Mapping[str, Side], rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            seconds[name].append(side.step())
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--busy-rounds", type=int, default=8)
    parser.add_argument("--programs", type=int, default=os.cpu_count() or 1, help="busy programs beside it")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve()
        return 0
    sides = {name: Side(environment) for name, environment in environments().items()}
    try:
        measure(sides, 2)
        quiet = measure(sides, args.rounds)
        with busy_programs(args.programs):
            busy = measure(sides, args.busy_rounds)
    finally:
        for side in sides.values():
            side.close()
    print(f"{'threads':14}{'quiet ms':>10}{'busy ms':>10}{'worst busy':>12}{'busy/quiet':>12}")
    for name in sides:
        calm, beside = statistics.median(quiet[name]), statistics.median(busy[name])
        print(f"{name:14}{1e3 * calm:10.0f}{1e3 * beside:10.0f}{1e3 * max(busy[name]):12.0f}{beside / calm:12.2f}")
    shared, spinning = statistics.median(quiet["sharing"]), statistics.median(quiet["torch's own"])
    low, _, high = statistics.quantiles(quiet["sharing"], n=4)
    result = {
        "quiet_ratio": round(shared / spinning, 3),
        "busy_ratio": round(statistics.median(busy["sharing"]) / shared, 2),
        "busy_ratio_own": round(statistics.median(busy["torch's own"]) / spinning, 2),
        "busy_ratio_passive": round(statistics.median(busy["passive"]) / statistics.median(quiet["passive"]), 2),
        "quiet_spread": round((high - low) / shared, 3),
        "cores": os.cpu_count(),
    }
    print(json.dumps(result))
    return int(result["quiet_ratio"] > QUIET_RATIO or result["busy_ratio"] > BUSY_RATIO)


if __name__ == "__main__":
    raise SystemExit(main())
