"""Which lowering of a block is fastest on a device? Every lowering of every block of a space, measured in one run.

Lowerings of one workload are timed in the same interleaved rounds, so that their ratios hold on a busy machine. Prints,
for each workload, the default lowering's latency and every other one as a multiple of it, and one JSON line.

    python benchmarks/lowerings.py [--space tiny] [--device host_cpu]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from device_profiler.device import Device
from device_profiler.lowering import default_lowerings
from device_profiler.profile import measure_workloads
from device_profiler.runtimes.contract import load_runtime_class
from search_spaces.space import Space


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="tiny")
    parser.add_argument("--device", default="host_cpu")
    args = parser.parse_args()
    device, space = Device.load(args.device), Space.load(args.space)
    toolkit = load_runtime_class(device).toolkit
    ratios: dict[str, list[float]] = {}
    best = []
    with tempfile.TemporaryDirectory() as folder:
        for workload in space.workloads(device.precision):
            if not workload.is_block:
                continue
            names = default_lowerings(toolkit, workload)
            rows = measure_workloads([workload], device, lowerings=names, cache_dir=Path(folder))
            usual = rows[0].latency_ms_median
            if usual is None:
                print(f"{workload.key}: {rows[0].status}: {rows[0].reason}")
                continue
            found = {row.lowering: row.latency_ms_median / usual for row in rows if row.latency_ms_median is not None}
            for name, ratio in found.items():
                ratios.setdefault(name, []).append(ratio)
            fastest = min(found, key=lambda name: found[name])
            best.append(found[fastest])
            others = "  ".join(f"{name} {ratio:.2f}" for name, ratio in found.items() if name != names[0])
            print(f"{usual:9.3f} ms  {workload.base}  {names[0]}; {others}; fastest {fastest}", flush=True)
    middle = {name: round(statistics.median(values), 3) for name, values in sorted(ratios.items())}
    print(json.dumps({"device": device.name, "ratio_to_default": middle, "best_mean": round(statistics.mean(best), 3)}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
