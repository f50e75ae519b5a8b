"""Whole random networks against the sum of their parts: does the cost model's central assumption hold here?

Blocks, backbone and networks are timed in the same interleaved rounds, so that drift cancels. Exit code 1 if the mean
error is 3% or more, or Kendall's tau 0.95 or less.

    python benchmarks/additivity.py [--device host_cpu] [--space tiny] [--networks 24] [--method alone]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace

from device_profiler.additivity import LIMITS, check_additivity
from device_profiler.measure import Progress

TARGET_MAPE, TARGET_TAU, QUIET = 0.03, 0.95, 0.02


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="tiny")
    parser.add_argument("--device", default="host_cpu")
    parser.add_argument("--networks", type=int, default=24)
    parser.add_argument("--method", default=None, help="alone, slope or in_context; the device's by default")
    parser.add_argument("--rounds", type=int, default=LIMITS.min_rounds)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", default=None, help="folder of lowered files to keep between runs")
    args = parser.parse_args()

    def tell(event: Progress) -> None:
        if event.stage in ("lower", "load") and event.done % 10 == 0 or event.stage == "time":
            print(f"{event.stage} {event.done}/{event.total} {event.detail}", file=sys.stderr)

    with tempfile.TemporaryDirectory() as temporary:
        found = check_additivity(
            args.space,
            args.device,
            cache_dir=args.cache or temporary,
            networks=args.networks,
            method=args.method,
            limits=replace(LIMITS, min_rounds=args.rounds, max_rounds=2 * args.rounds),
            seed=args.seed,
            progress=tell,
        )
    print(f"{'network':14}{'layers':>7}{'predicted ms':>14}{'measured ms':>13}{'error':>8}", end="")
    print(f"{'predicted MB':>14}{'measured MB':>13}{'error':>8}")
    for row in sorted(found.rows, key=lambda r: r.measured_ms):
        print(
            f"{row.arrangement.key:14}{row.arrangement.num_layers:7}{row.predicted_ms:14.2f}{row.measured_ms:13.2f}"
            f"{row.error:8.1%}{row.predicted_peak_mb:14.1f}{row.measured_peak_mb:13.1f}{row.peak_error:8.1%}"
        )
    spread = float(found.reference.get("spread", float("nan")))
    quiet = spread < QUIET
    print(
        f"\n{args.space} on {args.device}: mean error {found.mape:.2%}, worst {found.worst:.2%}, "
        f"tau {found.kendall_tau:.3f}"
    )
    print(f"reference workload's spread {spread:.1%}: the machine was {'quiet' if quiet else 'not quiet'}")
    print(
        json.dumps(
            {
                "mape": round(found.mape, 5),
                "kendall_tau": round(found.kendall_tau, 5),
                "worst": round(found.worst, 5),
                "bias": round(found.bias, 5),
                "peak_mape": round(found.peak_mape, 5),
                "networks": len(found.rows),
                "method": args.method or "alone",
                "reference_spread": spread,
                "quiet": quiet,
            }
        )
    )
    return 0 if found.mape < TARGET_MAPE and found.kendall_tau > TARGET_TAU else 1


if __name__ == "__main__":
    sys.exit(main())
