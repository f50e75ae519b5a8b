"""Frames for people: real, noised, estimated in one step, and sampled from noise, side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nas.config import RunConfig
from nas.data import open_data
from nas.files import whole, write_whole
from nas.media import to_uint8
from nas.model.pipeline import load_pipeline
from nas.tasks.noise import clean_estimate, mix
from search_spaces.space import Space


@torch.no_grad()
def write_samples(config: RunConfig, run: Path) -> dict[str, Any]:
    """Write ``run/samples/samples.npz`` (real, noised, one_step, sampled: uint8 (N, T, H, W, 3)) and captions.json."""
    space = Space.load(config.space)
    pipeline = load_pipeline(run / "model")
    data = open_data(config.data, space.clip("training"), "validation", config.seed)
    count = min(config.samples.clips, len(data))
    items = [data[i * len(data) // count] for i in range(count)]
    video = torch.stack([item["video"] for item in items])  # (N, T, C, H, W)
    captions = [item["caption"] for item in items]
    generator = torch.Generator().manual_seed(config.seed)
    noise = torch.randn(video.shape, generator=generator)
    level = torch.full((count,), config.samples.level)
    noisy = mix(video, noise, level)
    context = pipeline.encode(captions)
    predicted = pipeline.unet(noisy.transpose(1, 2), 1000.0 * level, context).sample.transpose(1, 2)
    sampled = pipeline(
        captions,
        num_inference_steps=config.samples.steps,
        guidance_scale=config.samples.guidance,
        generator=torch.Generator().manual_seed(config.seed),
    ).frames
    arrays = {
        "real": _pixels(video, pipeline),
        "noised": _pixels(noisy, pipeline),
        "one_step": _pixels(clean_estimate(noisy, predicted, level), pipeline),
        "sampled": to_uint8(sampled.numpy()),
    }
    folder = run / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    with whole(folder / "samples.npz") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    write_whole(folder / "captions.json", json.dumps(captions, indent=1))
    return {"clips": count, **config.samples.model_dump()}


def _pixels(video: torch.Tensor, pipeline: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(N, T, C, H, W) in [-1, 1], or latents -> (N, T, H, W, 3) bytes."""
    return to_uint8(pipeline.decode(video.transpose(1, 2)).numpy())
