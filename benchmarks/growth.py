"""What grows with a table and a space: 10,000 rows compared, drawn and checked; exact answers at 18 and 72 positions.

Tables and spaces are made: rows of random costs, and the positions of `snapgen_v` repeated, with points of their own.
Nothing is measured on a device. Exit code 1 where a figure is over its limit.

    python benchmarks/growth.py [--rows 10000] [--json-only]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from latency_tables.budget import Budget, nearest
from latency_tables.cost import CostModel
from latency_tables.diff import diff
from latency_tables.distribution import feasible_share
from latency_tables.header import Header
from latency_tables.optimum import Limits, optimum
from latency_tables.record import Record
from latency_tables.report.table_page import write_table_page
from latency_tables.table import Table
from latency_tables.validate import validate
from search_spaces.plan import Plan

LIMITS = {
    "diff_10k_s": 5.0,
    "report_10k_s": 5.0,
    "validate_10k_s": 5.0,
    "nearest_18_s": 3.0,
    "share_18_s": 3.0,
    "two_limits_72_s": 3.0,
}
BLOCKS = ("Conv1D", "Conv3D", "SelfAttention1D", "SelfAttention3D", "CrossAttention1D", "CrossAttention3D")
HEADER = Header("bench", "onnxruntime", runtime_version="1.0", precision="fp32", chip="none", os="none")


def large_table(rows: int, seed: int) -> Table:
    """A table of so many workloads: every block at shapes of its own, latencies drawn."""
    rng = np.random.default_rng(seed)
    records = []
    for i in range(rows):
        block = BLOCKS[i % len(BLOCKS)]
        channels, side, kernel = 32 * (1 + i // 6 % 40), 8 * (1 + i // 240 % 12), 1 + 2 * (i // 2880)
        ms = float(np.exp(rng.normal(1.0, 1.0)))
        records.append(
            Record(
                f"{block}(kernel_size={kernel})/c{channels}/t8/{side}x{side}/b1@fp32",
                "plain" if i % 3 else "fused",
                block=block,
                params=f"kernel_size={kernel}",
                channels=channels,
                frames=8,
                height=side,
                width=side,
                batch=1,
                latency_ms_median=ms,
                latency_ms_p90=ms * 1.02,
                latency_iqr_ratio=0.01,
                latency_low_ms=ms * 0.99,
                latency_high_ms=ms * 1.01,
                runs=30,
                weights_mb=float(rng.uniform(0.1, 10)),
                activation_peak_mb=1e-6 * 4 * channels * 8 * side * side * float(rng.uniform(2, 6)),
            )
        )
    return Table(HEADER, records)


def large_space(times: int, folder: Path, seed: int = 0) -> CostModel:
    """`snapgen_v` with its positions repeated, every repetition with shapes, and so points, of its own."""
    rng = np.random.default_rng(seed)
    plan = Plan.load("snapgen_v")
    positions, points, rows = [], [], {}

    def add(workload: str, ms: float, weights: float, activation: float, block: str = "") -> None:
        rows[workload] = Record(
            f"{workload}@fp16",
            "plain",
            block=block,
            latency_ms_median=ms,
            weights_mb=weights,
            activation_peak_mb=activation,
        )

    for repetition in range(times):
        for position in plan.positions:
            name = f"{position.name}.r{repetition}"
            layers = []
            for layer in position.layers:
                workload = layer.workload.replace("/b1", f"/b1r{repetition}")
                if workload not in rows:
                    ms, alive = float(np.exp(rng.normal(1.5, 0.8))), float(np.exp(rng.normal(5.0, 0.5)))
                    add(workload, ms, layer.parameters * 2e-6, alive, layer.block)
                layers.append(dataclasses.replace(layer, workload=workload))
            positions.append(dataclasses.replace(position, name=name, layers=tuple(layers)))
            point = next(point for point in plan.points if point.name == position.name and point.kind == "position")
            points.append(dataclasses.replace(point, name=name))
    add(plan.backbone_workload, 300.0, plan.backbone_parameters * 2e-6, 200.0)
    grown = dataclasses.replace(plan, positions=tuple(positions), points=tuple(points))
    header = dataclasses.replace(HEADER, precision="fp16")
    return CostModel(grown, Table(header, rows.values()))


def timed(what: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    answer = what()
    return time.perf_counter() - started, answer


def tables(rows: int, folder: Path) -> dict[str, float]:
    before, after = large_table(rows, 1), large_table(rows, 2)
    found = {}
    found["diff_10k_s"], change = timed(lambda: diff(before, after))
    found["validate_10k_s"], findings = timed(lambda: validate(after))
    found["report_10k_s"], page = timed(lambda: write_table_page(folder / "table.html", after, ("before", before)))
    print(f"tables of {len(before):,} rows")
    print(f"  {'diff':<28} {found['diff_10k_s']:>8.2f} s, {len(change.changes):,} changes")
    print(f"  {'validate':<28} {found['validate_10k_s']:>8.2f} s, {len(findings):,} findings")
    print(f"  {'report with its last version':<28} {found['report_10k_s']:>8.2f} s, {page.stat().st_size / 1e6:.1f} MB")
    return found


def spaces(folder: Path) -> dict[str, float]:
    found = {}
    small, large = large_space(2, folder), large_space(8, folder)
    costs = small.cost(small.random(100_000, np.random.default_rng(0)))
    tight = Budget(
        latency_ms=float(np.quantile(costs.latency_ms, 1e-4)) * 0.6,
        memory_mb=float(costs.peak_mb.min()) * 0.6,
        parameters_min=float(np.median(costs.parameters)),
    )
    found["nearest_18_s"], infeasible = timed(lambda: nearest(small, tight))
    print(f"{len(small.positions)} positions, {small.size:.1e} arrangements")
    print(f"  {'nearest answer':<28} {found['nearest_18_s']:>8.2f} s: {infeasible.message[:150] if infeasible else ''}")
    within = Budget(latency_ms=float(np.median(costs.latency_ms)), memory_mb=float(np.median(costs.peak_mb)))
    found["share_18_s"], share = timed(lambda: feasible_share(small, within))
    drawn = float(within.feasible(costs).mean())
    print(
        f"  {'share within two limits':<28} {found['share_18_s']:>8.2f} s: {share.sentence}; "
        f"of 100,000 draws {drawn:.2%}"
    )
    costs = large.cost(large.random(20_000, np.random.default_rng(0)))
    limits = Limits(float(np.quantile(costs.latency_ms, 0.2)), float(np.quantile(costs.peak_mb, 0.2)))
    found["two_limits_72_s"], best = timed(lambda: optimum(large, "parameters", limits, "max"))
    cost = large.cost(best[None])
    print(f"{len(large.positions)} positions, {large.size:.1e} arrangements")
    print(
        f"  {'most parameters, two limits':<28} {found['two_limits_72_s']:>8.2f} s: {cost.parameters[0]:,} parameters, "
        f"{cost.latency_ms[0]:.2f} of {limits.latency_ms:.2f} ms, {cost.peak_mb[0]:.1f} of {limits.peak_mb:.1f} MB"
    )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000, help="of each table")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = spaces(Path(folder)) | tables(args.rows, Path(folder))
    print(json.dumps({name: round(found[name], 3) for name in LIMITS}))
    return 0 if all(found[name] <= limit for name, limit in LIMITS.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
