"""How much faster do four devices measure one table than one?

The devices are stand-ins: a load sleeps, so does an execution, and nothing computes, as when phones do the work and
this machine only waits for them. The fleet itself is the product's: a dask scheduler, workers in processes of their
own, and `profile_fleet`. Measured are one worker, four workers, and four with tasks of 8 workloads each, which leave
some of them idle at the end.

Prints a table and one JSON line; exit code 1 if four workers are less than 2.5 times as fast as one.

    python benchmarks/fleet.py [--space tiny] [--load-s 0.6] [--run-ms 12]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from device_profiler.device import Device
from device_profiler.fleet import group_size, profile_fleet, serve
from device_profiler.lowering import Lowered, default_lowerings, lower
from device_profiler.runtimes import RUNTIMES
from device_profiler.runtimes.contract import Execution, Facts
from device_profiler.subject import Subject, reference_subject
from search_spaces.space import Space

TARGET = 2.5
WORKERS = 4


class Session:
    """A loaded workload: each execution sleeps."""

    facts = Facts(weights_mb=1.0, activation_peak_mb=1.0, max_error=0.0)

    def __init__(self, run_ms: float) -> None:
        self.run_ms = run_ms

    def run(self, repeats: int, timeout_s: float) -> list[Execution]:
        """Sleep; the latency told is the one that was asked for, so that every row is stable."""
        time.sleep(repeats * self.run_ms / 1e3)
        return [Execution(self.run_ms) for _ in range(repeats)]

    def close(self) -> None:
        """Nothing is held."""


class StandIn:
    """A runtime whose device only sleeps; ``device.notes`` says how long: seconds to load, ms to run."""

    source, toolkit, tolerance = "measured", "counts", 1e-3

    def __init__(self, device: Device) -> None:
        self.load_s, self.run_ms = map(float, device.notes.split())

    def check(self) -> None:
        """Always ready."""

    def describe(self) -> dict[str, str]:
        """That it is none."""
        return {"chip": "stand-in", "runtime_version": "1", "toolkit_version": "1"}

    def capacity_mb(self) -> float:
        """Everything fits."""
        return 1e9

    def load(self, lowered: Lowered, timeout_s: float) -> Session:
        """Sleep as long as a load takes."""
        time.sleep(self.load_s)
        return Session(self.run_ms)

    def close(self) -> None:
        """Nothing is held."""


def board(load_s: float, run_ms: float) -> Device:
    return Device(name="standin", runtime="standin", notes=f"{load_s:g} {run_ms:g}")


def start(address: str, device: Device, cache: Path) -> subprocess.Popen[bytes]:
    """A worker process; it is ready once the scheduler knows it."""
    path = os.pathsep.join([str(Path(__file__).parent), *(p for p in sys.path if p)])
    command = [sys.executable, __file__, "--worker", address, device.model_dump_json(exclude_none=True), str(cache)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.DEVNULL)


def prepare(space: str, device: Device, cache: Path) -> int:
    """Lower everything before the clock starts; gives the number of rows."""
    loaded = Space.load(space)
    workloads = (*loaded.workloads(device.precision), *loaded.ends(device.precision))
    for workload in workloads:
        origin = "" if workload.is_block else space
        lower(Subject(workload, origin), "counts", default_lowerings("counts", workload)[0], cache)
    lower(reference_subject(device.precision), "counts", "plain", cache)
    return len(workloads)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="tiny")
    parser.add_argument("--load-s", type=float, default=0.6)
    parser.add_argument("--run-ms", type=float, default=12.0)
    args = parser.parse_args()
    from distributed import Client, LocalCluster

    device, taken, workers = board(args.load_s, args.run_ms), {}, []
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalCluster(n_workers=0, processes=False, protocol="tcp", host="127.0.0.1", dashboard_address=None) as here,
        Client(here.scheduler_address, set_as_default=False) as client,
    ):
        cache = Path(folder) / "cache"
        rows = prepare(args.space, device, cache)

        def timed(count: int, **how: Any) -> float:
            while len(workers) < count:
                workers.append(start(here.scheduler_address, device, cache))
            client.wait_for_workers(count)
            name = f"{count} workers, tasks of {how.get('group') or group_size(rows, count)}"
            began = time.perf_counter()
            table = profile_fleet(args.space, device, Path(folder) / name, here.scheduler_address, **how)
            taken[name] = time.perf_counter() - began
            assert len(table) == rows and all(row.ok for row in table), [row.reason for row in table]
            return taken[name]

        try:
            one, four, eights = timed(1), timed(WORKERS), timed(WORKERS, group=8)
        finally:
            for process in workers:
                process.kill()
                process.wait()
    print(
        f"{rows} rows of {args.space} on stand-in devices that sleep: load {args.load_s:g} s, run {args.run_ms:g} ms\n"
    )
    for name, seconds in taken.items():
        print(f"{name:30}{seconds:8.1f} s{one / seconds:8.2f} times as fast as one")
    print(json.dumps({"fleet_4": round(one / four, 2), "fleet_4_groups_of_8": round(one / eights, 2), "rows": rows}))
    return 0 if one / four >= TARGET else 1


if __name__ == "__main__":
    RUNTIMES["standin"] = "fleet:StandIn"
    if sys.argv[1:2] == ["--worker"]:
        serve(sys.argv[2], Device.model_validate_json(sys.argv[3]), sys.argv[4])
    sys.exit(main())
