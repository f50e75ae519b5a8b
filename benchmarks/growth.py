"""What grows: with a table's rows, a space's positions, a study's trials, a folder's files, and a fleet's devices.

Tables of 10,000 rows compared, drawn and checked; exact answers at 18 and 72 positions; 5,000 trials opened
(`growth_studies.py`), a folder of 2,000 videos (`growth_data.py`), four devices against one (`fleet.py`). Tables,
spaces and videos are made, and devices only sleep: nothing is measured on one. A busy machine lengthens all that is
timed by the clock, so processor time is told beside it, and counts where more programs want to run than there are
cores; JSON says so (`busy`). Exit code 1 where a figure misses its limit.

    python benchmarks/growth.py [--rows 10000] [--trials 5000] [--files 2000] [--quick]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
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
    "trial_kb": 4.0,
    "open_5000_s": 3.0,
    "diff_10k_s": 5.0,
    "report_10k_s": 5.0,
    "validate_10k_s": 5.0,
    "nearest_18_s": 3.0,
    "share_18_s": 3.0,
    "two_limits_72_s": 3.0,
    "open_folder_ms_a_file": 0.5,
}
LEAST = {"fleet_4": 2.5}
PROCESSOR = "_processor"  # of a figure: the same in processor time
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
                    add(workload, ms, layer.parameters * 2e-6, alive, layer.variant.block)
                layers.append(dataclasses.replace(layer, workload=workload))
            positions.append(dataclasses.replace(position, name=name, layers=tuple(layers)))
            point = next(point for point in plan.points if point.name == position.name and point.kind == "position")
            points.append(dataclasses.replace(point, name=name))
    add(plan.backbone_workload, 300.0, plan.backbone_parameters * 2e-6, 200.0)
    grown = dataclasses.replace(plan, positions=tuple(positions), points=tuple(points))
    header = dataclasses.replace(HEADER, precision="fp16")
    return CostModel(grown, Table(header, rows.values()))


class Figures(dict[str, float]):
    """Figures by name, each with its processor time beside it."""

    def timed(self, name: str, what: Callable[[], Any]) -> Any:
        """What it answers; what it took is kept."""
        started, worked = time.perf_counter(), time.process_time()
        answer = what()
        self[name + PROCESSOR] = time.process_time() - worked
        self[name] = time.perf_counter() - started
        return answer

    def line(self, title: str, name: str, told: str = "") -> None:
        print(f"  {title:<28} {self[name]:>8.2f} s ({self[name + PROCESSOR]:.2f} s of the processor){told}", flush=True)


def tables(rows: int, folder: Path, found: Figures) -> None:
    before, after = large_table(rows, 1), large_table(rows, 2)
    change = found.timed("diff_10k_s", lambda: diff(before, after))
    findings = found.timed("validate_10k_s", lambda: validate(after))
    page = found.timed("report_10k_s", lambda: write_table_page(folder / "table.html", after, ("before", before)))
    print(f"tables of {len(before):,} rows")
    found.line("diff", "diff_10k_s", f": {len(change.changes):,} changes")
    found.line("validate", "validate_10k_s", f": {len(findings):,} findings")
    found.line("report with its last version", "report_10k_s", f": {page.stat().st_size / 1e6:.1f} MB")


def spaces(folder: Path, found: Figures) -> None:
    small, large = large_space(2, folder), large_space(8, folder)
    costs = small.cost(small.random(100_000, np.random.default_rng(0)))
    tight = Budget(
        latency_ms=float(np.quantile(costs.latency_ms, 1e-4)) * 0.6,
        memory_mb=float(costs.peak_mb.min()) * 0.6,
        parameters_min=float(np.median(costs.parameters)),
    )
    infeasible = found.timed("nearest_18_s", lambda: nearest(small, tight))
    print(f"{len(small.positions)} positions, {small.size:.1e} arrangements")
    found.line("nearest answer", "nearest_18_s", f": {infeasible.message[:120] if infeasible else ''}")
    within = Budget(latency_ms=float(np.median(costs.latency_ms)), memory_mb=float(np.median(costs.peak_mb)))
    share = found.timed("share_18_s", lambda: feasible_share(small, within))
    drawn = float(within.feasible(costs).mean())
    found.line("share within two limits", "share_18_s", f": {share.sentence}; of 100,000 draws {drawn:.2%}")
    costs = large.cost(large.random(20_000, np.random.default_rng(0)))
    limits = Limits(float(np.quantile(costs.latency_ms, 0.2)), float(np.quantile(costs.peak_mb, 0.2)))
    best = found.timed("two_limits_72_s", lambda: optimum(large, "parameters", limits, "max"))
    cost = large.cost(best[None])
    print(f"{len(large.positions)} positions, {large.size:.1e} arrangements")
    found.line(
        "most parameters, two limits",
        "two_limits_72_s",
        f": {cost.parameters[0]:,} parameters, {cost.latency_ms[0]:.2f} of {limits.latency_ms:.2f} ms, "
        f"{cost.peak_mb[0]:.1f} of {limits.peak_mb:.1f} MB",
    )


def beside(script: str, *words: str) -> dict[str, float]:
    """The figures of another benchmark, in a process of its own; its table goes to this one's output."""
    command = [sys.executable, str(Path(__file__).with_name(script)), *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    lines = done.stdout.strip().splitlines()
    if not lines:
        raise SystemExit(f"{script} ended with exit code {done.returncode} and said nothing")
    print("\n".join(["", *lines[:-1]]), flush=True)
    told: dict[str, float] = json.loads(lines[-1])
    return told


def missed(found: Figures, busy: bool) -> list[str]:
    """The figures that miss their limits; on a busy machine by processor time, where it is known."""

    def value(name: str) -> float:
        return min(found[name], found.get(name + PROCESSOR, found[name])) if busy else found[name]

    over = [name for name, limit in LIMITS.items() if not value(name) <= limit]
    return over + [name for name, least in LEAST.items() if not found[name] >= least]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000, help="of each table")
    parser.add_argument("--trials", type=int, default=5000, help="of the study")
    parser.add_argument("--files", type=int, default=2000, help="of the folder")
    parser.add_argument("--quick", action="store_true", help="few rows, trials and files: every branch, no figures")
    args = parser.parse_args()
    if args.quick:
        args.rows, args.trials, args.files = 500, 100, 50
    found, load = Figures(), [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as folder:
        spaces(Path(folder), found)
        tables(args.rows, Path(folder), found)
    studies = beside("growth_studies.py", "--trials", str(args.trials))
    found |= {"trial_kb": studies["trial_kb"], "open_5000_s": studies[f"open_{args.trials}_s"]}
    found["open_5000_s" + PROCESSOR] = studies[f"open_{args.trials}_processor_s"]
    data = beside("growth_data.py", "--files", str(args.files))
    found["open_folder_ms_a_file"] = data["open_folder_ms_a_file"]
    found["open_folder_ms_a_file" + PROCESSOR] = data["open_folder_processor_ms_a_file"]
    found["fleet_4"] = beside("fleet.py", *(["--load-s", "0.3"] if args.quick else []))["fleet_4"]
    load.append(os.getloadavg()[0])
    busy = max(load) > (os.cpu_count() or 1)
    over = missed(found, busy)
    print(f"\nload {load[0]:.1f} to {load[1]:.1f}; missed: {', '.join(over) or 'nothing'}")
    figures = {name: round(found[name], 3) for name in (*LIMITS, *LEAST)}
    worked = {name: round(value, 3) for name, value in found.items() if name.endswith(PROCESSOR)}
    print(json.dumps({**figures, **worked, **vars(args), "busy": busy, "missed": over}))
    return 1 if over and not args.quick else 0


if __name__ == "__main__":
    sys.exit(main())
