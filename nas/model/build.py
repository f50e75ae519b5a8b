"""A plain model folder of an arrangement: with the weights that the search scored, or anew over an image backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import torch

from nas.config import load
from nas.data.cached import CachedText, load_autoencoder
from nas.errors import NasError
from nas.model.folder import is_model
from nas.model.network import VideoUNet
from nas.model.pipeline import TextToVideoPipeline, save_pipeline
from nas.outputs import check_replaceable
from nas.supernet.supernet import Supernet
from nas.tasks import USUAL, Prediction
from search_spaces.arrangement import Arrangement
from search_spaces.space import Space

TOLERANCE = 1e-4  # of the largest output; float32 sums in another order


def build_model(run: Path, out: Path, autoencoder: str | None = None) -> dict[str, Any]:
    """Build the run's chosen arrangement into ``out``, a folder that diffusers loads.

    The folder holds the network, text encoder, tokenizer and scheduler; it is written whole or not at all.

    Args:
        autoencoder: another one for the same latents, such as a decoder distilled for their encoder: hub id or folder.

    Returns:
        Path, parameters, and the largest difference to the supernet's path.

    Raises:
        NasError: if no arrangement was chosen yet, the built model does not equal the supernet's path, or
            ``autoencoder`` decodes other latents than those that the run was trained on.
    """
    from nas.supernet.trained import load_supernet

    check_replaceable(out, is_model, "model")
    space = Space.load(load(run).space)
    if not space.text:
        raise NasError(f"{run}: space {space.name} reads no text, and what is built is sampled by prompts")
    chosen = run / "arrangement.yaml"
    if not chosen.is_file():
        raise NasError(f"{run}: no arrangement.yaml there; choose one with nas search {run}")
    arrangement = Arrangement.load(chosen)
    supernet, text, step = load_supernet(space, run / "supernet")
    model = VideoUNet.of(space, supernet.extract(arrangement), arrangement, supernet.prediction)
    difference = largest_difference(supernet, model, space, arrangement)
    if not difference <= TOLERANCE:  # not a number is a difference too
        raise NasError(f"{out}: the built model differs from the supernet's path by {difference:.1e}, over {TOLERANCE}")
    vae = _autoencoder(text, space, autoencoder)
    save_model(model, text.model, text.tokenizer, vae, out)
    return {**_facts(model, out), "difference": difference, "supernet_step": step}


def _autoencoder(text: Any, space: Space, other: str | None) -> Any:
    """The autoencoder of the latents that a run was trained on, or another one for the same; None for pixels."""
    from nas.pretrained.autoencoder import VideoAutoencoder

    if not isinstance(text, CachedText):
        if other is not None:
            raise NasError(f"space {space.name} works in pixels; leave --autoencoder out")
        return None
    if other is None:
        return load_autoencoder(text.cache.header).model
    found, made = VideoAutoencoder.load(other), text.cache.header["autoencoder"]
    found.check_fits(space)
    if found.digest != made["digest"]:
        raise NasError(
            f"{other}: decodes latents of encoder {found.digest}, but the run was trained on those of {made['digest']} "
            f"({made['source']}); give that one, or a decoder distilled for it"
        )
    return found.model


def build_anew(
    space: str | Path,
    arrangement: Path,
    out: Path,
    *,
    text: str,
    autoencoder: str | None = None,
    init: str | None = None,
    prediction: Prediction = USUAL,
    seed: int = 0,
) -> dict[str, Any]:
    """Build an arrangement into ``out`` without a supernet: its temporal layers start as the identity.

    Args:
        arrangement: its YAML. text: CLIP text model and tokenizer, hub id or folder.
        autoencoder: for a space of latents, hub id or folder. init: UNet whose weights the backbone takes over.
        prediction: what those weights answer: Stable Diffusion 1.5, and what ``nas prune`` makes of it, `epsilon`.
        seed: of the weights that start anew.

    Returns:
        Path and parameters, and what came over from ``init``.

    Raises:
        NasError: if the text model, autoencoder or UNet cannot be loaded or does not fit the space, or there is no such
            prediction. SpaceError: if the arrangement does not fit.
    """
    from nas.pretrained.autoencoder import VideoAutoencoder
    from nas.pretrained.given import init_network
    from nas.pretrained.text import TextEncoder

    if prediction not in get_args(Prediction):
        raise NasError(f"--prediction {prediction}: must be one of {', '.join(get_args(Prediction))}")
    loaded = Space.load(space)
    chosen = Arrangement.load(arrangement)
    loaded.check(chosen)
    check_replaceable(out, is_model, "model")
    factors = (loaded.autoencoder.time, loaded.autoencoder.space)
    if (autoencoder is None) != (factors == (1, 1)):
        raise NasError(
            f"space {loaded.name} works in pixels; leave --autoencoder out"
            if autoencoder is not None
            else f"space {loaded.name} works in latents; name its autoencoder with --autoencoder"
        )
    words = TextEncoder.pretrained(text)
    if (words.width, words.max_tokens) != (loaded.text.dim, loaded.text.tokens):
        raise NasError(
            f"{text}: gives {words.max_tokens} tokens of width {words.width}, but space {loaded.name} reads "
            f"{loaded.text.tokens} of {loaded.text.dim}; name another text model"
        )
    vae = None
    if autoencoder is not None:
        found = VideoAutoencoder.load(autoencoder)
        found.check_fits(loaded)
        vae = found.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VideoUNet(loaded.to_json(), chosen.to_json(), prediction).eval()
    told = init_network(loaded.backbone.family, model.network, init).sentence() if init is not None else ""
    save_model(model, words.model, words.tokenizer, vae, out)
    return {**_facts(model, out), "init": told}


def _facts(model: VideoUNet, out: Path) -> dict[str, Any]:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"model": str(out), "arrangement": model.arrangement.key, "parameters": parameters}


def save_model(model: VideoUNet, text: Any, tokenizer: Any, vae: Any, out: Path) -> None:
    """Write a pipeline of the parts, whole or not at all."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    check_replaceable(out, is_model, "model")
    save_pipeline(TextToVideoPipeline(model, text, tokenizer, FlowMatchEulerDiscreteScheduler(), vae), out)


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
