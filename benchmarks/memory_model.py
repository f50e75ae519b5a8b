"""Predicted against measured peak memory of whole networks, beside the sum of the parts' own peaks.

The prediction is all weights plus the most that is alive at one point of execution; the naive sum adds what every part
needs by itself. Exit code 1 if the mean error is 8% or more, or a prediction more than 10% under what was measured.

    python benchmarks/memory_model.py [--space tiny] [--networks 20] [--devices host_cpu host_torch]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace

import numpy as np

from device_profiler.additivity import LIMITS, check_additivity

TARGET_MAPE, TARGET_BELOW = 0.08, 0.10


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="tiny")
    parser.add_argument("--networks", type=int, default=20)
    parser.add_argument("--devices", nargs="+", default=["host_cpu", "host_torch"])
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    answer = {}
    print(f"{'device':<14}{'predicted by':<26}{'mean error':>11}{'lowest':>9}{'highest':>9}")
    # Peaks do not depend on the machine's load: a few rounds are enough.
    limits = replace(LIMITS, min_rounds=3, max_rounds=4, seconds=20.0, gross_iqr_ratio=100.0)
    for device in args.devices:
        with tempfile.TemporaryDirectory() as folder:
            found = check_additivity(
                args.space, device, cache_dir=folder, networks=args.networks, limits=limits, seed=args.seed
            )
        truth = np.array([row.measured_peak_mb for row in found.rows])
        told = answer[device] = {"networks": len(truth), "measured_mb": [round(float(end), 2) for end in _ends(truth)]}
        for name, column in (
            ("the most alive at once", "predicted_peak_mb"),
            ("sum of the parts' peaks", "summed_peak_mb"),
        ):
            errors = np.array([getattr(row, column) for row in found.rows]) / truth - 1
            key = "model" if column == "predicted_peak_mb" else "naive"
            told[key] = {
                "mape": round(float(np.abs(errors).mean()), 5),
                "lowest": round(float(errors.min()), 5),
                "highest": round(float(errors.max()), 5),
            }
            print(
                f"{device:<14}{name:<26}{np.abs(errors).mean():>11.2%}{errors.min():>+9.1%}{errors.max():>+9.1%}",
                flush=True,
            )
    print(json.dumps({"space": args.space, **answer}))
    good = [t["model"]["mape"] < TARGET_MAPE and t["model"]["lowest"] > -TARGET_BELOW for t in answer.values()]
    return 0 if all(good) else 1


def _ends(values: np.ndarray) -> tuple[float, float]:
    return float(values.min()), float(values.max())


if __name__ == "__main__":
    sys.exit(main())
