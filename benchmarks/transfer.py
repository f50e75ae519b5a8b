"""A device hardly measured: rows predicted from another device's table, by the rows that were asked for or random ones.

Several devices that one machine offers are measured whole, each twice: ONNX Runtime with one and two threads, without
rewriting the graph, in half precision, and eager torch. Of each pair one is the source; of the other all but a few rows
are hidden and predicted. Every predictor gets the same rows: those that the transfer asks for, and random ones, many
times over. An error is by how much the larger of prediction and truth is above the other, over hidden rows alone; rho
is Spearman's, over them too. A row without a number on either side is left out and counted.

How far two measurements of the same device agree is printed beside: no prediction can be closer than that. Exit code 1
where fewer than 95% of the rows are within 10% at 10 rows, or rows that were asked for do no better than random ones.

    python benchmarks/transfer.py [--stored] [--store] [--draws 20] [--quick]

``--stored`` repeats the analysis on the tables in benchmarks/data/transfer.csv; ``--store`` writes what was measured
there; ``--quick`` measures fewer rounds.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from latency_tables.header import Header
from latency_tables.record import Record
from latency_tables.table import Table
from latency_tables.transfer import measure_first, transfer

STORED = Path(__file__).parent / "data" / "transfer.csv"
COUNTS, WITHIN, TARGET = (5, 10, 20), (0.05, 0.10), 0.95
BLOCKS = (
    *("Conv1D(kernel_size=3)", "Conv1D(kernel_size=5)", "Conv3D(kernel_size=3)"),
    *(
        f"{kind}Attention{form}(heads={heads})"
        for kind in ("Self", "Cross")
        for form in ("1D", "3D")
        for heads in (2, 4)
    ),
)
SHAPES = ("32x8x48x48", "64x8x24x24", "128x8x12x12", "64x4x32x32")
TOKENS = 5000  # a 3D self-attention over more takes seconds
DEVICES = {
    "ort": {"runtime": "onnxruntime"},
    "ort_2_threads": {"runtime": "onnxruntime", "threads": 2},
    "ort_unoptimised": {"runtime": "onnxruntime", "optimization": "none"},
    "ort_fp16": {"runtime": "onnxruntime", "precision": "fp16"},
    "torch": {"runtime": "torch"},
    "torch_2_threads": {"runtime": "torch", "threads": 2},
}
PAIRS = tuple((source, target) for source in ("ort", "torch") for target in DEVICES if target != source)
Measured = dict[tuple[str, int], dict[str, Record]]  # (device, which time) -> workload without precision -> row


def measure(quick: bool) -> Measured:
    """Every device twice, the second time after all others, so that the machine's day is part of the difference."""
    from device_profiler.device import Device
    from device_profiler.profile import operator_workload, profile_workloads
    from device_profiler.samples import Limits

    limits = Limits(min_rounds=5, max_rounds=10, seconds=5.0) if quick else Limits()
    found: Measured = {}
    with tempfile.TemporaryDirectory() as folder:
        for time in (1, 2):
            for name, settings in DEVICES.items():
                device = Device(name=name, memory_limit_mb=6000, **settings)
                workloads = []
                for shape in SHAPES:
                    _, frames, height, width = (int(size) for size in shape.split("x"))
                    for block in BLOCKS:
                        if "SelfAttention3D" in block and frames * height * width > TOKENS:
                            continue
                        context = "16x64" if "Cross" in block else ""
                        workloads.append(operator_workload(block, shape, device.precision, context))
                where = Path(folder) / str(time)
                table = profile_workloads(workloads, device, where, limits=limits, cache_dir=Path(folder) / "cache")
                rows = [table.get(key) for key in table.keys]
                found[name, time] = {row.key.rpartition("@")[0]: row for row in rows if row is not None}
                spread = (table.header.reference or {}).get("spread")
                print(f"measured {name}, time {time}: {len(found[name, time])} rows, reference {spread}", flush=True)
    return found


def store(found: Measured) -> None:
    """One line a workload, the median latencies of every device and time; small enough for git."""
    columns = sorted(
        {f"{device}/{time}/{row.precision}" for (device, time), rows in found.items() for row in rows.values()}
    )
    first = {name: row for rows in found.values() for name, row in rows.items()}
    with open(STORED, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["workload", "block", "params", "channels", "frames", "height", "width", *columns])
        for name, row in sorted(first.items()):
            told = []
            for column in columns:
                device, time, _ = column.split("/")
                known = found[device, int(time)].get(name)
                told.append("" if known is None else f"{known.latency_ms_median:.5f}")
            shape = [row.channels, row.frames, row.height, row.width]
            writer.writerow([name, row.block, row.params, *shape, *told])


def stored() -> Measured:
    found: Measured = {}
    with open(STORED, newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            for column, text in line.items():
                if column.count("/") != 2 or not text:
                    continue
                device, time, precision = column.split("/")
                sizes = {name: int(line[name]) for name in ("channels", "frames", "height", "width")}
                found.setdefault((device, int(time)), {})[line["workload"]] = Record(
                    f"{line['workload']}@{precision}",
                    "plain",
                    block=line["block"],
                    params=line["params"],
                    latency_ms_median=float(text),
                    batch=1,
                    **sizes,
                )
    return found


def as_table(device: str, rows: list[Record]) -> Table:
    return Table(Header(device, "benchmark", precision=rows[0].precision), rows)


def asked_for(source: Table, whole: dict[str, Record], count: int) -> list[str]:
    """Keys measured by somebody who starts with nothing and always measures the row that is asked for next."""
    known = as_table("target", list(whole.values()))
    known = Table(known.header)
    while len(known) < count:
        key = measure_first(source, known, 1)[0]
        known.append(whole[key])
    return list(known.keys)


def constant(source: Table, whole: dict[str, Record], known: list[str]) -> dict[str, float]:
    """The source times the median ratio of the known rows."""
    base = {key.rpartition("@")[0]: source.get(key).latency_ms_median for key in source.keys}
    ratio = np.median([whole[key].latency_ms_median / base[key.rpartition("@")[0]] for key in known])
    return {key: base[key.rpartition("@")[0]] * float(ratio) for key in whole if key not in known}


def transferred(source: Table, whole: dict[str, Record], known: list[str], held: list[bool]) -> dict[str, float]:
    found = transfer(source, as_table("target", [whole[key] for key in known])).table
    for key in whole:
        if key not in known:
            row = found.get(key)
            held.append(row.latency_low_ms <= whole[key].latency_ms_median <= row.latency_high_ms)
    return {key: found.get(key).latency_ms_median for key in whole if key not in known}


def errors(guess: dict[str, float], whole: dict[str, Record]) -> tuple[np.ndarray, float]:
    """Of every hidden row how far off it is; and rho."""
    pairs = np.array([(value, whole[key].latency_ms_median) for key, value in guess.items()])
    return np.expm1(np.abs(np.log(pairs[:, 0] / pairs[:, 1]))), float(spearmanr(pairs[:, 0], pairs[:, 1])[0])


def pair(found: Measured, names: tuple[str, str], draws: int) -> tuple[dict[str, dict[str, float]], list[bool]]:
    """``count/rows/predictor`` -> error, shares within and rho, averaged over both times and all draws."""
    told: dict[str, list[tuple[np.ndarray, float]]] = {}
    held: list[bool] = []
    for time in (1, 2):
        ours, theirs = found[names[0], time], found[names[1], time]
        shared = sorted(ours.keys() & theirs.keys())
        source = as_table(names[0], [ours[name] for name in shared])
        whole = {theirs[name].key: theirs[name] for name in shared}
        keys = sorted(whole)
        for count in COUNTS:
            rng = np.random.default_rng(count)
            sets = {"random": [[keys[i] for i in rng.permutation(len(keys))[:count]] for _ in range(draws)]}
            sets["asked for"] = [asked_for(source, whole, count)]
            for which, rows in sets.items():
                for known in rows:
                    mine = held if which == "asked for" else []
                    guesses = {
                        "transfer": transferred(source, whole, known, mine),
                        "constant": constant(source, whole, known),
                    }
                    for name, guess in guesses.items():
                        told.setdefault(f"{count}/{which}/{name}", []).append(errors(guess, whole))
    return {name: summary(values) for name, values in told.items()}, held


def summary(values: list[tuple[np.ndarray, float]]) -> dict[str, float]:
    means = np.array([off.mean() for off, _ in values])
    return {
        "error": float(means.mean()),
        "spread": float(means.std()),
        **{f"within_{share:.0%}": float(np.mean([np.mean(off <= share) for off, _ in values])) for share in WITHIN},
        "rho": float(np.mean([rho for _, rho in values])),
    }


def repeated(found: Measured, device: str) -> tuple[float, float]:
    """How far the two times of a device are apart: mean, and the share of rows within 10%; a common factor left in."""
    first, second = found[device, 1], found[device, 2]
    ratios = [second[name].latency_ms_median / first[name].latency_ms_median for name in first.keys() & second.keys()]
    off = np.expm1(np.abs(np.log(ratios)))
    return float(off.mean()), float(np.mean(off <= 0.10))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stored", action="store_true", help="repeat the analysis on the stored tables")
    parser.add_argument("--store", action="store_true", help="keep what was measured")
    parser.add_argument("--draws", type=int, default=20, help="random sets of rows")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    args = parser.parse_args()
    if args.stored and not STORED.is_file():
        print(f"no {STORED}; measure once with --store", file=sys.stderr)
        return 2
    found = stored() if args.stored else measure(args.quick)
    if args.store:
        store(found)
    for device in DEVICES:
        mean, near = repeated(found, device)
        print(f"{device:<16} measured twice: {mean:.1%} apart on average, {near:.0%} of the rows within 10%")
    total: dict[str, list[dict[str, float]]] = {}
    held: list[bool] = []
    print(
        f"\n{'pair':<28} {'rows':>4} {'which':<10} {'by':<9} {'error':>7} {'spread':>7} {'5%':>5} {'10%':>5} {'rho':>6}"
    )
    for names in PAIRS:
        told, mine = pair(found, names, args.draws)
        held += mine
        for name, value in told.items():
            total.setdefault(name, []).append(value)
            count, which, by = name.split("/")
            print(line(" to ".join(names), count, which, by, value))
    mean_of: Callable[[str, str], float] = lambda name, field: float(np.mean([value[field] for value in total[name]]))  # noqa: E731
    for name in total:
        count, which, by = name.split("/")
        print(line("all pairs", count, which, by, {field: mean_of(name, field) for field in total[name][0]}))
    asked, random = (mean_of(f"10/{which}/transfer", "error") for which in ("asked for", "random"))
    better = asked < random
    print(f"\nasking is {'better' if better else 'no better'} than random rows at 10: {asked:.1%} against {random:.1%}")
    print(f"90% intervals held {np.mean(held):.0%} of the hidden rows")
    answer = {
        "within_10pct_at_10": round(mean_of("10/asked for/transfer", "within_10%"), 4),
        "rho_at_10": round(mean_of("10/asked for/transfer", "rho"), 4),
        "pairs": len(PAIRS),
        "asked_error_at_10": round(asked, 4),
        "random_error_at_10": round(random, 4),
        "constant_error_at_10": round(mean_of("10/asked for/constant", "error"), 4),
        "interval_coverage": round(float(np.mean(held)), 3),
        "measured_twice_within_10pct": round(float(np.mean([repeated(found, device)[1] for device in DEVICES])), 4),
        **{
            f"{field.replace('%', 'pct')}_at_{count}": round(mean_of(f"{count}/asked for/transfer", field), 4)
            for count in COUNTS
            for field in ("within_5%", "within_10%", "rho")
        },
    }
    print(json.dumps(answer))
    return 0 if better and answer["within_10pct_at_10"] >= TARGET else 1


def line(what: str, count: str, which: str, by: str, value: dict[str, float]) -> str:
    return (
        f"{what:<28} {count:>4} {which:<10} {by:<9} {value['error']:>7.1%} {value['spread']:>7.1%} "
        f"{value['within_5%']:>5.0%} {value['within_10%']:>5.0%} {value['rho']:>6.3f}"
    )


if __name__ == "__main__":
    sys.exit(main())
