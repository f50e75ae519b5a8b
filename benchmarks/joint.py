"""Do images help a video model? Joint training against videos alone at equal steps, prompts of one and two objects.

Both start from the same random weights and see the same videos in the same order, as many steps; the joint one sees
single frames beside them (SnapGen-V says of its image data that it helps prompts of several objects most). The scene:
one or two objects of two kinds, three colours and two directions, four frames of 12x12 pixels. 25 steps with guidance,
read by the classifier that is trained here. Twice: with ever new videos, where images show nothing that the videos do
not, and with few videos (--different-videos) beside ever new images, as captioned videos are scarcer than images.

Every part of every seed is kept in --work and not made again. The last line is one JSON object; exit code 1 when, with
few videos, joint training is not ahead on prompts of two objects by more than the standard error over seeds (of one
seed: over prompts).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from four_steps import BASE, DATA, GUIDANCE, Judge, cached, fresh_model, tuned

from nas.config import DataConfig
from nas.evaluate.classifier import chance
from nas.model.pipeline import load_pipeline
from nas.recipes.config import known_settings

TWO = DATA.model_copy(
    update={"max_objects": 2, "kinds": ("square", "cross"), "directions": ("left", "right"), "radius": (0.2, 0.26)}
)
IMAGES = {"joint": {"images": 24, "image_share": 0.3}, "videos only": {"images": 0}}
CLIPS = 216


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/joint"))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--videos", nargs="*", choices=("endless", "few"), default=["endless", "few"])
    parser.add_argument("--different-videos", type=int, default=150, help="how many the few are")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    judge = Judge(args.work, TWO)
    print(f"classifier right on {judge.held_out['accuracy']:.3f} of held-out real clips")
    result: dict[str, Any] = {
        "seeds": len(args.seeds),
        "steps": args.steps,
        "different_videos": args.different_videos,
        **{f"chance_{objects}": round(chance(judge.cast, objects), 5) for objects in (1, 2)},
    }
    for videos in args.videos:
        count = args.different_videos if videos == "few" else 0
        data = TWO.model_copy(update={"different_videos": count})
        rows = [run_seed(args.work, seed, judge, data, args.steps) for seed in args.seeds]
        for objects in (1, 2):
            both = {name: np.asarray([row[name, objects]["accuracy"] for row in rows]) for name in IMAGES}
            gaps = both["joint"] - both["videos only"]
            if len(gaps) > 1:
                error = float(gaps.std(ddof=1) / np.sqrt(len(gaps)))
            else:
                error = float(np.sqrt(sum(float(p[0] * (1 - p[0])) / CLIPS for p in both.values())))
            result |= {
                f"{videos}_{objects}_joint": round(float(both["joint"].mean()), 4),
                f"{videos}_{objects}_videos_only": round(float(both["videos only"].mean()), 4),
                f"{videos}_{objects}_gap": [round(float(gaps.mean()), 4), round(error, 4)],
            }
    print(json.dumps(result))
    gap, error = result.get("few_2_gap", (0.0, 0.0))
    return 0 if gap > error else 1


def run_seed(work: Path, seed: int, judge: Judge, data: DataConfig, steps: int) -> dict[tuple[str, int], Any]:
    """What the judge says of both trainings' samples, by (training, objects)."""
    folder = work / f"seed-{seed}"
    folder.mkdir(exist_ok=True)
    random = fresh_model(folder / "random", TWO, seed)
    few = f"-{data.different_videos}" if data.different_videos else ""
    found: dict[tuple[str, int], Any] = {}
    for name, images in IMAGES.items():
        base = BASE.model_copy(update={"steps": steps, "clips": 24, **images})
        place = folder / f"{name.replace(' ', '-')}{few}"
        model = tuned(random, "joint", known_settings()(seed=seed, data=data, joint=base), place)
        for objects in (1, 2):
            found[name, objects] = row = cached(
                folder / f"{place.name}-{objects}.json",
                lambda model=model, objects=objects: judge(
                    load_pipeline(model), objects, CLIPS, steps=25, guidance=GUIDANCE
                ),
            )
            print(
                f"  seed {seed}, {data.different_videos or 'endless'} videos, {name:12} {objects} "
                f"object{'s' * (objects > 1):1} accuracy {row['accuracy']:.3f} (chance "
                f"{chance(judge.cast, objects):.4f}; kind {row['kind']:.3f}, colour {row['colour']:.3f}, direction "
                f"{row['direction']:.3f})  Frechet {row['frechet']:.3f}  flicker {row['flicker']:.4f}",
                flush=True,
            )
    return found


if __name__ == "__main__":
    sys.exit(main())
