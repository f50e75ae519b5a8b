"""How many arrangements can be costed a second, latency and peak memory, in batches; against a plain Python loop.

The loop looks rows up in dictionaries, as most search code does. Exit code 1 below a million a second.

    python benchmarks/table_speed.py [--space tiny]
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np

from latency_tables.cost import CostModel
from latency_tables.header import Header
from latency_tables.plan import Plan
from latency_tables.record import Record
from latency_tables.table import Table

TARGET, BATCH, LOOP, REPEATS = 1_000_000, 1_000_000, 5_000, 5


def made_up_table(plan: Plan) -> Table:
    """Costs drawn at random: only the speed of adding them up is looked at."""
    rng = np.random.default_rng(0)
    rows = [
        Record(
            f"{workload}@fp32",
            "plain",
            precision="fp32",
            latency_ms_median=float(rng.uniform(1, 50)),
            weights_mb=float(rng.uniform(0.1, 5)),
            activation_peak_mb=float(rng.uniform(1, 100)),
        )
        for workload in plan.workloads
    ]
    return Table(Header(device="made_up", runtime="made_up", precision="fp32"), rows)


def loop(model: CostModel, choices: list[dict[str, tuple[str, ...]]]) -> list[tuple[float, float]]:
    """One arrangement after the other, each layer's row looked up by name."""
    rows = {key: (r.latency_ms_median, r.weights_mb, r.activation_peak_mb) for key, r in model.rows.items()}
    workloads = {
        (position.name, layer.variant): layer.workload for position in model.plan.positions for layer in position.layers
    }
    live = dict(zip(model.positions, model.live_mb, strict=True))
    costs = []
    for choice in choices:
        latency, weights, peak = rows[model.plan.backbone_workload]
        for position, labels in choice.items():
            for label in labels:
                ms, mb, activation = rows[workloads[position, label]]
                latency, weights, peak = latency + ms, weights + mb, max(peak, live[position] + activation)
        costs.append((latency, weights + peak))
    return costs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="tiny")
    args = parser.parse_args()
    plan = Plan.load(args.space)
    model = CostModel(plan, made_up_table(plan))
    choices = model.random(BATCH, np.random.default_rng(1))
    few = [model.decode(row) for row in choices[:LOOP]]
    vectorised, plain = [], []
    for _ in range(REPEATS):  # interleaved, so that a neighbour's load falls on both
        started = time.perf_counter()
        costs = model.cost(choices)
        vectorised.append(BATCH / (time.perf_counter() - started))
        started = time.perf_counter()
        expected = loop(model, few)
        plain.append(LOOP / (time.perf_counter() - started))
    assert np.allclose(costs.latency_ms[:LOOP], [latency for latency, _ in expected])
    assert np.allclose(costs.peak_mb[:LOOP], [peak for _, peak in expected])
    fast, slow = float(np.median(vectorised)), float(np.median(plain))
    print(f"{'':<22} {'arrangements/s':>16}")
    print(f"{'cost model, batched':<22} {fast:>16,.0f}")
    print(f"{'dictionary loop':<22} {slow:>16,.0f}")
    print(f"{'ratio':<22} {fast / slow:>16.1f}")
    print(json.dumps({"space": args.space, "arrangements_per_s": round(fast), "loop_per_s": round(slow)}))
    return 0 if fast >= TARGET else 1


if __name__ == "__main__":
    raise SystemExit(main())
