"""A device hardly measured: rows predicted from another device's table, against scaling by a constant and a roofline.

Both tables are measured whole; then all but a few rows of the target are hidden and predicted, many times over. The
roofline baseline scales the shipped estimates of another chip by the constant that fits the few rows best. Exit code 1
where the transfer is worse than the constant.

    python benchmarks/transfer.py [--source TABLE.csv --target TABLE.csv] [--space tiny] [--draws 40]
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
from latency_tables.lookup import load_table
from latency_tables.plan import Plan
from latency_tables.table import Table
from latency_tables.transfer import transfer

COUNTS, NETWORKS = (3, 6, 12), 300


def scaled(shape: Table, known: Table, keys: list[str]) -> Table:
    """The target by a constant: every row that it lacks from ``shape``, times the median ratio of those it has."""

    def row(key: str):
        base = key.rpartition("@")[0]
        return next((found for found in shape if found.ok and found.key.rpartition("@")[0] == base), None)

    ratios = [r.latency_ms_median / row(r.key).latency_ms_median for r in known if row(r.key)]
    constant = float(np.median(ratios))
    lacking = [key for key in keys if key not in known.keys]
    return Table(
        known.header,
        [
            *known,
            *(
                replace(
                    row(key),
                    key=key,
                    precision=known.header.precision,
                    latency_ms_median=row(key).latency_ms_median * constant,
                    latency_ms_p90=None,
                    latency_low_ms=None,
                    latency_high_ms=None,
                )
                for key in lacking
            ),
        ],
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="tiny")
    parser.add_argument("--source", help="a complete table; host_cpu is measured by default")
    parser.add_argument("--target", help="another; host_torch is measured by default")
    parser.add_argument("--draws", type=int, default=40)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source, target = (
            Table.load(Path(path)) if path else profile(args.space, device, folder)
            for path, device in ((args.source, "host_cpu"), (args.target, "host_torch"))
        )
    plan = Plan.load(args.space)
    roofline = load_table("iphone16_pro_max_roofline")
    keys = [key for key in plan.keys(target.header.precision) if target.get(key) is not None]
    whole = Table(target.header, [target.get(key) for key in keys])
    truth_model = CostModel(plan, whole)
    choices = truth_model.random(NETWORKS, np.random.default_rng(0))
    truth = truth_model.cost(choices).latency_ms
    told, held, answer = [], [], {}
    print(f"{'rows':>5} {'predicted by':<22} {'row error':>10} {'network error':>14} {'network tau':>12}")
    for count in COUNTS:
        if count >= len(keys):
            print(f"{count:>5} {'':<22} the space has {len(keys)} workloads: nothing left to predict")
            continue
        errors: dict[str, list[tuple[float, float, float]]] = {"transfer": [], "constant": [], "roofline": []}
        rng = np.random.default_rng(count)
        for _ in range(args.draws):
            picked = sorted(rng.permutation(len(keys))[:count])
            known = Table(target.header, [whole.get(keys[i]) for i in picked])
            tables = {
                "transfer": transfer(source, known).table,
                "constant": scaled(source, known, keys),
                "roofline": scaled(roofline, known, keys),
            }
            for name, table in tables.items():
                rows = [(table.get(key), whole.get(key)) for i, key in enumerate(keys) if i not in picked]
                if name == "transfer":
                    held += [a.latency_low_ms <= b.latency_ms_median <= a.latency_high_ms for a, b in rows]
                row_error = float(np.mean([abs(a.latency_ms_median / b.latency_ms_median - 1) for a, b in rows]))
                found = CostModel(plan, table, allow_mixed=True).cost(choices).latency_ms
                network_error = float(np.mean(np.abs(found / truth - 1)))
                errors[name].append((row_error, network_error, kendall_tau(found, truth)))
        for name, values in errors.items():
            row_error, network_error, tau = np.mean(values, axis=0)
            print(f"{count:>5} {name:<22} {row_error:>10.1%} {network_error:>14.1%} {tau:>12.3f}")
            answer[f"{name}_{count}"] = {
                "row_error": round(float(row_error), 4),
                "network_error": round(float(network_error), 4),
                "kendall_tau": round(float(tau), 4),
            }
        told.append(answer[f"transfer_{count}"]["row_error"] <= answer[f"constant_{count}"]["row_error"])
    print(f"90% intervals held {np.mean(held):.0%} of the hidden rows")
    pair = f"{source.header.device} to {target.header.device}"
    print(json.dumps({"devices": pair, **answer, "interval_coverage": round(float(np.mean(held)), 3)}))
    return 0 if all(told) else 1


if __name__ == "__main__":
    sys.exit(main())
