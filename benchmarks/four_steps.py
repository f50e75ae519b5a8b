"""Do four steps after adversarial fine-tuning keep what 25 steps with guidance do? Moving shapes, prompt accuracy.

A small text-to-video model is trained from scratch (stage joint), until 25 steps with guidance show what is asked for.
From it, with equal numbers of further steps: the same generator at the same four noise levels with the reconstruction
loss alone (`plain`), and against the discriminator (`unified`; for the ablation `spatial` and `temporal` heads alone,
and `r1`, whose discriminator's slope at real clips is held down with `--r1-weight`).
The scene is simpler than moving_shapes by default: one object of three kinds, three colours and four directions, drawn
large, four frames of 12x12 pixels. Training begins with objects whose way lies inside the frame, where the direction
shows in every frame by itself, and goes on with the scene that is judged, where objects wrap around. A classifier
trained here reads the samples.

Every part of every seed is kept in --work and not made again; run the script as often as you like. The last line is one
JSON object. Exit code 1 when a target is missed: accuracy_25 at least 0.9, accuracy_4 at least 95% of it, and above
accuracy_4_plain by more than the standard error over seeds (of one seed: over prompts).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nas.config import DataConfig
from nas.console import progress
from nas.data import open_data
from nas.data.shapes import Cast
from nas.errors import AnswerIsNo
from nas.evaluate import EvaluateConfig, measure, sample_many
from nas.evaluate.classifier import STEPS, accuracies, chance, classifier_features, prompts, trained_classifier
from nas.media import to_uint8, write_contact_sheet
from nas.model.network import VideoUNet
from nas.model.pipeline import TextToVideoPipeline, load_pipeline, save_pipeline
from nas.pretrained.text import TextEncoder
from nas.recipes import finetune
from nas.recipes.adversarial import AdversarialConfig
from nas.recipes.config import FinetuneConfig, known_settings
from nas.recipes.joint import JointConfig
from search_spaces.space import Space

HERE = Path(__file__).parent
VARIANTS = ("plain", "unified", "spatial", "temporal", "separate", "r1")
CHANGES: dict[str, dict[str, Any]] = {
    "plain": {"adversarial_weight": 0.0},
    **{heads: {"heads": heads} for heads in ("unified", "spatial", "temporal", "separate")},
    "r1": {"r1": "finite"},
}
GUIDANCE = 2.0
CLIPS = 180  # every prompt five times

DATA = DataConfig(
    source="moving_shapes",
    max_objects=1,
    kinds=("square", "triangle", "cross"),
    colours=("red", "green", "blue"),
    radius=(0.22, 0.3),
    speed=(0.4, 0.55),
)
FIRST = DATA.model_copy(update={"boundary": "inside"})
BASE = JointConfig(
    steps=2400,
    clips=32,
    images=8,
    image_share=0.1,
    learning_rate=3e-3,
    text_rate=0.03,  # the text encoder is as fresh as the rest; faster, it forgets directions for colours
    ramp_steps=100,
    ema_decay=0.998,
    timestep_mean=0.7,
    checkpoint_every=200,
    threads=1,
)
AFTER = BASE.model_copy(update={"steps": 1500, "learning_rate": 1.5e-3, "ramp_steps": 20, "ema_decay": 0.99})
FEW = AdversarialConfig(
    steps=2000,
    clips=16,
    images=4,
    image_share=0.1,
    learning_rate=3e-4,
    adversarial_weight=0.3,
    r1="off",
    head_rate=3e-3,
    head_width=32,
    head_warmup=100,  # of the steps; `plain` trains its generator in all of them
    ramp_steps=20,
    ema_decay=0.99,
    checkpoint_every=100,
    threads=1,
)


def space(name: str = "four_steps") -> Space:
    return Space.load(HERE / f"{name}.yaml")


def fresh_model(out: Path, data: DataConfig, seed: int, name: str = "four_steps") -> Path:
    """A model folder with random weights, every position full."""
    if (out / "model_index.json").is_file():
        return out
    from diffusers import FlowMatchEulerDiscreteScheduler

    chosen = space(name)
    layers = {p.name: p.variants[: p.most] for p in chosen.positions}
    torch.manual_seed(seed)
    arrangement = chosen.arrange(layers)
    text = TextEncoder.small(chosen, open_data(data, chosen.clip("training")).captions)
    model = VideoUNet(space=chosen.to_json(), arrangement=arrangement.to_json()).eval()
    save_pipeline(TextToVideoPipeline(model, text.model, text.tokenizer, FlowMatchEulerDiscreteScheduler()), out)
    return out


def tuned(model: Path, stage: Any, config: FinetuneConfig, out: Path) -> Path:
    """``model`` fine-tuned into ``out``, if it is not there already."""
    if not (out / "model_index.json").is_file():
        with progress(f"{out.parent.name}/{out.name}") as report:
            steps = config.stage(stage).steps
            try:
                finetune(
                    model,
                    stage,
                    config,
                    out,
                    progress=lambda step, row: report(step, steps, f"loss {row['loss']:.4f}"),
                    warn=lambda message: print(message, file=sys.stderr),
                )
            except AnswerIsNo as answer:
                print(answer, file=sys.stderr)
    return out


class Judge:
    """Classifier, real clips and their features: the same for all."""

    def __init__(self, work: Path, data: DataConfig = DATA, name: str = "four_steps", steps: int = STEPS) -> None:
        clip = space(name).clip("training")
        self.data, self.cast = data, Cast.of(data)
        with progress("classifier") as report:
            self.classifier, self.held_out = trained_classifier(
                data, clip, work / "classifiers", steps=steps, progress=report
            )
        real = open_data(data.model_copy(update={"validation_clips": 2 * CLIPS}), clip, "validation")
        self.real = np.stack([(item["video"].permute(0, 2, 3, 1).numpy() + 1) / 2 for item in real])  # type: ignore[attr-defined]

    def __call__(self, pipeline: Any, objects: int = 1, clips: int = CLIPS, **settings: Any) -> dict[str, Any]:
        texts = prompts(self.cast, objects, clips)
        started = time.perf_counter()
        videos = sample_many(pipeline, texts, EvaluateConfig(batch=72, seed=7, **settings))
        seconds = time.perf_counter() - started
        read = self.classifier.read(torch.from_numpy(videos.transpose(0, 1, 4, 2, 3)) * 2 - 1)
        told = measure(self.real, videos, classifier_features(self.classifier))
        apart = {key: value for key, value in told.items() if key.startswith("frechet")}
        return {**accuracies(read, texts), **apart, **told["pixels"], "seconds": seconds / clips}


def cached(path: Path, make: Any) -> dict[str, Any]:
    if not path.is_file():
        found = make()
        path.write_text(json.dumps(found))
    return json.loads(path.read_text())


def run_seed(
    work: Path, seed: int, judge: Judge, variants: list[str], steps: tuple[int, int], few: AdversarialConfig
) -> dict[str, Any]:
    """Results of one seed by way of sampling."""
    folder = work / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    start = fresh_model(folder / "random", DATA, seed)
    easy = known_settings()(seed=seed, data=FIRST, joint=BASE.model_copy(update={"steps": steps[0]}))
    real = known_settings()(seed=seed, data=DATA, joint=AFTER.model_copy(update={"steps": steps[1]}))
    model = tuned(tuned(start, "joint", easy, folder / "first"), "joint", real, folder / "base")
    rows: dict[str, Any] = {}

    def row(name: str, file: str, make: Callable[[], dict[str, Any]]) -> None:
        rows[name] = found = cached(folder / f"{file}.json", make)
        print(
            f"  {name:36} accuracy {found['accuracy']:.3f} (kind {found['kind']:.3f}, colour {found['colour']:.3f}, "
            f"direction {found['direction']:.3f})  Frechet {found['frechet']:7.3f}  flicker {found['flicker']:.4f}  "
            f"motion {found['motion']:.4f}",
            flush=True,
        )

    row("25 steps, guidance", "base-25", lambda: judge(load_pipeline(model), steps=25, guidance=GUIDANCE))
    row("25 steps, no guidance", "base-25-bare", lambda: judge(load_pipeline(model), steps=25, guidance=1.0))
    row("4 steps, untouched", "base-4", lambda: judge(load_pipeline(model), steps=4, guidance=1.0))
    for variant in variants:
        settings = known_settings()(seed=seed, data=DATA, adversarial=few.model_copy(update=CHANGES.get(variant, {})))
        made = tuned(model, "adversarial", settings, folder / variant)

        def follow(made: Path = made) -> dict[str, Any]:
            """Along the predicted noise, without fresh noise between steps."""
            pipeline = load_pipeline(made)
            pipeline.scheduler.register_to_config(stochastic_sampling=False)
            return judge(pipeline, steps=4)

        row(f"4 steps, {variant}", f"{variant}-4", lambda made=made: judge(load_pipeline(made), steps=4))
        row(f"4 steps, {variant}, noise followed", f"{variant}-4-followed", follow)
    return rows


def time_both(work: Path, seed: int, variant: str, rounds: int = 5) -> tuple[float, float]:
    """Seconds a clip of 25 steps with guidance and of 4, medians of interleaved rounds."""
    folder = work / f"seed-{seed}"
    many, few = load_pipeline(folder / "base"), load_pipeline(folder / variant)
    texts = prompts(Cast.of(DATA), 1, 36)
    found: dict[int, list[float]] = {25: [], 4: []}
    for _ in range(rounds):
        for steps, pipeline in ((25, many), (4, few)):
            started = time.perf_counter()
            pipeline(texts, num_inference_steps=steps, guidance_scale=GUIDANCE if steps == 25 else 1.0)
            found[steps].append((time.perf_counter() - started) / len(texts))
    return float(np.median(found[25])), float(np.median(found[4]))


def sheet(work: Path, seed: int, variants: list[str], judge: Judge) -> Path:
    """Nine prompts under each other: 25 steps with guidance, then each variant's 4 steps, frames from left to right."""
    texts = prompts(judge.cast, 1, 9, seed=3)
    folder = work / f"seed-{seed}"
    columns = [sample_many(load_pipeline(folder / "base"), texts, EvaluateConfig(steps=25, guidance=GUIDANCE, seed=7))]
    columns += [sample_many(load_pipeline(folder / v), texts, EvaluateConfig(steps=4, seed=7)) for v in variants]
    rows = [
        np.concatenate(list(c.transpose(1, 0, 2, 3, 4)), axis=2).repeat(5, axis=1).repeat(5, axis=2) for c in columns
    ]
    frames = np.concatenate([np.pad(row, ((0, 0), (0, 0), (0, 12), (0, 0)), constant_values=1) for row in rows], axis=2)
    path = folder / "samples.png"
    write_contact_sheet(path, to_uint8(frames), columns=1)
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/four_steps"))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=["plain", "unified"])
    parser.add_argument(
        "--ablation-seeds", type=int, nargs="*", default=[0], help="seeds with spatial and temporal too"
    )
    parser.add_argument("--base-steps", type=int, default=BASE.steps)
    parser.add_argument("--after-steps", type=int, default=AFTER.steps)
    parser.add_argument("--steps", type=int, default=FEW.steps)
    parser.add_argument("--r1-weight", type=float, default=FEW.r1_weight, help="of variant r1")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    judge = Judge(args.work)
    few = FEW.model_copy(update={"steps": args.steps, "r1_weight": args.r1_weight})
    found: dict[int, Any] = {}
    for seed in args.seeds:
        more = [v for v in ("spatial", "temporal") if seed in args.ablation_seeds and v not in args.variants]
        print(
            f"\nseed {seed}; chance {chance(judge.cast, 1):.3f}, classifier {judge.held_out['accuracy']:.3f} held out"
        )
        found[seed] = run_seed(
            args.work, seed, judge, [*args.variants, *more], (args.base_steps, args.after_steps), few
        )
        print(f"  {sheet(args.work, seed, [*args.variants, *more], judge)}", flush=True)

    if not {"plain", "unified"} <= set(args.variants):
        print("no verdict: it compares plain and unified, and --variants leaves one of them out")
        return 0

    def over_seeds(name: str, key: str = "accuracy") -> list[float]:
        return [rows[name][key] for rows in found.values() if name in rows]

    def best(variant: str) -> str:
        """The better of its two ways of sampling, chosen for plain too."""
        names = [f"4 steps, {variant}", f"4 steps, {variant}, noise followed"]
        return max(names, key=lambda name: np.mean(over_seeds(name)))

    seconds_25, seconds_4 = time_both(args.work, args.seeds[0], "unified")
    many, plain, few_steps = (over_seeds(name) for name in ("25 steps, guidance", best("plain"), "4 steps, unified"))
    gaps = np.asarray(few_steps) - np.asarray(plain)
    if len(gaps) > 1:
        error = float(gaps.std(ddof=1) / np.sqrt(len(gaps)))
    else:  # of one seed: over its prompts
        error = float(np.sqrt(sum(p[0] * (1 - p[0]) / CLIPS for p in (few_steps, plain))))
    ratio = float(np.mean(few_steps) / np.mean(many))
    result = {
        "seeds": len(found),
        "chance": round(chance(judge.cast, 1), 4),
        "accuracy_25": round(float(np.mean(many)), 4),
        "accuracy_25_without_guidance": round(float(np.mean(over_seeds("25 steps, no guidance"))), 4),
        "accuracy_4_plain": round(float(np.mean(plain)), 4),
        "accuracy_4_untouched": round(float(np.mean(over_seeds("4 steps, untouched"))), 4),
        "accuracy_4": round(float(np.mean(few_steps)), 4),
        "accuracy_ratio": round(ratio, 4),
        "gap_to_plain": [round(float(gaps.mean()), 4), round(error, 4)],
        **{
            f"accuracy_4_{v}": round(float(np.mean(over_seeds(f"4 steps, {v}"))), 4)
            for v in ("spatial", "temporal", "separate", "r1")
            if over_seeds(f"4 steps, {v}")
        },
        **{
            f"{key}_{short}": round(float(np.mean(over_seeds(name, key))), 4)
            for key in ("frechet", "flicker")
            for short, name in (("25", "25 steps, guidance"), ("4_plain", best("plain")), ("4", "4 steps, unified"))
        },
        "evaluations": [50, 4],
        "seconds_25": round(seconds_25, 5),
        "seconds_4": round(seconds_4, 5),
        "speedup": round(seconds_25 / seconds_4, 2),
    }
    print(json.dumps(result))
    met = result["accuracy_25"] >= 0.9 and ratio >= 0.95 and gaps.mean() > error
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
