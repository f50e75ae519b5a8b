"""Every workload of a space as a Core ML package, on this machine: how many convert, how long, how much host memory.

Packages are made in a child process, one after the other; with ``--check`` their exported programs are compared with
the modules in torch, which takes the time of three evaluations on this machine's CPU for each. Exit code 1 if one of
them fails, or a child takes 6 GB or more.

    python benchmarks/lower_coreml.py [--space tiny] [--check] [--all]
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

from device_profiler.errors import WorkloadError
from device_profiler.lowering import default_lowerings, lower_all
from device_profiler.subject import Subject
from search_spaces.space import Space

MEMORY_LIMIT_MB = 6000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="tiny")
    parser.add_argument("--check", action="store_true", help="compare exported programs with the modules")
    parser.add_argument("--all", action="store_true", help="every lowering of every workload, not the default alone")
    args = parser.parse_args()
    jobs = []
    space = Space.load(args.space)
    for workload in (*space.workloads("fp16"), *space.ends("fp16")):
        subject = Subject(workload, args.space if workload.block == "backbone" else "")
        names = default_lowerings("coreml", workload)
        jobs += [(subject, "coreml", name) for name in (names if args.all else names[:1])]
    started = time.perf_counter()
    failures = []
    print(f"{'seconds':>8} {'ops':>5} {'fused':>6} {'rank':>5} {'weights MB':>11}  workload")
    with tempfile.TemporaryDirectory() as folder:
        for index, found in lower_all(jobs, Path(folder), workers=1, timeout_s=1800, check=args.check):
            key = f"{jobs[index][0].key}  {jobs[index][2]}"
            if isinstance(found, WorkloadError):
                failures.append(key)
                print(f"{found.status}: {found}  {key}")
                continue
            stats = found.stats
            print(
                f"{stats['seconds']:8.1f} {stats['operations']:5d} {stats['attention_ops']:6d} {stats['max_rank']:5d} "
                f"{stats['weights_mb']:11.2f}  {key}"
            )
            sys.stdout.flush()
    seconds = time.perf_counter() - started
    peak_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3
    print(f"{len(jobs) - len(failures)} of {len(jobs)} in {seconds:.0f} s, peak {peak_mb:.0f} MB in one process")
    print(
        json.dumps(
            {
                "space": args.space,
                "packages": len(jobs),
                "failed": len(failures),
                "seconds": round(seconds, 1),
                "peak_host_mb": round(peak_mb),
                "checked": args.check,
            }
        )
    )
    return 1 if failures or peak_mb >= MEMORY_LIMIT_MB else 0


if __name__ == "__main__":
    raise SystemExit(main())
