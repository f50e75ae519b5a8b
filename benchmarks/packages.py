"""Saved Core ML packages evaluated with torch: how far each is from its module, in float32 and in float16 arithmetic.

``tiny``: every workload in every lowering and form, its ends, and a whole network of one layer a position.
``snapgen_v``: each variant at each of its three widths, at a smaller clip (8 frames, half the sides), since this is no
phone; with ``--whole`` also its backbone at that clip, its text encoder, and one tile of its decoder.

Errors are the largest difference relative to the largest output. Lowering and evaluation run in one child process,
whose peak memory is ``peak_gb``; nothing is timed but the whole. Exit code 1 over a target.

    python benchmarks/packages.py [--quick] [--whole]
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from device_profiler.errors import WorkloadError
from device_profiler.lowering import default_lowerings, lower_all
from device_profiler.subject import Subject
from search_spaces.space import Space
from search_spaces.workload import Workload

TARGETS = {"max_error_fp32": 1e-3, "max_error_fp16": 5e-3}
PEAK_GB = 12.0
FRAMES = 8  # of the smaller clip
Job = tuple[Subject, str, str]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny's training clip, and the narrowest width alone")
    parser.add_argument("--whole", action="store_true", help="snapgen_v's backbone, text encoder and decoder tile too")
    args = parser.parse_args()
    told: dict[str, Any] = {"quick": args.quick}
    missed = False
    print(f"{'fp32':>9} {'fp16':>9} {'seconds':>8}  package")
    for name, jobs in (("tiny", tiny(args.quick)), ("snapgen_v", snapgen_v(args.quick, args.whole))):
        told[name] = evaluated(list(jobs))
        missed |= any(not told[name][key] <= target for key, target in TARGETS.items()) or bool(told[name]["failed"])
        missed |= told[name]["peak_gb"] > PEAK_GB
        print(f"{name}: {told[name]}")
    print(json.dumps(told))
    return 1 if missed else 0


def tiny(quick: bool) -> Iterator[Job]:
    """Everything that ``tiny`` measures, in every lowering, and one whole network."""
    space = Space.load("tiny")
    clip = "training" if quick else "deployment"
    for workload in (*space.workloads("fp16", clip), *space.ends("fp16", clip)):
        for lowering in default_lowerings("coreml", workload):
            yield Subject(workload, "tiny" if workload.block == "backbone" else ""), "coreml", lowering
    rng = np.random.default_rng(0)
    layers = {place.name: [str(rng.choice([v.label for v in place.variants]))] for place in space.positions}
    arrangement = space.arrange(layers)
    for lowering in ("fused", "decomposed"):
        yield Subject(space.network_workload(arrangement, "fp16", clip), "tiny", arrangement), "coreml", lowering


def snapgen_v(quick: bool, whole: bool) -> Iterator[Job]:
    """Each variant at each width, and what is asked for of the rest, at the smaller clip."""
    space = Space.load("snapgen_v")
    seen = set()
    for position in space.positions:
        for variant in position.variants:
            workload = smaller(space.workload(position, variant, "fp16"))
            if workload.key in seen or (quick and workload.channels > 320):
                continue
            seen.add(workload.key)
            yield Subject(workload), "coreml", default_lowerings("coreml", workload)[0]
    if whole:
        backbone = smaller(space.backbone_workload("fp16"))
        for workload in (backbone, *space.ends("fp16")):
            yield Subject(workload, "snapgen_v" if workload is backbone else ""), "coreml", "fused"


def smaller(workload: Workload) -> Workload:
    """The same at the smaller clip."""
    return replace(workload, frames=FRAMES, height=workload.height // 2, width=workload.width // 2)


def evaluated(jobs: list[Job]) -> dict[str, Any]:
    """Lower and evaluate each, print its line, and give the worst of them."""
    started = time.perf_counter()
    worst = {key: (0.0, "") for key in TARGETS}
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        for index, found in lower_all(jobs, Path(folder), workers=1, timeout_s=3600):
            label = f"{jobs[index][0].key}  {jobs[index][2]}"
            if isinstance(found, WorkloadError):
                failed.append(label)
                print(f"{found.status}: {found}  {label}")
                continue
            errors = found.stats["numeric_error"]
            shown = {key: float("inf") if errors[key] is None else float(errors[key]) for key in ("fp32", "fp16")}
            print(f"{shown['fp32']:9.1e} {shown['fp16']:9.1e} {found.stats['seconds']:8.1f}  {label}")
            for key, error in shown.items():
                worst[f"max_error_{key}"] = max(worst[f"max_error_{key}"], (error, label))
            sys.stdout.flush()
    return {
        **{key: float(f"{error:.3g}") for key, (error, _) in worst.items()},
        **{f"worst_{key[-4:]}": label for key, (_, label) in worst.items()},
        "packages": len(jobs) - len(failed),
        "failed": len(failed),
        "seconds": round(time.perf_counter() - started, 1),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6, 2),
    }


if __name__ == "__main__":
    raise SystemExit(main())
