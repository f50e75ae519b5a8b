"""Arrangement and supernet to a plain model folder: what the search found, with the weights it was scored with."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from nas.checkpoint import disk_is_full
from nas.config import load
from nas.data.cached import CachedText, load_autoencoder
from nas.errors import NasError
from nas.model import VideoUNet
from nas.pipeline import TextToVideoPipeline
from nas.sample import no_bars
from nas.supernet import Supernet
from nas.trainer import load_supernet
from search_spaces.arrangement import Arrangement
from search_spaces.space import Space

TOLERANCE = 1e-4  # of the largest output; float32 sums in another order


def build_model(run: Path, out: Path) -> dict[str, Any]:
    """Build the run's chosen arrangement into ``out``, a folder that diffusers loads.

    The folder holds the network, text encoder, tokenizer and scheduler; it is written whole or not at all.

    Returns:
        Path, parameters, and the largest difference to the supernet's path.

    Raises:
        NasError: if no arrangement was chosen yet, or the built model does not equal the supernet's path.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    space = Space.load(load(run).space)
    chosen = run / "arrangement.yaml"
    if not chosen.is_file():
        raise NasError(f"{run}: no arrangement.yaml there; choose one with nas search {run}")
    arrangement = Arrangement.load(chosen)
    supernet, text, step = load_supernet(space, run / "supernet")
    model = VideoUNet.of(space, supernet.extract(arrangement), arrangement, supernet.diffusion.prediction)
    difference = largest_difference(supernet, model, space, arrangement)
    if not difference <= TOLERANCE:  # not a number is a difference too
        raise NasError(f"{out}: the built model differs from the supernet's path by {difference:.1e}, over {TOLERANCE}")
    vae = load_autoencoder(text.cache.header).model if isinstance(text, CachedText) else None
    pipeline = TextToVideoPipeline(model, text.model, text.tokenizer, FlowMatchEulerDiscreteScheduler(), vae)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with no_bars():
            pipeline.save_pretrained(str(partial))
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        if not disk_is_full(error):
            raise
        raise NasError(f"{out}: the disk is full; free some space and run the same command again") from error
    if out.exists():
        if not (out / "model_index.json").is_file() and any(out.iterdir()):
            shutil.rmtree(partial)
            raise NasError(f"{out} is not empty and holds no model; give another --out")
        shutil.rmtree(out)
    os.replace(partial, out)
    return {
        "model": str(out),
        "arrangement": arrangement.key,
        "parameters": sum(p.numel() for p in model.parameters()),
        "difference": difference,
        "supernet_step": step,
    }


@torch.no_grad()
def largest_difference(supernet: Supernet, model: VideoUNet, space: Space, arrangement: Arrangement) -> float:
    """Largest difference between the model and the supernet's path, over the largest output, on random input."""
    generator = torch.Generator().manual_seed(0)
    frames, channels, height, width = space.latent_shape("training")
    video = torch.randn(1, channels, frames, height, width, generator=generator)
    context = torch.randn(1, space.text.tokens, space.text.dim, generator=generator)
    built = model(video, 500.0, context).sample
    shared = supernet(video[0].transpose(0, 1), torch.tensor([500.0]), context, frames, arrangement)
    return float((built[0].transpose(0, 1) - shared).abs().max() / shared.abs().max())
