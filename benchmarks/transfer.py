"""A device hardly measured: rows predicted from another device's table, against scaling by a constant and a roofline.

Both tables are measured whole; then all but a few rows of the target are hidden and predicted: random ones, many times
over, and those that the transfer itself asks for. The constant fits the known rows best; the roofline baseline scales
the estimates of another chip by such a constant. An error is how many percent the larger of prediction and truth is
above the other. Exit code 1 where the transfer from rows it asked for is worse than the constant from random ones.

    python benchmarks/transfer.py [--source TABLE.csv --target TABLE.csv] [--space SPACE.yaml] [--draws 20]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from device_profiler.additivity import kendall_tau
from device_profiler.profile import profile
from latency_tables.cost import CostModel
from latency_tables.plan import Plan
from latency_tables.table import Table
from latency_tables.transfer import measure_first, transfer
from search_spaces.plan import compute
from search_spaces.space import Space

COUNTS, NETWORKS = (3, 6, 12), 300
SPACE = Path(__file__).parent / "data" / "variants.yaml"


def scaled(shape: Table, known: Table, keys: list[str]) -> Table:
    """The target by a constant: every row that it lacks from ``shape``, times the median ratio of those it has."""

    def row(key: str):
        base = key.rpartition("@")[0]
        return next((found for found in shape if found.ok and found.key.rpartition("@")[0] == base), None)

    ratios = [r.latency_ms_median / row(r.key).latency_ms_median for r in known if row(r.key)]
    constant = float(np.median(ratios))
    lacking = [key for key in keys if key not in known.keys]
    unknown = dict(latency_ms_p90=None, latency_low_ms=None, latency_high_ms=None)
    made = [
        replace(
            row(key),
            key=key,
            precision=known.header.precision,
            latency_ms_median=row(key).latency_ms_median * constant,
            **unknown,
        )
        for key in lacking
    ]
    return Table(known.header, [*known, *made])


def asked_for(source: Table, whole: Table, count: int) -> list[str]:
    """Keys measured by somebody who starts with nothing and always measures the row that is asked for next."""
    known = Table(whole.header)
    while len(known) < count:
        key = measure_first(source, known, 1)[0]
        known.append(whole.get(key))
    return list(known.keys)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default=str(SPACE))
    parser.add_argument("--source", help="a complete table; host_cpu is measured by default")
    parser.add_argument("--target", help="another; host_torch is measured by default")
    parser.add_argument("--draws", type=int, default=20)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source, target = (
            Table.load(Path(path)) if path else profile(args.space, device, folder)
            for path, device in ((args.source, "host_cpu"), (args.target, "host_torch"))
        )
        roofline = profile(args.space, "iphone16_pro_max_roofline", folder)
        plan = Plan.load(compute(Space.load(args.space)).save(Path(folder) / "space.plan.json"))
    keys = [key for key in plan.keys(target.header.precision) if target.get(key) and source.get(key)]
    source = Table(source.header, [source.get(key) for key in keys])
    whole = Table(target.header, [target.get(key) for key in keys])
    truth_model = CostModel(plan, whole)
    choices = truth_model.random(NETWORKS, np.random.default_rng(0))
    truth = truth_model.cost(choices).latency_ms
    answer: dict[str, dict[str, float]] = {}
    held: list[bool] = []
    good = []

    def score(table: Table, known: list[str]) -> tuple[float, float, float]:
        pairs = [(table.get(key), whole.get(key)) for key in keys if key not in known]
        row = np.mean([abs(np.log(a.latency_ms_median / b.latency_ms_median)) for a, b in pairs])
        found = CostModel(plan, table, allow_mixed=True).cost(choices).latency_ms
        return float(np.expm1(row)), float(np.expm1(np.abs(np.log(found / truth)).mean())), kendall_tau(found, truth)

    print(f"{source.header.device} to {target.header.device}, {len(keys)} workloads")
    print(f"{'rows':>5} {'which':<10} {'predicted by':<10} {'row error':>10} {'network error':>14} {'network tau':>12}")
    for count in COUNTS:
        if count >= len(keys):
            print(f"{count:>5} the space has {len(keys)} workloads: nothing left to predict")
            continue
        rng = np.random.default_rng(count)
        draws = {"random": [[keys[i] for i in rng.permutation(len(keys))[:count]] for _ in range(args.draws)]}
        draws["asked for"] = [asked_for(source, whole, count)]
        for which, sets in draws.items():
            errors: dict[str, list[tuple[float, float, float]]] = {"transfer": [], "constant": [], "roofline": []}
            for picked in sets:
                known = Table(whole.header, [whole.get(key) for key in picked])
                guess = transfer(source, known).table
                for key in keys:
                    if key not in picked:
                        row, true = guess.get(key), whole.get(key).latency_ms_median
                        held.append(row.latency_low_ms <= true <= row.latency_high_ms)
                errors["transfer"].append(score(guess, picked))
                errors["constant"].append(score(scaled(source, known, keys), picked))
                errors["roofline"].append(score(scaled(roofline, known, keys), picked))
            for name, values in errors.items():
                row_error, network_error, tau = np.mean(values, axis=0)
                print(f"{count:>5} {which:<10} {name:<10} {row_error:>12.1%} {network_error:>14.1%} {tau:>12.3f}")
                answer[f"{name}_{which.replace(' ', '_')}_{count}"] = {
                    "row_error": round(float(row_error), 4),
                    "network_error": round(float(network_error), 4),
                    "kendall_tau": round(float(tau), 4),
                }
        good.append(
            answer[f"transfer_asked_for_{count}"]["row_error"] <= answer[f"constant_random_{count}"]["row_error"]
        )
    print(f"90% intervals held {np.mean(held):.0%} of the hidden rows")
    pair = f"{source.header.device} to {target.header.device}"
    print(json.dumps({"devices": pair, **answer, "interval_coverage": round(float(np.mean(held)), 3)}))
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
