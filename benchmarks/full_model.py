"""The full model: `snapgen_v` built at about 0.6 billion parameters, evaluated once, exported to Core ML.

The arrangement is the first random one within 10 million of that which holds all six blocks. Weights are random; a
small CLIP stands in for the text encoder, which is not exported. Each stage is a process of its own, so that peak
memory is that stage's. Then what training the supernet takes on one H100: an estimate, counted with shapes alone; on a
CUDA device a step of the supernet is run beside it, and its seconds, memory and share of the peak are measured. Prints
a table and one JSON line; exit code 1 if a stage fails, parameters are outside of 0.55 to 0.65 billion, or a stage's
peak is over 12 GB.

    python benchmarks/full_model.py [--frames 8] [--height 256] [--width 256] [--keep FOLDER] [--only training]
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from device_profiler import host

SPACE, DEVICE = "snapgen_v", "iphone16_pro_max_roofline"
TRAINED_ON = "h100_roofline"
STEPS = 20_000  # of the training that is estimated
MEASURED = 5  # steps of the supernet, after one that warms up
LEAST, MOST, WANTED, NEAR = 0.55e9, 0.65e9, 0.6e9, 0.01e9
PEAK_GB = 12.0
STAGES = ("build", "forward", "export", "training")


def choose() -> Any:
    """The first random arrangement of about 0.6 billion parameters with all six blocks in it; and its costs."""
    import numpy as np

    from latency_tables.cost import CostModel
    from latency_tables.lookup import find_table
    from latency_tables.table import Table
    from search_spaces.planning import load_plan
    from search_spaces.space import Space

    space, rng = Space.load(SPACE), np.random.default_rng(0)
    plan = load_plan(space)
    blocks = {variant.block for position in space.positions for variant in position.variants}
    while True:
        arrangement = space.sample(rng)
        found = {variant.block for _, variants in arrangement.layers for variant in variants}
        if found == blocks and abs(plan.parameters(arrangement) - WANTED) < NEAR:
            break
    model = CostModel(plan, Table.load(find_table(DEVICE)))
    choice = [space.options(name).index(arrangement.at(name)) for name in model.positions]
    return arrangement, float(model.cost(np.array([choice])).latency_ms[0]), plan.parameters(arrangement)


def small_text(folder: Path) -> str:
    """A CLIP text model of the space's width and length, one layer deep."""
    from transformers import CLIPTextConfig, CLIPTextModel

    from nas.pretrained.text import word_tokenizer

    tokenizer = word_tokenizer(["a cat runs"], 77)
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = CLIPTextConfig(vocab_size=len(tokenizer), hidden_size=768, num_hidden_layers=1, **ends)
    CLIPTextModel(config).save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return str(folder)


def small_autoencoder(folder: Path) -> str:
    """A narrow Allegro: its factors are the space's, its cost is not."""
    from diffusers import AutoencoderKLAllegro

    AutoencoderKLAllegro(block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4).save_pretrained(folder)
    return str(folder)


def build(folder: Path) -> dict[str, Any]:
    import torch

    from nas.model.build import build_anew
    from nas.model.pipeline import SHARD, load_pipeline

    arrangement, latency_ms, expected = choose()
    arrangement.save(folder / "arrangement.yaml")
    text, vae = small_text(folder / "text"), small_autoencoder(folder / "vae")
    told = build_anew(SPACE, folder / "arrangement.yaml", folder / "model", text=text, autoencoder=vae)
    unet = load_pipeline(folder / "model").unet
    with torch.no_grad():
        for parameter in unet.parameters():  # layers start as the identity, by zeros that a converter would store once
            if not parameter.any():
                parameter.normal_(std=0.02)
    shutil.rmtree(folder / "model" / "unet")
    unet.save_pretrained(folder / "model" / "unet", max_shard_size=SHARD)
    size = sum(path.stat().st_size for path in (folder / "model" / "unet").rglob("*") if path.is_file())
    return {
        "parameters": told["parameters"],
        "parameters_planned": expected,
        "layers": {name: [v.label for v in variants] for name, variants in arrangement.layers if variants},
        "latency_ms_estimated": round(latency_ms, 1),
        "model_gb": round(size / 1e9, 2),
    }


def forward(folder: Path, shape: tuple[int, int, int]) -> dict[str, Any]:
    import torch

    from nas.model.pipeline import load_pipeline
    from search_spaces.space import latent_shape

    unet = load_pipeline(folder / "model").unet.eval()
    frames, height, width = latent_shape(unet.space, *shape)
    video = torch.randn(1, unet.space.latent_channels, frames, height, width)
    context = torch.randn(1, unet.space.text.tokens, unet.space.text.dim)
    with torch.no_grad():
        started = time.perf_counter()
        out = unet(video, 500.0, context).sample
    return {"seconds_forward": round(time.perf_counter() - started, 1), "finite": bool(out.isfinite().all())}


def export(folder: Path, shape: tuple[int, int, int]) -> dict[str, Any]:
    from nas.export import export_model

    facts = export_model(folder / "model", folder / "coreml", shapes=[shape], parts=["network"], tell=print_note)
    package = folder / "coreml" / "unet.mlpackage"
    size = sum(path.stat().st_size for path in package.rglob("*") if path.is_file())
    kept = ("operations", "fused_attention", "max_rank", "peak_host_mb")
    return {**{name: facts[name] for name in kept}, "package_gb": round(size / 1e9, 3), "shape": facts["shapes"][0]}


def training(folder: Path, shape: tuple[int, int, int]) -> dict[str, Any]:
    """What a training of the supernet takes on one H100, estimated; and, on a CUDA device, a step of it measured."""
    import torch

    from nas.config import resolve
    from nas.run.dry import dry_run

    sets = [f"train.steps={STEPS}", "train.device=cuda"]
    told = dry_run(resolve(SPACE, sets=sets), folder, TRAINED_ON)
    print_note(told.render())
    kept = ("parameters", "state_gb", "clip_gb", "fixed_gb", "precision", "clips_at_once", "operations_a_step", "days")
    found: dict[str, Any] = {"estimate": {name: told.to_json()[name] for name in kept}}
    if torch.cuda.is_available():
        found["measured"] = step_on_cuda(told.step.clip_bytes)
    else:
        print_note("no CUDA device here: no step was measured beside the estimate")
    return found


def step_on_cuda(clip_bytes: float) -> dict[str, Any]:
    """Seconds, peak memory and share of the peak of forward and backward along the deepest path, one clip, in bf16."""
    import statistics

    import torch

    from device_profiler.device import Device
    from nas.supernet.supernet import Supernet
    from nas.training.counting import Counting
    from search_spaces.planning import load_plan
    from search_spaces.space import Space

    space, device = Space.load(SPACE), torch.device("cuda")
    supernet = Supernet(space).train().to(device)
    frames, channels, height, width = space.latent_shape("training")
    inputs = {
        "x": torch.randn(frames, channels, height, width, device=device),
        "timestep": torch.full((1,), 500.0, device=device),
        "context": torch.randn(1, space.text.tokens, space.text.dim, device=device),
        "frames": frames,
    }
    path = load_plan(space).largest()

    def step() -> float:
        supernet.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        started = time.perf_counter()
        with torch.autocast("cuda", torch.bfloat16):
            out = supernet.predict(inputs, path)
        out.float().square().mean().backward()
        torch.cuda.synchronize()
        return time.perf_counter() - started

    with Counting() as counting:
        step()
        operations = counting.operations
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    seconds = statistics.median(step() for _ in range(MEASURED))
    line = Device.load(TRAINED_ON).roofline
    assert line is not None
    return {
        "device": torch.cuda.get_device_name(),
        "step_s": round(seconds, 3),
        "clip_gb": round((torch.cuda.max_memory_allocated() - before) / 1e9, 2),
        "clip_gb_estimated": round(clip_bytes / 1e9, 2),
        "tflops": round(operations / seconds / 1e12, 1),
        "share_of_h100_peak": round(operations / seconds / 1e12 / line.peak_tflops, 3),
    }


def print_note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def stage(name: str, folder: Path, shape: tuple[int, int, int]) -> dict[str, Any]:
    """Run a stage in a process of its own."""
    started = time.perf_counter()
    words = [sys.executable, __file__, "--stage", name, "--keep", str(folder)]
    words += ["--frames", str(shape[0]), "--height", str(shape[1]), "--width", str(shape[2])]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{name} failed with exit code {done.returncode}")
    told: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    told["seconds"] = round(time.perf_counter() - started, 1)
    print(
        f"{name:<8} {told['seconds']:>7.1f} s {told['peak_gb']:>6.2f} GB at most  "
        + ", ".join(f"{key} {value}" for key, value in told.items() if key not in ("seconds", "peak_gb", "layers")),
        flush=True,
    )
    return told


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=8, help="of the clip that is evaluated and exported, in pixels")
    parser.add_argument("--height", type=int, default=256)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--keep", type=Path, help="folder of the model and package; a temporary one by default")
    parser.add_argument("--only", choices=STAGES, nargs="+", default=list(STAGES), help="of the stages, in this order")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    shape = (args.frames, args.height, args.width)
    if args.stage:
        told = build(args.keep) if args.stage == "build" else globals()[args.stage](args.keep, shape)
        print(json.dumps({**told, "peak_gb": round(host.most_resident_mb() / 1e3, 2)}))
        return 0
    folder = args.keep or Path(tempfile.mkdtemp(prefix="full-model-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        stages = {name: stage(name, folder, shape) for name in args.only}
    finally:
        if args.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    peak = max(told["peak_gb"] for told in stages.values())
    good = peak <= PEAK_GB and stages.get("forward", {}).get("finite", True)
    if "build" in stages:
        good = good and LEAST <= stages["build"]["parameters"] <= MOST
    print(json.dumps({"parameters": stages.get("build", {}).get("parameters"), "peak_gb": peak, **stages}))
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
