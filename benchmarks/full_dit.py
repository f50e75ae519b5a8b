"""The full transformer: `mobile_dit` uncut, and cut to the published 20 blocks, 20 heads and inner width of 6144.

Parameters of both, one evaluation of each on a small clip, every distinct block lowered to Core ML and evaluated, and
a whole video on the phone's roofline beside what the paper tells (arXiv 2507.13343: 49 frames at 10 to 15 a second, so
3.3 to 4.9 s). Weights are random. Each stage is a process of its own, so that peak memory is that stage's. Prints a
table and one JSON line; exit code 1 if a stage fails, parameters are not the published ones, or a package is off.

    python benchmarks/full_dit.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from device_profiler import host

SPACE, DEVICE, STEPS = "mobile_dit", "iphone16_pro_max_roofline", 4
BLOCKS, HEADS, WIDTH = 20, 20, 6144
PUBLISHED = {"uncut": (1.85e9, 2.05e9), "cut": (0.85e9, 1.0e9)}
PAPER_SECONDS = (49 / 15, 49 / 10)
WORST = 0.02  # of a package's answer, in float16


def networks() -> dict[str, Any]:
    """The uncut arrangement and the cut one."""
    from search_spaces.space import Space
    from search_spaces.variant import Variant

    space = Space.load(SPACE)
    narrow = Variant.of("LTXBlock", heads=HEADS, ffn=WIDTH, size=64)
    return {"uncut": space.baseline(), "cut": space.arrange({f"block.{index}": [narrow] for index in range(BLOCKS)})}


def count(args: argparse.Namespace) -> dict[str, Any]:
    """Parameters of the modules themselves, without memory."""
    import torch

    from search_spaces.network import VideoNetwork
    from search_spaces.space import Space

    space, found = Space.load(SPACE), {}
    with torch.device("meta"):
        for name, arrangement in networks().items():
            found[name] = sum(p.numel() for p in VideoNetwork(space, arrangement).parameters())
    return found


def costs(args: argparse.Namespace) -> dict[str, Any]:
    """One evaluation, and a video of four steps without guidance, on the phone's roofline."""
    from device_profiler.device import Device
    from device_profiler.profile import profile
    from latency_tables.cost import CostModel
    from search_spaces.planning import load_plan
    from search_spaces.space import Space

    space, device = Space.load(SPACE), Device.load(DEVICE)
    with tempfile.TemporaryDirectory() as folder:
        table = profile(SPACE, device, Path(folder))
    model = CostModel(load_plan(space), table)
    row = table.get(space.text_encoder_workload(device.precision).key)
    text = (row.latency_ms_median or 0.0) if row else 0.0
    found: dict[str, Any] = {"text_encoder_ms": round(text, 1)}
    for name, arrangement in networks().items():
        cost = model.cost(model.encode(arrangement.labels())[None])
        step = float(cost.latency_ms[0])
        found[name] = {
            "step_ms": round(step, 1),
            "video_s": round((STEPS * step + text) / 1e3, 2),
            "peak_mb": round(float(cost.peak_mb[0]), 1),
        }
    return found


def forward(args: argparse.Namespace) -> dict[str, Any]:
    """One evaluation of 9 frames of 128x128, two latents of 4x4, in float32."""
    import torch

    from search_spaces.network import VideoNetwork
    from search_spaces.space import Space

    space, found = Space.load(SPACE), {}
    for name, arrangement in networks().items():
        if args.quick and name == "uncut":
            continue  # 7.7 GB of weights
        network = VideoNetwork(space, arrangement).eval()
        x, text = torch.randn(2, space.latent_channels, 4, 4), torch.randn(1, space.text.tokens, space.text.dim)
        started = time.perf_counter()
        with torch.no_grad():
            out = network(x, torch.tensor([500.0]), text, 2)
        found[name] = {"seconds": round(time.perf_counter() - started, 1), "finite": bool(out.isfinite().all())}
        del network
    return found


def export(args: argparse.Namespace) -> dict[str, Any]:
    """Every distinct workload as a Core ML package, evaluated operation by operation against torch."""
    from device_profiler.evaluator.check import check_package
    from device_profiler.lowering.coreml import convert
    from search_spaces.network import build_module
    from search_spaces.space import Space

    space = Space.load(SPACE)
    workloads = space.workloads("fp16")
    chosen = (workloads[0], workloads[-1]) if args.quick else workloads
    found: dict[str, Any] = {"packages": 0, "error_fp32": 0.0, "error_fp16": 0.0, "operations_not_finite": 0}
    for workload in chosen:
        module, inputs, names = build_module(workload, space)
        model, _ = convert(module, inputs, names)
        with tempfile.TemporaryDirectory() as folder:
            package = Path(folder) / "block.mlpackage"
            model.save(str(package))
            told = check_package(package, module, inputs, names).told()
        found["packages"] += 1
        for name in ("error_fp32", "error_fp16"):
            found[name] = max(found[name], told[name])
        found["operations_not_finite"] += len(told["not_finite"])
        print(f"{workload.key}: off by {told['error_fp16']:.2g} in float16", file=sys.stderr, flush=True)
    return found


STAGES = {"count": count, "costs": costs, "forward": forward, "export": export}


def stage(name: str, quick: bool) -> dict[str, Any]:
    """Run a stage in a process of its own."""
    started = time.perf_counter()
    words = [sys.executable, __file__, "--stage", name, *(["--quick"] if quick else [])]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{name} failed with exit code {done.returncode}")
    told: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    told["seconds"] = round(time.perf_counter() - started, 1)
    facts = ", ".join(f"{key} {value}" for key, value in told.items() if key not in ("seconds", "peak_gb"))
    print(f"{name:<8} {told['seconds']:>7.1f} s {told['peak_gb']:>6.2f} GB at most  {facts}", flush=True)
    return told


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the cut network alone, and two of the packages")
    parser.add_argument("--stage", choices=tuple(STAGES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stage:
        told = STAGES[args.stage](args)
        print(json.dumps({**told, "peak_gb": round(host.most_resident_mb() / 1e3, 2)}))
        return 0
    found = {name: stage(name, args.quick) for name in STAGES}
    seconds = found["costs"]["cut"]["video_s"]
    least, most = PAPER_SECONDS
    print(
        f"a video of the cut network in {STEPS} steps: {seconds} s by the roofline, decoder left out; the "
        f"paper's: {least:.1f} to {most:.1f} s, all in"
    )
    print(json.dumps(found))
    published = all(least <= found["count"][name] <= most for name, (least, most) in PUBLISHED.items())
    finite = all(told["finite"] for told in found["forward"].values() if isinstance(told, dict))
    sound = found["export"]["error_fp16"] <= WORST and not found["export"]["operations_not_finite"]
    return 0 if published and finite and sound else 1


if __name__ == "__main__":
    raise SystemExit(main())
