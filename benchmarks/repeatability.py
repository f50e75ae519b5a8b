"""Two independent profiling runs of the same space: do the rows agree?

Each run lowers nothing anew but starts its own processes, in another order. Prints each row's two medians, the share
within 5% and 10%, and what the reference workload saw. Exit code 1 if fewer than 95% agree within 5%.

    python benchmarks/repeatability.py [--device host_cpu] [--space tiny]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from device_profiler.profile import profile

TARGET, QUIET = 0.95, 0.02


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="tiny")
    parser.add_argument("--device", default="host_cpu")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        first, second = (
            profile(args.space, args.device, Path(folder) / str(run), cache_dir=cache, seed=args.seed + run)
            for run in (0, 1)
        )
    differences = {}
    print(f"{'workload':56}{'first ms':>10}{'second ms':>11}{'difference':>12}")
    for row in first:
        other = second.get(row.key, row.method, row.lowering)
        if other is None or not row.latency_ms_median or not other.latency_ms_median:
            statuses = {r.primary_key: r.status for r in second}
            print(f"{row.key:56}{row.status:>10}{statuses.get(row.primary_key, 'missing'):>11}")
            differences[row.key] = float("inf")
            continue
        difference = abs(other.latency_ms_median / row.latency_ms_median - 1)
        differences[row.key] = difference
        print(f"{row.key:56}{row.latency_ms_median:10.3f}{other.latency_ms_median:11.3f}{difference:12.2%}")
    references = [table.header.reference or {} for table in (first, second)]
    spread = max(float(r.get("spread", "nan")) for r in references)
    medians = [float(r.get("latency_ms", "nan")) for r in references]
    within = {share: sum(d <= share for d in differences.values()) / len(differences) for share in (0.05, 0.10)}
    print(f"\nwithin 5%: {within[0.05]:.0%}, within 10%: {within[0.10]:.0%} of {len(differences)} rows")
    print(f"reference workload: spread {spread:.1%} within a run, {medians[1] / medians[0] - 1:+.1%} between them")
    print(
        json.dumps(
            {
                "within_5pct": round(within[0.05], 4),
                "within_10pct": round(within[0.10], 4),
                "rows": len(differences),
                "reference_spread": spread,
                "reference_shift": round(medians[1] / medians[0] - 1, 4),
                "quiet": spread < QUIET,
            }
        )
    )
    return 0 if within[0.05] >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
