"""Saved packages evaluated on this machine: how far each is from its module, in float32 and in float16 arithmetic.

``tiny``: every workload in every lowering and form, its ends, and a whole network of one layer a position.
``snapgen_v``: each variant at each of its three widths, at a smaller clip (8 frames, half the sides), since this is no
phone. ``snapgen_v_whole``: its backbone at that clip, its text encoder (CLIP-L), and one tile of its decoder.
``video``: a ``tiny`` model with weights drawn at random, sampled from its folder and from its packages with one seed.
``coreai``: that model's network as Core AI's file, executed by Core AI's runtime (extra ``coreai``).

Errors are the largest difference relative to the largest output. Lowering and evaluation run in one child process,
whose peak memory is ``peak_gb``; nothing is timed but the whole. Exit code 1 over a target.

    python benchmarks/packages.py [--quick] [--stored] [--only tiny,video]

A whole run keeps what each part found in ``benchmarks/data/packages.json`` as it ends; ``--stored`` prints that.
"""

from __future__ import annotations

import argparse
import datetime
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from device_profiler import host
from device_profiler.errors import WorkloadError
from device_profiler.lowering import coreai, default_lowerings, lower_all
from device_profiler.subject import Subject
from search_spaces.arrangement import Arrangement
from search_spaces.space import Space
from search_spaces.workload import Workload

DATA = Path(__file__).with_name("data") / "packages.json"
TARGETS = {
    **{"max_error_fp32": 1e-3, "max_error_fp16": 5e-3, "peak_gb": 12.0, "failed": 0},
    **{"coreai_error_fp32": 1e-4, "coreai_error_fp16": 5e-3},
}
LEAST_PSNR_DB = 40.0
FRAMES = 8  # of the smaller clip
PROMPTS = ("a red circle moving left", "a blue square moving up")
Job = tuple[Subject, str, str]
Told = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="training clip, one width, no whole parts, nothing kept")
    parser.add_argument("--stored", action="store_true", help="evaluate nothing: print what is kept")
    parser.add_argument("--only", default=",".join(PARTS), help="of " + ", ".join(PARTS))
    args = parser.parse_args()
    kept: Told = json.loads(DATA.read_text()) if DATA.is_file() and not args.quick else {}
    for name in args.only.split(",") if not args.stored else ():
        if args.quick and name == "snapgen_v_whole":
            continue
        print(f"{name}\n{'fp32':>9} {'fp16':>9} {'seconds':>8}  package")
        kept[name] = {**PARTS[name](args.quick), **about()}
        if not args.quick:
            DATA.write_text(json.dumps(kept, indent=1) + "\n")
    wrong = {name: missed(told) for name, told in kept.items()}
    for name, told in kept.items():
        print(f"{name}: {told}" + (f"; MISSED: {', '.join(wrong[name])}" if wrong[name] else ""))
    for name in PARTS if args.stored else ():
        if name not in kept:
            print(f"{name}: nothing kept; python benchmarks/packages.py --only {name}")
    flat = {key: told[key] for told in kept.values() for key in told if key == "psnr_db" or key.startswith("coreai_")}
    print(json.dumps({"quick": args.quick, **kept, **flat}))
    return 1 if any(wrong.values()) else 0


def missed(told: Told) -> list[str]:
    """The figures of a part that are over their target."""
    over = [key for key, target in TARGETS.items() if key in told and not told[key] <= target]
    return over + ["psnr_db"] * ("psnr_db" in told and not told["psnr_db"] > LEAST_PSNR_DB)


def about() -> Told:
    """On what, when and at which commit a figure was found."""
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=DATA.parent)
    load = f"{host.load_average():.1f}"
    return {"commit": done.stdout.strip(), "date": f"{datetime.date.today()}", "chip": host.chip(), "load": load}


def chosen(space: Space) -> Arrangement:
    """One layer a position, drawn with a fixed seed."""
    rng = np.random.default_rng(0)
    return space.arrange({p.name: [str(rng.choice([v.label for v in p.variants]))] for p in space.positions})


def tiny(quick: bool) -> Iterator[Job]:
    """Everything that ``tiny`` measures, in every lowering, and one whole network."""
    space = Space.load("tiny")
    clip = "training" if quick else "deployment"
    for workload in (*space.workloads("fp16", clip), *space.ends("fp16", clip)):
        for lowering in default_lowerings("coreml", workload):
            yield Subject(workload, "tiny" if workload.block == "backbone" else ""), "coreml", lowering
    arrangement = chosen(space)
    for lowering in ("fused", "decomposed"):
        yield Subject(space.network_workload(arrangement, "fp16", clip), "tiny", arrangement), "coreml", lowering


def snapgen_v(quick: bool) -> Iterator[Job]:
    """Each variant at each width, at the smaller clip."""
    space = Space.load("snapgen_v")
    seen = set()
    for position in space.positions:
        for variant in position.variants:
            workload = smaller(space.workload(position, variant, "fp16"))
            if workload.key not in seen and not (quick and workload.channels > 320):
                seen.add(workload.key)
                yield Subject(workload), "coreml", default_lowerings("coreml", workload)[0]


def snapgen_v_whole(quick: bool) -> Iterator[Job]:
    """The backbone at the smaller clip, the text encoder, one tile of the decoder."""
    space = Space.load("snapgen_v")
    backbone = smaller(space.backbone_workload("fp16"))
    for workload in (backbone, *space.ends("fp16")):
        lowering = default_lowerings("coreml", workload)[0]
        yield Subject(workload, "snapgen_v" if workload is backbone else ""), "coreml", lowering


def smaller(workload: Workload) -> Workload:
    """The same at the smaller clip."""
    return replace(workload, frames=FRAMES, height=workload.height // 2, width=workload.width // 2)


def evaluated(jobs: list[Job]) -> dict[str, Any]:
    """Lower and evaluate each, print its line, and give the worst of them."""
    started = time.perf_counter()
    worst = {key: (0.0, "") for key in ("max_error_fp32", "max_error_fp16")}
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


def save_model(folder: Path) -> Path:
    """A model folder of ``tiny`` with the chosen arrangement and random weights."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler

    from nas.model.network import VideoUNet
    from nas.model.pipeline import TextToVideoPipeline
    from nas.pretrained.text import TextEncoder
    from nas.supernet.supernet import Supernet

    torch.manual_seed(0)
    space = Space.load("tiny")
    arrangement = chosen(space)
    unet = VideoUNet.of(space, Supernet(space).eval().extract(arrangement), arrangement)
    text = TextEncoder.small(space, PROMPTS).eval()
    TextToVideoPipeline(unet, text.model, text.tokenizer, FlowMatchEulerDiscreteScheduler()).save_pretrained(folder)
    return folder


def video(quick: bool) -> Told:
    """The same seeds sampled from the model's folder and from its packages; a network in float16 is off by so much."""
    import torch

    from nas.export import export_model
    from nas.model.packages import Packages
    from nas.model.sample import Model

    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        folder, packages = save_model(Path(place) / "model"), Path(place) / "coreml"
        check = export_model(folder, packages, "training" if quick else "deployment")["check"]["main"]
        made = []
        for opened in (Model(folder), Packages(packages)):
            shape = Packages(packages).shape(None, None, None)[0]
            generators = [torch.Generator().manual_seed(place) for place in range(len(PROMPTS))]
            steps = 2 if quick else 4
            made.append(opened.sample(PROMPTS, shape, generators, steps, None, lambda done, total: None).frames)
    apart = [float(-10 * torch.log10((one - other).square().mean())) for one, other in zip(*made, strict=True)]
    return {
        **{f"network_error_{key}": check[f"error_{key}"] for key in ("fp32", "fp16")},
        "psnr_db": round(min(apart), 2),
        "seconds": round(time.perf_counter() - started, 1),
    }


def in_coreai(quick: bool) -> Told:
    """The network as Core AI's file, in float32 and float16, executed by its runtime."""
    from nas.export import export_model

    if not coreai.available():
        return {"left_out": f"coreai-torch is not installed: {coreai.INSTALL}"}
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        folder = save_model(Path(place) / "model")
        clip = "training" if quick else "deployment"
        facts = export_model(folder, Path(place) / "coreai", clip, parts=["network"], format="coreai")
    errors = {f"coreai_{name}": value for name, value in facts["check"]["main"].items()}
    return {**errors, "seconds": round(time.perf_counter() - started, 1)}


PARTS: dict[str, Callable[[bool], Told]] = {
    "tiny": lambda quick: evaluated(list(tiny(quick))),
    "video": video,
    "coreai": in_coreai,
    "snapgen_v": lambda quick: evaluated(list(snapgen_v(quick))),
    "snapgen_v_whole": lambda quick: evaluated(list(snapgen_v_whole(quick))),
}


if __name__ == "__main__":
    raise SystemExit(main())
