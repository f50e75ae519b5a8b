"""Alone, by slope or in context: which rows predict whole networks best on a device?

Every workload of a space is measured by all methods, and random whole networks beside them, in the same interleaved
rounds; the sums of each method's rows are held against the networks. The best by mean error is what the device's YAML
should state as ``method``; exit code 1 if it states another that is worse by more than a point of a percent.

    python benchmarks/methods.py [--device host_cpu] [--space tiny] [--networks 10]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace

import numpy as np

from device_profiler.additivity import LIMITS, random_networks
from device_profiler.device import Device
from device_profiler.measure import Progress
from device_profiler.profile import measure_workloads
from device_profiler.samples import RunLog
from latency_tables.agreement import kendall_tau
from latency_tables.cost import CostModel
from latency_tables.header import Header
from latency_tables.table import Table
from search_spaces.plan import Plan
from search_spaces.space import Space

METHODS = ("alone", "slope", "in_context")
SLACK = 0.01


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="tiny")
    parser.add_argument("--device", default="host_cpu")
    parser.add_argument("--networks", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=LIMITS.min_rounds)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", default=None, help="folder of lowered files to keep between runs")
    args = parser.parse_args()

    def tell(event: Progress) -> None:
        if event.stage in ("lower", "load") and event.done % 10 == 0 or event.stage == "time":
            print(f"{event.stage} {event.done}/{event.total} {event.detail}", file=sys.stderr)

    space, device, log = Space.load(args.space), Device.load(args.device), RunLog()
    networks = random_networks(space, args.networks, args.seed)
    wholes = [space.network_workload(network, device.precision) for network in networks]
    with tempfile.TemporaryDirectory() as temporary:
        records = measure_workloads(
            [*space.workloads(device.precision), *wholes],
            device,
            space=args.space,
            arrangements={network.key: network for network in networks},
            method=METHODS,
            limits=replace(LIMITS, min_rounds=args.rounds, max_rounds=args.rounds, gross_iqr_ratio=float("inf")),
            seed=args.seed,
            progress=tell,
            cache_dir=args.cache or temporary,
            log=log,
        )
    table = Table(Header(device.name, device.runtime, precision=device.precision), records)
    measured = np.array([row.latency_ms_median for workload in wholes for row in table.rows(workload.key)])
    for row in records:
        if not row.ok:
            print(f"{row.method} {row.key}: {row.status}: {row.reason}")
    found: dict[str, dict[str, float | int]] = {}
    print(f"{'method':12}{'mean error':>12}{'worst':>8}{'bias':>8}{'tau':>8}")
    for method in METHODS:
        model = CostModel(Plan.load(args.space), table, method=method)
        indices = np.stack([model.encode(network.labels()) for network in networks])
        sums = model.cost(indices).latency_ms
        known = np.isfinite(sums)  # a block without a number by this method takes its networks with it
        if not known.any():
            print(f"{method:12} no network has all its rows")
            continue
        errors = sums[known] / measured[known] - 1
        tau = kendall_tau(sums[known], measured[known])
        found[method] = {
            "networks": int(known.sum()),
            "mape": round(float(np.abs(errors).mean()), 5),
            "worst": round(float(np.abs(errors).max()), 5),
            "bias": round(float(errors.mean()), 5),
            "kendall_tau": round(tau, 5),
        }
        print(
            f"{method:12}{found[method]['mape']:12.2%}{found[method]['worst']:8.1%}{found[method]['bias']:8.1%}{tau:8.3f}"
        )
    if not found:
        print(json.dumps({"device": args.device, "methods": {}}))
        return 1
    best = min(found, key=lambda method: found[method]["mape"])
    spread = log.summary(LIMITS.drift).get("spread")
    print(f"best on {args.device}: {best}; its YAML says {device.method}; reference workload's spread {spread}")
    print(
        json.dumps(
            {
                "device": args.device,
                "space": args.space,
                "networks": len(networks),
                "methods": found,
                "best": best,
                "stated": device.method,
                "reference_spread": spread,
            }
        )
    )
    return 0 if device.method in found and found[device.method]["mape"] <= found[best]["mape"] + SLACK else 1


if __name__ == "__main__":
    sys.exit(main())
