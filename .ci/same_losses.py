"""Two commits, one seed: are the losses of every training the same, to the last bit?

Each commit is checked out beside this tree and makes the same short trainings with the same interpreter: the supernet
by sandwich and single paths, alone and in two processes, and both stages of fine-tuning of one built model. A redesign
of training keeps these columns; where it does not, the table says where and by how much. Exit code 1 if any differs.

    python .ci/same_losses.py BEFORE AFTER
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATA = ["--set", "data.source=moving_shapes"]
SMALL = ["clips=4", "images=2", "checkpoint_every=4", "validate_every=4", "sample_every=0", "trackers=[]", "threads=1"]
TRAIN = [*DATA, *(word for key in ["steps=8", "warmup_steps=2", *SMALL] for word in ("--set", f"train.{key}"))]
TUNE = ["steps=5", "clips=4", "images=2", "checkpoint_every=2", "threads=1"]
ARRANGEMENT = """space: tiny
positions:
  down.0.0: [SelfAttention1D(heads=2)]
  down.1.0: [Conv3D(kernel_size=3)]
  up.0.0: []
  up.0.1: []
  up.1.0: []
  up.1.1: []
"""
PARTS = ("loss", "loss_video", "loss_image", "loss_generator", "loss_discriminator")


def nas(tree: Path, *words: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "nas.cli", *words],
        cwd=tree,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{tree.name}: nas {' '.join(words)}\n{done.stderr[-2000:]}")


def losses(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: row[name] for name in (*PARTS, "validation") if row.get(name) is not None} for row in rows]


def trainings(tree: Path, out: Path) -> dict[str, list[dict[str, float]]]:
    """Every training of one commit, by name."""
    found = {}
    for paths in ("sandwich", "uniform"):
        for processes in (1, 2):
            run = out / f"{paths}{processes}"
            more = ["--processes", str(processes)] if processes > 1 else []
            nas(tree, "train", "tiny", "--out", str(run), *TRAIN, "--set", f"train.paths={paths}", *more)
            found[f"train {paths}, {processes} process(es)"] = losses(run / "supernet")
    run = out / "sandwich1"
    (run / "arrangement.yaml").write_text(ARRANGEMENT)
    nas(tree, "build", str(run))
    for stage in ("joint", "adversarial"):
        for processes in (1, 2):
            tuned = out / f"{stage}{processes}"
            more = ["--processes", str(processes)] if processes > 1 else []
            sets = [word for key in TUNE for word in ("--set", f"{stage}.{key}")]
            nas(tree, "finetune", str(run / "model"), "--stage", stage, "--out", str(tuned), *DATA, *sets, *more)
            found[f"finetune {stage}, {processes} process(es)"] = losses(tuned / "finetune")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before")
    parser.add_argument("after")
    args = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        for side in ("before", "after"):
            tree = Path(scratch) / side
            commit = getattr(args, side)
            subprocess.run(["git", "worktree", "add", "--detach", "--quiet", str(tree), commit], cwd=ROOT, check=True)
            try:
                found[side] = trainings(tree, Path(scratch) / f"{side}-runs")
            finally:
                subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT, check=True)
    different = {}
    for name, before in found["before"].items():
        after = found["after"][name]
        gaps = [abs(a[key] - b[key]) for a, b in zip(before, after, strict=True) for key in a if key in b]
        different[name] = max(gaps, default=float("nan"))
        print(f"{name:36}{len(before):4} steps  largest difference {different[name]:g}")
    print(json.dumps({"trainings": len(different), "largest_difference": max(different.values())}))
    return int(any(gap != 0 for gap in different.values()))


if __name__ == "__main__":
    raise SystemExit(main())
