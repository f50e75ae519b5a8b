"""AsCAN's rule on this machine: where strings with every C before every T rank among all 256 of a small space.

A staged UNet of four stages and two places each, pictures of 32x32: a supernet over the letters, their costs measured
here, every string of the way down (mirrored by the way up) scored along its path, and the exact front.

    python benchmarks/letters.py [--quick] [--steps N] [--seeds N] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import yaml

from nas.config import resolve
from nas.run.costs import profile_space
from nas.run.job import train_supernet
from nas.run.ladder import rank_letters
from search_spaces.families import family_of
from search_spaces.space import Space

C, T = "FusedMBConv(expansion=4)", "TextTransformer(self_attention=1,head_width=8,kv_heads=0,ratio=4,gated=1)"
CONFIG = {"block_out_channels": [8, 16, 24, 32], "blocks": 2}


def write_space(folder: Path, quick: bool) -> Path:
    """The space of letters; quick, two stages."""
    config = {"block_out_channels": [8, 16], "blocks": 2} if quick else CONFIG
    preset = family_of("tiny_image").presets["tiny_image"]
    layout = family_of("tiny_image").layout({**preset.config, **config})
    letters = {"least": 1, "max_layers": 1, "variants": [C, T]}
    definition = {
        "name": "letters",
        "backbone": {"name": "tiny_image", "config": config},
        "text": {"tokens": 16},
        "clips": {"deployment": {"frames": 1, "height": 32, "width": 32, "fps": 1}},
        "positions": {place.name: letters for place in layout.places if not place.name.endswith("time")},
    }
    path = folder / "letters.yaml"
    path.write_text(yaml.safe_dump(definition, sort_keys=False))
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.out or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        space = write_space(folder, args.quick)
        found = []
        for seed in range(1 if args.quick else args.seeds):
            found.append(
                one_seed(space, folder / f"seed-{seed}", folder / "table", seed, 10 if args.quick else args.steps)
            )
            print(json.dumps({"seed": seed, **found[-1]}), flush=True)
    told = {
        "strings": found[0]["strings"],
        "seeds": len(found),
        "front_sorted_share": statistics.mean(f["front_sorted"] / f["front"] for f in found),
        "sorted_share": found[0]["sorted"] / found[0]["strings"],
        "sorted_beaten_by": [f["sorted_beaten_by"] for f in found],
        "others_beaten_by": [f["others_beaten_by"] for f in found],
    }
    print(json.dumps(told))
    return 0


def one_seed(space: Path, run: Path, table: Path, seed: int, steps: int) -> dict[str, Any]:
    """Train, cost and rank; the table is measured once for all seeds."""
    sets = [
        "data.source=moving_shapes",
        f"seed={seed}",
        f"train.steps={steps}",
        "train.warmup_steps=0",
        "train.spatial_rate=1.0",
        "train.clips=8",
        "train.images=0",
        "train.image_share=0.0",
        "train.paths=fair",
        "train.validate_every=0",
        "quality.clips=64",
        "train.trackers=[]",
    ]
    config = resolve(str(space), "host_cpu", None, sets)
    profile_space(str(space), "host_cpu", table)
    train_supernet(config, run)
    if not (run / "table").exists():
        (run / "table").symlink_to(table.resolve())
    assert Space.load(space).size() > 1
    finding = rank_letters(run)
    print(finding.render(), flush=True)
    return finding.to_json()


if __name__ == "__main__":
    raise SystemExit(main())
