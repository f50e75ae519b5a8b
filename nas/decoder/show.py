"""Clips for people: the real frames, and the same encoded and decoded again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nas.config import RunConfig
from nas.data import open_data
from nas.decoder.folder import load_autoencoder
from nas.files import whole, write_whole
from nas.media import to_uint8
from nas.tasks.likeness import psnr, psnr_of_changes, ssim
from search_spaces.space import Space


@torch.no_grad()
def write_reconstructions(config: RunConfig, run: Path) -> dict[str, Any]:
    """Write ``run/samples/samples.npz`` (real, rebuilt: uint8 (N, T, H, W, 3)) and ``captions.json``.

    A caption says how like the two are: decibels, those of frame-to-frame differences, and structural similarity.
    """
    space, model = Space.load(config.space), load_autoencoder(run / "model").eval()
    data = open_data(config.data, space.clip("training"), "validation", config.seed)
    count = min(config.samples.clips, len(data))
    items = [data[i * len(data) // count] for i in range(count)]
    video = torch.stack([item["video"] for item in items])  # (N, T, C, H, W)
    made = model(video.transpose(1, 2)).sample.transpose(1, 2).clamp(-1, 1)
    real, rebuilt = ((clip + 1) / 2 for clip in (video, made))
    measures = zip(psnr(rebuilt, real), psnr_of_changes(rebuilt, real), ssim(rebuilt, real), strict=True)
    captions = [
        f"{item['caption']}: PSNR {db:.2f} dB, of frame differences {changes:.2f} dB, SSIM {like:.3f}"
        for item, (db, changes, like) in zip(items, measures, strict=True)
    ]
    arrays = {
        name: to_uint8(clip.permute(0, 1, 3, 4, 2).numpy()) for name, clip in (("real", real), ("rebuilt", rebuilt))
    }
    folder = run / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    with whole(folder / "samples.npz") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    write_whole(folder / "captions.json", json.dumps(captions, indent=1))
    return {"clips": count}
