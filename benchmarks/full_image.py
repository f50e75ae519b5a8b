"""SnapGen's spatial network at its published size: parameters, a phone's roofline, and every distinct block lowered.

The design is the last step of the ladder `snapgen` over the space `snapgen`: what is published of it, the rest is ours.
Milliseconds are an estimate by the ceilings of the phone's chip, set beside the paper's measured 274 ms a step on an
iPhone 16 Pro Max; blocks become Core ML packages, in a child process each.

    python benchmarks/full_image.py [--quick]

`--quick` lowers one block of each kind and leaves the forward pass out. Exit code 1 if the count is not 372.2M or a
block does not lower.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from device_profiler.errors import WorkloadError
from device_profiler.lowering import default_lowerings, lower_all
from device_profiler.subject import Subject
from nas.run.costs import cost_model, load_table, profile_space
from nas.search.ladder import designs, read_ladder
from search_spaces.planning import load_plan
from search_spaces.space import Space

DEVICE = "iphone16_pro_max_roofline"
PUBLISHED_MS, PUBLISHED_M = 274.0, 372.2  # arXiv 2412.09619; the paper says 372M


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    space = Space.load("snapgen")
    design = designs(read_ladder("snapgen"), space)[-1][1]
    parameters = load_plan(space).parameters(design)
    print(f"{parameters:,} parameters (published: 372M)")
    told: dict[str, Any] = {"parameters": parameters}
    with tempfile.TemporaryDirectory() as folder:
        told["roofline_ms"] = roofline_ms(space, design, Path(folder))
        print(
            f"{told['roofline_ms']:.0f} ms a step by the roofline of {DEVICE} (published, measured: {PUBLISHED_MS:.0f})"
        )
        told |= lowered(space, Path(folder), args.quick)
    if not args.quick:
        told["forward_s"] = forward_s(space, design)
        print(f"{told['forward_s']:.1f} s one evaluation in float32 on this machine")
    print(json.dumps(told))
    return 1 if told["failed"] or round(parameters / 1e6, 1) != PUBLISHED_M else 0


def roofline_ms(space: Space, design: Any, folder: Path) -> float:
    """The sum of the estimated rows of a design."""
    from device_profiler.device import Device

    profile_space(space.name, DEVICE, folder)
    costs = cost_model(space, load_table(Device.load(DEVICE), folder))
    return float(costs.cost(np.stack([costs.encode(design.labels())])).latency_ms[0])


def lowered(space: Space, folder: Path, quick: bool) -> dict[str, Any]:
    """Every distinct block as a package: how many, how many failed, operations and fused attentions."""
    blocks = [w for w in space.workloads("fp16") if w.is_block]
    if quick:
        smallest = sorted(blocks, key=lambda w: w.channels * w.height * w.width)
        blocks = list({w.block: w for w in reversed(smallest)}.values())
    jobs = [(Subject(w, ""), "coreml", default_lowerings("coreml", w)[0]) for w in blocks]
    failed, operations, attentions = [], 0, 0
    for index, found in lower_all(jobs, folder / "packages", workers=1, timeout_s=900, check=False):
        key = jobs[index][0].key
        if isinstance(found, WorkloadError):
            failed.append(key)
            print(f"{found.status}: {found}  {key}", flush=True)
            continue
        operations += found.stats["operations"]
        attentions += found.stats["attention_ops"]
        stats = found.stats
        told = f"{stats['seconds']:6.1f} s {stats['operations']:4d} ops {stats['attention_ops']:2d} fused"
        print(f"{told}  {key}", flush=True)
    print(f"{len(jobs) - len(failed)} of {len(jobs)} distinct blocks lower")
    return {"blocks": len(jobs), "failed": len(failed), "operations": operations, "fused": attentions}


def forward_s(space: Space, design: Any) -> float:
    """Seconds of one evaluation at the deployment clip with random weights."""
    import torch

    from search_spaces.network import VideoNetwork

    torch.manual_seed(0)
    network = VideoNetwork(space, design).eval()
    frames, channels, height, width = space.latent_shape()
    x = torch.randn(frames, channels, height, width)
    context = torch.randn(1, space.text.tokens, space.text.dim)
    with torch.no_grad():
        started = time.perf_counter()
        out = network(x, torch.tensor([500.0]), context, frames)
    assert out.shape == x.shape and bool(out.isfinite().all())
    return time.perf_counter() - started


if __name__ == "__main__":
    raise SystemExit(main())
