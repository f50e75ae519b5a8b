"""One step with separate, unified, spatial or temporal heads: are frames and motion both kept? Moving shapes.

SF-V (arXiv 2406.04324, table 3) says that a spatial and a temporal head together do better than either alone: spatial
heads alone freeze the clip, temporal heads alone lose the frames. Here a small text-to-video model is trained from
scratch on scenes of up to two objects, eight frames of 24x24 pixels; from it, with equal numbers of further steps, a
model of one step for every kind of head, and one of four. Each is judged by the Frechet distance of single frames and
of frame differences, apart; the claim was seen if `separate` is below spatial and temporal heads alone in the sum of
both, each divided by that of the untouched model in one step, by more than twice the standard error over seeds.

Every part of every seed is kept in --work and not made again. --quick runs every branch with next to no training: its
numbers say nothing. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from four_steps import AFTER, BASE, DATA, FEW, GUIDANCE, Judge, cached, fresh_model, tuned

from nas.model.pipeline import load_pipeline
from nas.recipes.config import MotionConfig, known_settings

KINDS = ("separate", "unified", "spatial", "temporal")
PARTS = ("frechet_frames", "frechet_differences")
SCENE = DATA.model_copy(update={"max_objects": 2, "radius": (0.16, 0.24)})
FIRST = SCENE.model_copy(update={"boundary": "inside"})
NAME = "one_step"
UNMEASURED = MotionConfig(prompts=0)  # judged here, with more prompts


def run_seed(work: Path, seed: int, judge: Judge, quick: bool) -> dict[str, dict[str, Any]]:
    """Results of one seed by name."""
    folder = work / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    short: dict[str, Any] = {"steps": 2, "clips": 2, "images": 2, "ramp_steps": 1} if quick else {}
    clips = 8 if quick else 180

    def settings(data: Any, **told: Any) -> Any:
        return known_settings()(seed=seed, data=data, motion=UNMEASURED, **told)

    start = fresh_model(folder / "random", SCENE, seed, NAME)
    first = tuned(start, "joint", settings(FIRST, joint=BASE.model_copy(update=short)), folder / "first")
    base = tuned(first, "joint", settings(SCENE, joint=AFTER.model_copy(update=short)), folder / "base")
    rows: dict[str, dict[str, Any]] = {}

    def row(name: str, model: Path, **how: Any) -> None:
        path = folder / f"{name.replace(' ', '-').replace(',', '')}.json"
        rows[name] = found = cached(path, lambda: judge(load_pipeline(model), objects=2, clips=clips, **how))
        print(
            f"  {name:28} frames {found['frechet_frames']:.5f}  differences {found['frechet_differences']:.5f}  "
            f"accuracy {found['accuracy']:.3f}  motion {found['motion']:.4f}  {found['seconds']:.4f} s a clip",
            flush=True,
        )

    row("25 steps, guidance", base, steps=2 if quick else 25, guidance=GUIDANCE)
    row("1 step, untouched", base, steps=1, guidance=1.0)
    few = FEW.model_copy(update={**short, "head_warmup": 0} if quick else {})
    for kind in KINDS:
        one = few.model_copy(update={"levels": (1.0,), "heads": kind, "renoise": False})
        row(f"1 step, {kind}", tuned(base, "adversarial", settings(SCENE, adversarial=one), folder / kind))
    four = few.model_copy(update={"heads": "separate"})
    row("4 steps, separate", tuned(base, "adversarial", settings(SCENE, adversarial=four), folder / "four"))
    return rows


def verdict(found: dict[int, dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Means over seeds, and for every other kind how much higher its sum is than that of ``separate``."""
    names = list(next(iter(found.values())))
    told: dict[str, Any] = {"seeds": len(found)}
    for name in names:
        key = name.replace(" ", "_").replace(",", "")
        told |= {f"{part}_{key}": float(np.mean([rows[name][part] for rows in found.values()])) for part in PARTS}
        told[f"motion_{key}"] = float(np.mean([rows[name]["motion"] for rows in found.values()]))
        told[f"seconds_{key}"] = float(np.mean([rows[name]["seconds"] for rows in found.values()]))

    def total(rows: dict[str, dict[str, Any]], kind: str) -> float:
        return sum(rows[f"1 step, {kind}"][part] / rows["1 step, untouched"][part] for part in PARTS)

    seen = []
    for kind in KINDS[1:]:
        gaps = np.array([total(rows, kind) - total(rows, "separate") for rows in found.values()])
        error = float(gaps.std(ddof=1) / np.sqrt(len(gaps))) if len(gaps) > 1 else float("inf")
        told[f"above_separate_{kind}"] = [float(gaps.mean()), error if np.isfinite(error) else None]
        seen.append(bool(gaps.mean() > 2 * error))
    told["claim_seen"] = all(seen[1:])  # SF-V compares with spatial and temporal heads alone
    return told


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/one_step"))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    work = args.work / "quick" if args.quick else args.work
    work.mkdir(parents=True, exist_ok=True)
    judge = Judge(work, SCENE, NAME, 2) if args.quick else Judge(work, SCENE, NAME)
    found = {}
    for seed in args.seeds[:2] if args.quick else args.seeds:
        print(f"seed {seed}", flush=True)
        found[seed] = run_seed(work, seed, judge, args.quick)
    told = verdict(found)
    print(f"the claim was {'seen' if told['claim_seen'] else 'not seen'}{', untrained' if args.quick else ''}")
    print(json.dumps({"quick": args.quick, **told}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
