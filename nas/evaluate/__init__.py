"""How good a model is: pixels, Frechet distance, prompts, VBench."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from nas.config import CONFIG_FILE, DataConfig
from nas.data import Item
from nas.errors import NasError
from nas.finite import check_finite
from nas.settings import Seed, Settings
from nas.training.checkpoint import write_whole

METRICS = "metrics.json"
APART = {"frechet_frames": "single frames", "frechet_differences": "frame differences"}  # see ``nas.evaluate.apart``
CLASSIFIERS = Path("runs/.classifiers")

Progress = Callable[[int, int, str], None]
Reading = Callable[[int, Sequence[str], NDArray[np.float32]], dict[str, float]]  # (objects, prompts, videos)


class EvaluateConfig(Settings):
    """How a model is evaluated.

    Attributes:
        data: the clips it is compared with. clips: how many are sampled for each number of objects, and how many real
            ones beside them. batch: clips at a time.
        steps: of sampling; as many as its generator was trained for, or 25. guidance: 1 is off; as trained.
        seed: of the initial noise.
        features: an ONNX network for the Frechet distance; see `nas.evaluate.frechet`.
        classifier_steps: training steps of the classifier of moving shapes. classifiers: where trained ones are kept.
    """

    data: DataConfig = DataConfig()
    clips: int = Field(128, ge=2)
    batch: int = Field(32, ge=1)
    steps: int | None = Field(None, ge=1)
    guidance: float | None = Field(None, ge=0.0)
    seed: Seed = 0
    features: Path | None = None
    classifier_steps: int = Field(600, ge=1)
    classifiers: Path = CLASSIFIERS


def resolve_evaluate(model: Path, file: Path | None = None, sets: Sequence[str] = ()) -> EvaluateConfig:
    """Defaults, with the data that ``model`` was made with, then ``file``, then each ``a.b=value``."""
    from nas.config import settle
    from nas.model.made_with import data_of

    return settle(EvaluateConfig, data_of(model), file, sets)


def evaluate_model(model: Path, config: EvaluateConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Sample ``model`` and measure the samples beside real clips; kept in ``metrics.json`` under ``evaluation``.

    On ``moving_shapes`` the prompts are scenes of one and of two objects, and a classifier trained here reads what was
    made of them; its own accuracy on held-out clips and the chance of guessing stand beside the result. On other data
    the prompts are the validation clips' captions, and a Frechet distance needs ``config.features``.

    Returns:
        ``pixels`` and ``pixels_real``; ``frechet_frames`` and ``frechet_differences``; ``frechet`` with the
        ``features`` used, or why there is none; for moving shapes ``prompts`` by number of objects and ``classifier``;
        ``seconds`` of sampling a clip; ``model``, its ``weights`` as a fingerprint, and the ``steps`` and ``guidance``
        that it was sampled with.

    Raises:
        NasError: if the model is none, a prompt does not fit it, or the clips have two frames: flicker needs three, and
            pictures have one.
    """
    from nas.data import open_data
    from nas.evaluate.pixels import check_frames
    from nas.model.pipeline import load_pipeline

    pipeline = load_pipeline(model)
    clip = pipeline.unet.space.clip("training")
    real_data = open_data(config.data.model_copy(update={"validation_clips": config.clips}), clip, "validation")
    items = [real_data[i] for i in range(min(config.clips, len(real_data)))]
    real = real_clips(pipeline, real_data, items, config.batch)
    check_frames(min(clip.frames, real.shape[1]))  # before long sampling
    levels, guidance = pipeline.plan(config.steps, guidance_scale=config.guidance)
    told: dict[str, Any] = {
        "model": str(model),
        "weights": pipeline.fingerprint(),
        "clips": config.clips,
        "real_clips": len(items),
        "seed": config.seed,
        "steps": len(levels),
        "guidance": guidance,
    }
    features: Any = None
    if config.features is not None:
        from nas.evaluate.frechet import onnx_features

        features, told["features"] = onnx_features(config.features), str(config.features)
    groups: dict[int, list[str]] = {0: [items[i % len(items)]["caption"] for i in range(config.clips)]}
    read: Reading | None = None
    if config.data.source == "moving_shapes":
        groups, read, of_shapes = _shapes(config, clip, told, progress)
        if features is None:
            features = of_shapes
            told["features"] = "inside of the moving-shapes classifier (128 numbers); comparable within this scene only"
    made = _sampled_groups(pipeline, groups, config, told, read, progress)
    told.update(measure(real, made, features))
    if features is None:
        told["frechet_missing"] = "no features: give an ONNX network with --features"
    keep(model, told)
    return told


def _shapes(
    config: EvaluateConfig, clip: Any, told: dict[str, Any], progress: Progress | None
) -> tuple[dict[int, list[str]], Reading, Any]:
    """Prompts by number of objects, what reads videos made of them, and the features inside of it."""
    import torch

    from nas.data.shapes import Cast
    from nas.evaluate.classifier import accuracies, chance, classifier_features, prompts, trained_classifier

    cast, still = Cast.of(config.data), clip.frames == 1
    classifier, told["classifier"] = trained_classifier(
        config.data, clip, config.classifiers, steps=config.classifier_steps, progress=progress
    )

    def read(objects: int, texts: Sequence[str], videos: NDArray[np.float32]) -> dict[str, float]:
        shown = classifier.read(torch.from_numpy(videos.transpose(0, 1, 4, 2, 3)).float() * 2 - 1)
        return {**accuracies(shown, texts, still=still), "chance": chance(cast, objects, still=still)}

    groups = {n: prompts(cast, n, config.clips, config.seed) for n in range(1, config.data.max_objects + 1)}
    return groups, read, classifier_features(classifier)


def _sampled_groups(
    pipeline: Any,
    groups: Mapping[int, Sequence[str]],
    config: EvaluateConfig,
    told: dict[str, Any],
    read: Reading | None,
    progress: Progress | None,
) -> NDArray[np.float32]:
    """Sample the prompts of each number of objects, and put down the time and what ``read`` says; (N, T, H, W, 3)."""
    made: list[NDArray[np.float32]] = []
    seconds, total = 0.0, sum(len(texts) for texts in groups.values())
    if read is not None:
        told["prompts"] = {}
    for objects, texts in groups.items():
        started, before = time.perf_counter(), sum(len(part) for part in made)

        def sampled(count: int, before: int = before) -> None:
            if progress is not None:
                progress(before + count, total, "sampled")

        videos = sample_many(pipeline, texts, config, sampled)
        seconds += time.perf_counter() - started
        made.append(videos)
        if read is not None:
            told["prompts"][str(objects)] = read(objects, texts, videos)
    told["seconds"] = seconds / total
    return np.concatenate(made)


def real_clips(pipeline: Any, data: Any, items: Sequence[Item], batch: int) -> NDArray[Any]:
    """(N, T, H, W, 3) in 0..1 of items of a dataset; latents are decoded with the pipeline, ``batch`` at a time.

    Raises:
        NasError: if they are not the latents of the model's space.
    """
    import torch

    from nas.data.cached import CachedLatents

    if not isinstance(data, CachedLatents):
        return np.stack([(item["video"].permute(0, 2, 3, 1).numpy() + 1) / 2 for item in items])
    data.check_fits(pipeline.unet.space)
    latents = torch.stack([item["video"] for item in items]).transpose(1, 2)
    with torch.no_grad():
        return np.concatenate([pipeline.decode(part).numpy() for part in latents.split(batch)])


def measure(real: NDArray[Any], made: NDArray[Any], features: Any = None) -> dict[str, Any]:
    """Pixel measures of both, and their Frechet distance where there are features; (N, T, H, W, 3) in 0..1."""
    from nas.evaluate.apart import apart
    from nas.evaluate.frechet import frechet_distance
    from nas.evaluate.pixels import pixel_metrics

    told: dict[str, Any] = {"pixels": pixel_metrics(made), "pixels_real": pixel_metrics(real), **apart(real, made)}
    if features is not None:
        told["frechet"] = frechet_distance(features(real), features(made))
    return told


def sample_many(
    pipeline: Any, texts: Sequence[str], config: EvaluateConfig, progress: Callable[[int], None] | None = None
) -> NDArray[np.float32]:
    """(N, T, H, W, 3) in 0..1, one a prompt; each batch's noise is its own, so the same for every model."""
    import torch

    parts = []
    for first in range(0, len(texts), config.batch):
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + first)
        output = pipeline(
            list(texts[first : first + config.batch]),
            num_inference_steps=config.steps,
            guidance_scale=config.guidance,
            generator=generator,
        )
        parts.append(output.frames.numpy())
        if progress is not None:
            progress(first + len(parts[-1]))
    return np.concatenate(parts)


def keep(model: Path, told: Mapping[str, Any]) -> Path:
    """Put ``told`` into ``metrics.json``: the run's, where the model lies in a run folder, else the model's own.

    VBench's scores and what was measured here stand beside each other as long as both are of the same ``weights``; of
    an earlier evaluation nothing else stays.
    """
    folder = Path(os.path.abspath(model))  # the parent of "." is no folder
    folder = folder.parent if (folder.parent / CONFIG_FILE).is_file() else folder
    path = folder / METRICS
    known: dict[str, Any] = {}
    if path.exists():
        try:
            known = dict(json.loads(path.read_text()))
        except ValueError as error:
            raise NasError(f"{path}: damaged ({error}); delete it and evaluate again") from None
    check_finite(told, f"{model}: the metric", "check the model's weights and evaluate again")
    before = known.get("evaluation")
    if not isinstance(before, dict) or before.get("weights") != told["weights"]:
        before = {}
    stays = before if "vbench" in told else {name: before[name] for name in ("vbench",) if name in before}
    write_whole(path, json.dumps({**known, "evaluation": {**stays, **told}}, indent=1, default=str))
    return path


def vbench_folder(
    model: Path, prompts: Path, out: Path, config: EvaluateConfig, progress: Progress | None = None
) -> dict[str, Any]:
    """Sample the folder of videos that VBench reads; goes on where ``out`` holds a part of it.

    Raises:
        NasError: if the model is none, a prompt does not fit it or cannot name a file, or ``out`` holds videos of
            another model, or of other steps, guidance, seed or size.
    """
    import torch

    from nas.evaluate.vbench import PROTOCOL, SEEDS, claim, read_counts, seed_of, write_folder
    from nas.media import enlarge, to_uint8
    from nas.model.pipeline import load_pipeline

    texts = read_counts(prompts)
    pipeline = load_pipeline(model)
    pipeline.check_prompts(list(texts))
    clip = pipeline.unet.space.clip("training")
    if clip.frames == 1:
        raise NasError(f"{model}: VBench judges videos, and this model makes pictures; leave VBench's options out")
    levels, guidance = pipeline.plan(config.steps, guidance_scale=config.guidance)
    made_with = {"weights": pipeline.fingerprint(), "steps": len(levels), "guidance": guidance, "seed": config.seed}
    made_with["protocol"] = PROTOCOL
    claim(out, {**made_with, "size": f"{clip.frames}x{clip.height}x{clip.width}"})

    numbered = [(prompt, number) for prompt, each in texts.items() for number in range(each)]
    seeds = {f"{prompt}-{number}.mp4": seed_of(config.seed, prompt, number) for prompt, number in numbered}
    write_whole(out / SEEDS, json.dumps(seeds, indent=1))

    def sample(prompt: str, number: int) -> NDArray[np.uint8]:
        made = pipeline(
            prompt,
            num_inference_steps=config.steps,
            guidance_scale=config.guidance,
            generator=torch.Generator().manual_seed(seed_of(config.seed, prompt, number)),
        )
        return enlarge(to_uint8(made.frames[0].numpy()))

    return {"vbench": write_folder(out, list(texts), sample, clip.fps, texts, progress)}


def vbench_scores(model: Path, results: Path) -> dict[str, Any]:
    """VBench's scores of a model, kept in ``metrics.json`` beside what was measured here."""
    from nas.evaluate.vbench import read_results
    from nas.model.pipeline import load_pipeline

    told = {"vbench": read_results(results)}
    weights, made = load_pipeline(model).fingerprint(), told["vbench"]["protocol"]["sampled"]
    if made is not None and made.get("weights") != weights:
        raise NasError(
            f"{results}: its videos were made with another model ({made.get('weights')}, {model} is {weights}); name "
            "that one"
        )
    keep(model, {"model": str(model), "weights": weights, **told})
    return told


def render(told: Mapping[str, Any]) -> str:
    """What was measured, in lines for people."""
    lines = []
    for objects, row in told.get("prompts", {}).items():
        of = ", ".join(f"{name} {row[name]:.1%}" for name in ("kind", "colour", "direction") if name in row)
        lines.append(
            f"prompts of {objects} object{'s' * (objects != '1')}: {row['accuracy']:.1%} shown as asked "
            f"({of}; guessing {row['chance']:.2%})"
        )
    if "classifier" in told:
        lines.append(
            f"read by a classifier that is right on {told['classifier']['accuracy']:.1%} of held-out real clips"
        )
    if "pixels" in told:
        made, real = told["pixels"], told["pixels_real"]
        lines += [f"{name}: {made[name]:.4f}, real clips {real[name]:.4f}" for name in made]
        lines.append(
            f"Frechet distance: {told['frechet']:.3f} (features: {told['features']})"
            if "frechet" in told
            else f"Frechet distance: {told['frechet_missing']}"
        )
        lines += [f"Frechet distance of {what}: {told[key]:.5f}" for key, what in APART.items() if key in told]
        lines.append(f"{told['seconds']:.3f} s of sampling a clip")
    if "vbench" in told:
        found = told["vbench"]
        if "command" in found:
            lines.append(f"{found['videos']} videos in {found['folder']}; in VBench's own environment run")
            lines.append(f"  {found['command']}")
            if "static_filter" in found:
                lines.append("and for temporal_flickering, in VBench's own checkout,")
                lines += [f"  {found['static_filter']}", f"  {found['flickering_command']}"]
        else:
            lines += [f"VBench {name}: {value:.4f}" for name, value in found["dimensions"].items()]
            whole = [
                f"{name} {found[name]:.4f}" for name in ("quality", "semantic", "total") if found[name] is not None
            ]
            how = found.get("protocol", {}).get("dimensions", {})
            if how.get("temporal_flickering", {}).get("static_filter", "applied") != "applied":
                told_of = how["temporal_flickering"]["static_filter"]
                lines.append(f"VBench temporal_flickering: static filter {told_of}; its protocol wants it applied")
            if "protocol" in found and found["protocol"]["sampled"] is None:
                lines.append("VBench: what made the videos is not known; no made.json lies beside the results")
            lines.append("VBench " + (", ".join(whole) or "means need every dimension of theirs"))
    return "\n".join(lines)
