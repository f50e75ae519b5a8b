"""Does pruning keep what was learned? A pruned UNet after recovery, against the same network trained from scratch.

A UNet laid out as Stable Diffusion 1.5's (four stages of two layers, mid block; 16x16 pixels of moving_shapes) is
trained, then cut by `nas prune` to the backbone of a three-stage space. At equal steps follow: recovery by distillation
and data, training of the copied weights on data alone, distillation into new weights, and training new weights on data
alone. Validation loss is the mean squared error of the predicted noise on stills that none has seen, at fixed noise.
Prints a table and one JSON line; exit code 1 if recovery is not better than training from scratch.

    python benchmarks/prune.py [--teacher-steps 3000] [--steps 600] [--seeds 2] [--threads 1]
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from nas.data import open_data
from nas.data.clip import images_of
from nas.pretrained.given import load_given
from nas.pretrained.text import TextEncoder
from nas.prune import prune_network
from nas.prune.config import PruneSettings
from nas.prune.images import Images
from nas.prune.recover import Recover
from nas.tasks.noise import Diffusion
from nas.training.loop import Loop
from search_spaces.families import build_backbone
from search_spaces.families.unet import FAMILY, cuts
from search_spaces.space import Space

WIDE = {
    "sample_size": 16,
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "block_out_channels": [16, 32, 64, 64],
    "layers_per_block": 2,
    "cross_attention_dim": 32,
    "attention_head_dim": 4,
    "norm_num_groups": 8,
}
SPACE = {
    "name": "three_stages",
    "backbone": {
        "name": "tiny",
        "config": {
            "block_out_channels": [16, 32, 64],
            "down_block_types": ["CrossAttnDownBlock2D"] * 3,
            "up_block_types": ["CrossAttnUpBlock2D"] * 3,
        },
    },
    "text": {"tokens": 16},
    "clips": {"deployment": {"frames": 4, "height": 16, "width": 16, "fps": 8}},
    "positions": {"down.0.0": {"max_layers": 1, "variants": ["Conv1D(kernel_size=3)"]}},
}
RATE = 2e-3


def settings(steps: int, threads: int, seed: int, **more: Any) -> PruneSettings:
    prune = {"steps": steps, "learning_rate": RATE, "images": 16, "calibration": 64, "batch": 16, "threads": threads}
    prune |= {"checkpoint_every": max(1, steps), "prediction": "epsilon"}
    return PruneSettings.model_validate({"seed": seed, "data": {"source": "moving_shapes"}, "prune": {**prune, **more}})


def trained(whole: Any, unet: Any, told: PruneSettings, images: Images, folder: Path) -> Any:
    """The UNet after the steps that ``told`` asks for, averaged weights."""
    loop = Loop(Recover(whole, unet, images, told.prune, cuts), folder, {}, told.seed, print)
    loop.run()
    loop.load_average()
    return unet.eval()


@torch.no_grad()
def validation_loss(unet: Any, images: Images, space: Space, told: PruneSettings) -> float:
    """Mean squared error of the predicted noise on unseen stills; the same noise for everybody."""
    data = images_of(open_data(told.data, space.clip("training"), "validation", 0), 0)
    diffusion, generator = Diffusion("epsilon"), torch.Generator().manual_seed(11)
    items = [data[i] for i in range(min(64, len(data)))]
    clean, text = torch.stack([item["video"][0] for item in items]), images.text([item["caption"] for item in items])
    total, rounds = 0.0, 4
    for _ in range(rounds):
        noise = torch.randn(clean.shape, generator=generator)
        level = diffusion.levels(len(clean), 0.0, 1.0, generator)
        out = unet(diffusion.noised(clean, noise, level), diffusion.timestep(level), text).sample
        total += float((out - noise).square().mean())
    return total / rounds


def one_seed(folder: Path, seed: int, args: argparse.Namespace) -> dict[str, float]:
    from diffusers import UNet2DConditionModel

    (folder / "space.yaml").write_text(yaml.safe_dump(SPACE))
    space = Space.load(folder / "space.yaml")
    torch.manual_seed(seed)
    whole: Any = UNet2DConditionModel(**WIDE)  # type: ignore[arg-type]
    source = folder / "source"
    whole.save_pretrained(str(source / "unet"))
    data = open_data(settings(1, 1, seed).data, space.clip("training"), "train", seed)
    text = TextEncoder.small(space, data.captions)
    text.model.save_pretrained(str(source / "text_encoder"))  # type: ignore[operator, union-attr]
    text.tokenizer.save_pretrained(str(source / "tokenizer"))
    alone = settings(args.teacher_steps, args.threads, seed, distillation=0.0)
    images = Images(space, alone, str(source), None)
    whole = trained(copy.deepcopy(whole).requires_grad_(False), whole, alone, images, folder / "teacher")
    whole.save_pretrained(str(source / "unet"))
    cut = settings(0, args.threads, seed)
    told = prune_network(str(source), folder / "space.yaml", folder / "cut", cut)
    whole.requires_grad_(False)
    found = {
        "whole": validation_loss(whole, images, space, cut),
        "parameters_share": told["parameters"] / told["parameters_before"],
    }
    for name, inherits, distillation in (
        ("recovered", True, 0.8),
        ("copied, data alone", True, 0.0),
        ("new, distilled", False, 0.8),
        ("new, data alone", False, 0.0),
    ):
        torch.manual_seed(seed + 1)
        unet: Any = load_given(FAMILY, told["unet"]) if inherits else build_backbone(space.backbone)
        asked = settings(args.steps, args.threads, seed, distillation=distillation)
        started = time.perf_counter()
        trained(whole, unet, asked, images, folder / name.replace(" ", "_"))
        found[name] = validation_loss(unet, images, space, asked)
        print(f"  seed {seed}: {name:<20} {found[name]:.4f} in {time.perf_counter() - started:.0f} s", flush=True)
    found["cut, untrained"] = validation_loss(load_given(FAMILY, told["unet"]).eval(), images, space, cut)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher-steps", type=int, default=3000)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    seeds = []
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as folder:
            seeds.append(one_seed(Path(folder), seed, args))
    names = [name for name in seeds[0] if name != "parameters_share"]
    print(f"{'network':<22} {'validation loss, by seed'}")
    for name in names:
        print(f"{name:<22} " + "  ".join(f"{found[name]:.4f}" for found in seeds))
    mean = {name: round(sum(found[name] for found in seeds) / len(seeds), 4) for name in seeds[0]}
    print(json.dumps({**mean, "steps": args.steps, "teacher_steps": args.teacher_steps, "seeds": args.seeds}))
    return 0 if all(found["recovered"] < found["new, data alone"] for found in seeds) else 1


if __name__ == "__main__":
    raise SystemExit(main())
