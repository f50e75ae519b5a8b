"""How many arrangements can be costed a second, in batches, and how long the share within a budget takes to count.

Both against a plain Python loop that looks rows up in dictionaries, as most search code does; for the share, what the
loop would take for the whole space is extrapolated from its rate and said to be so. Exit code 1 below a million a
second or a hundred times the loop.

    python benchmarks/table_speed.py [--space tiny snapgen_v]
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np

from latency_tables.budget import Budget
from latency_tables.cost import CostModel
from latency_tables.distribution import feasible_share
from latency_tables.lookup import load_table
from search_spaces.plan import Plan

TABLE = "iphone16_pro_max_roofline"  # ships with both spaces
TARGET, TARGET_RATIO, BATCH, LOOP, REPEATS = 1_000_000, 100.0, 1_000_000, 5_000, 9


def loop(model: CostModel, choices: list[dict[str, tuple[str, ...]]]) -> list[tuple[float, ...]]:
    """(latency, weights, peak, parameters) of one arrangement after the other, each layer's row looked up by name."""
    rows = {key: (r.latency_ms_median, r.weights_mb, r.activation_peak_mb) for key, r in model.rows.items()}
    layers = {
        (position.name, layer.label): (layer.workload, layer.parameters)
        for position in model.plan.positions
        for layer in position.layers
    }
    live = dict(zip(model.positions, model.live_mb, strict=True))
    costs = []
    for choice in choices:
        latency, weights, peak = rows[model.plan.backbone_workload]
        parameters = model.plan.backbone_parameters
        for position, labels in choice.items():
            for label in labels:
                workload, count = layers[position, label]
                ms, mb, activation = rows[workload]
                latency, weights, parameters = latency + ms, weights + mb, parameters + count
                peak = max(peak, live[position] + activation)
        costs.append((latency, weights, weights + peak, parameters))
    return costs


def measure(space: str) -> dict[str, float | str]:
    plan = Plan.load(space)
    model = CostModel(plan, load_table(TABLE))
    choices = model.random(BATCH, np.random.default_rng(1))
    few = [model.decode(row) for row in choices[:LOOP]]
    vectorised, plain, ratios = [], [], []
    for _ in range(REPEATS):  # interleaved, so that a neighbour's load falls on both
        started = time.perf_counter()
        costs = model.cost(choices)
        vectorised.append(BATCH / (time.perf_counter() - started))
        started = time.perf_counter()
        expected = loop(model, few)
        plain.append(LOOP / (time.perf_counter() - started))
        ratios.append(vectorised[-1] / plain[-1])
    columns = ("latency_ms", "weights_mb", "peak_mb", "parameters")
    for column, values in zip(columns, zip(*expected, strict=True), strict=True):
        assert np.allclose(getattr(costs, column)[:LOOP], values)
    budget = Budget(latency_ms=float(np.median(costs.latency_ms)), memory_mb=float(np.median(costs.peak_mb)))
    started = time.perf_counter()
    share = feasible_share(model, budget)
    seconds = time.perf_counter() - started
    within = float(budget.feasible(costs).mean())
    assert share.lower - 0.01 <= within <= share.upper + 0.01, (share, within)  # a million draws are good to 0.1%
    fast, slow, ratio = (float(np.median(values)) for values in (vectorised, plain, ratios))
    print(f"{space}, {plan.size:.3g} arrangements of {len(plan.positions)} positions")
    print(f"  {'cost model, batched':<24} {fast:>14,.0f} arrangements/s")
    print(f"  {'dictionary loop':<24} {slow:>14,.0f} arrangements/s; ratio {ratio:.0f}")
    print(f"  {'share within a budget':<24} {seconds:>14.2f} s: {share.sentence}")
    print(
        f"  {'the loop, extrapolated':<24} {plan.size / slow:>14,.3g} s; of a million drawn at random {within:.2%} fit"
    )
    return {
        "arrangements_per_s": round(fast),
        "loop_per_s": round(slow),
        "ratio": round(ratio, 1),
        "share_s": round(seconds, 3),
        "share_lower": share.lower,
        "share_upper": share.upper,
        "loop_share_s_extrapolated": float(f"{plan.size / slow:.3g}"),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", nargs="+", default=["tiny", "snapgen_v"])
    answer = {space: measure(space) for space in parser.parse_args().space}
    print(json.dumps(answer))
    good = [found["arrangements_per_s"] >= TARGET and found["ratio"] >= TARGET_RATIO for found in answer.values()]
    return 0 if all(good) else 1


if __name__ == "__main__":
    raise SystemExit(main())
