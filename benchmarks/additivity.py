"""Whole random networks against the sum of their parts: does the cost model's central assumption hold here?

Blocks, backbone and networks are timed in the same interleaved rounds, so that drift cancels; once for each deployment
clip and thread count. The interval around each prediction is fitted on the other networks. Exit code 1 if somewhere the
mean error is over 2%, Kendall's tau under 0.97, or the 90% intervals hold less than 90%.

    python benchmarks/additivity.py [--space tiny] [--networks 40] [--clips 8x48x48 16x32x32] [--threads 1 2]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from device_profiler.additivity import LIMITS, Additivity, check_additivity
from device_profiler.device import Device
from device_profiler.errors import ProfileError
from device_profiler.measure import Progress
from latency_tables.correction import fit_correction
from search_spaces.space import Space

TARGET_MAPE, TARGET_TAU, TARGET_COVERAGE, QUIET = 0.02, 0.97, 0.90, 0.02


def at_clip(space: str, clip: str, folder: Path) -> Path:
    """The space with another deployment clip, as a YAML of its own."""
    source = Space.load(space).source
    assert source is not None
    data = yaml.safe_load(source.read_text())
    frames, height, width = (int(side) for side in clip.split("x"))
    data["clips"]["deployment"] |= {"frames": frames, "height": height, "width": width}
    data["name"] = f"{data['name']}_{clip}"
    path = folder / f"{data['name']}.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def left_out(found: Additivity) -> Iterator[tuple[float, bool]]:
    """(error, whether the interval held it) of each network, predicted from a correction fitted on the others."""
    for index, row in enumerate(found.rows):
        others = [other for i, other in enumerate(found.rows) if i != index]
        fit = fit_correction(
            [other.predicted_ms for other in others],
            [other.measured_ms for other in others],
            [other.arrangement.num_layers for other in others],
        )
        predicted = fit.offset_ms + fit.scale * row.predicted_ms + fit.per_layer_ms * row.arrangement.num_layers
        error = predicted / row.measured_ms - 1
        yield error, abs(error) <= fit.interval * predicted / row.measured_ms


def summary(found: Additivity) -> dict[str, Any]:
    errors, held = zip(*left_out(found), strict=True)
    spread = float(found.reference.get("spread", float("nan")))
    return {
        "mape": round(found.mape, 5),
        "kendall_tau": round(found.kendall_tau, 5),
        "worst": round(found.worst, 5),
        "bias": round(found.bias, 5),
        "corrected_mape": round(float(np.mean(np.abs(errors))), 5),
        "coverage": round(float(np.mean(held)), 4),
        "peak_mape": round(found.peak_mape, 5),
        "networks": len(found.rows),
        "reference_spread": round(spread, 4),
        "quiet": spread < QUIET,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="tiny")
    parser.add_argument("--device", default="host_cpu")
    parser.add_argument("--networks", type=int, default=40)
    parser.add_argument("--clips", nargs="+", default=["8x48x48", "16x32x32"], metavar="FRAMESxHEIGHTxWIDTH")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--method", default=None, help="alone, slope or in_context; the device's by default")
    parser.add_argument("--rounds", type=int, default=LIMITS.min_rounds)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", default=None, help="folder of lowered files to keep between runs")
    parser.add_argument("--rows", type=Path, help="write every network's numbers to this JSON")
    args = parser.parse_args()

    def tell(event: Progress) -> None:
        if event.stage in ("lower", "load") and event.done % 10 == 0 or event.stage == "time":
            print(f"{event.stage} {event.done}/{event.total} {event.detail}", file=sys.stderr)

    answer: dict[str, dict[str, Any]] = {}
    failed: list[str] = []
    kept: dict[str, list[dict[str, Any]]] = {}
    heads = (("threads", 8), ("mape", 8), ("tau", 7), ("worst", 8), ("bias", 8), ("corrected", 11), ("held", 7))
    print(f"{'clip':<10}" + "".join(f"{name:>{width}}" for name, width in heads) + f"{'spread':>8}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        for clip in args.clips:
            space = at_clip(args.space, clip, Path(temporary))
            for threads in args.threads:
                name = f"{clip}, {threads} thread{'s' * (threads != 1)}"
                try:
                    found = check_additivity(
                        space,
                        Device.load(args.device).model_copy(update={"threads": threads}),
                        cache_dir=args.cache or temporary,
                        networks=args.networks,
                        method=args.method,
                        limits=replace(LIMITS, min_rounds=args.rounds, max_rounds=2 * args.rounds),
                        seed=args.seed,
                        progress=tell,
                    )
                except ProfileError as error:
                    print(f"{clip:<10}{threads:>8}  not known: {error}", flush=True)
                    failed.append(name)
                    continue
                told = answer[name] = summary(found)
                kept[name] = [asdict(row) | {"arrangement": row.arrangement.to_json()} for row in found.rows]
                print(
                    f"{clip:<10}{threads:>8}{told['mape']:>8.2%}{told['kendall_tau']:>7.3f}{told['worst']:>8.1%}"
                    f"{told['bias']:>+8.1%}{told['corrected_mape']:>11.2%}{told['coverage']:>7.0%}"
                    f"{told['reference_spread']:>8.1%}{'' if told['quiet'] else '  not quiet'}",
                    flush=True,
                )
                if args.rows is not None:
                    args.rows.write_text(json.dumps(kept, indent=1))
    print(
        json.dumps(
            {
                "space": args.space,
                "device": args.device,
                "method": args.method or "alone",
                "runs": answer,
                "not_known": failed,
            }
        )
    )
    good = [
        run["mape"] < TARGET_MAPE and run["kendall_tau"] > TARGET_TAU and run["coverage"] >= TARGET_COVERAGE
        for run in answer.values()
    ]
    return 0 if all(good) and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
