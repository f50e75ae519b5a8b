"""The two halves of a searched decoder as Core ML packages: one that holds all frames, one that runs frame by frame."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from device_profiler import host
from nas.decoder.folder import load_autoencoder
from nas.export.checks import Function
from nas.export.folder import FACTS
from nas.export.packages import MAIN, How, write_package
from nas.files import write_whole
from nas.outputs import MADE_BY, check_replaceable, new_folder
from nas.pretrained.hub import model_digest
from nas.pretrained.searched import SearchedAutoencoder
from search_spaces.space import latent_shape


class Temporal(nn.Module):
    """(t, C, h, w) latents of a clip, as the encoder gives them, to the frames that are held, (T, C', h', w')."""

    def __init__(self, model: SearchedAutoencoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, latents: Tensor) -> Tensor:
        return self.model.held_of(self.model.scaled(latents))


class Spatial(nn.Module):
    """One held frame (1, C', h', w') to one frame of the video, (1, 3, H, W)."""

    def __init__(self, model: SearchedAutoencoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, held: Tensor) -> Tensor:
        return self.model.frames_of(held)


def halves(model: SearchedAutoencoder, shape: tuple[int, int, int]) -> dict[str, Function]:
    """The decoder's halves for a clip of ``shape`` (frames, height, width in pixels), each with an input of its own.

    Raises:
        SpaceError: if the autoencoder does not divide the shape.
    """
    frames, height, width = latent_shape(model.space, *shape)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(frames, model.space.latent_channels, height, width, generator=generator)
    found = {"temporal": Function(MAIN, Temporal(model).eval(), (latents,), ("latents",))}
    if not model.all_held:
        layout = model.space.backbone.layout
        part = next(part for part in layout.parts if part.by_frame)
        _, channels, rows, columns = layout.shape(part, frames, height, width)
        held = torch.randn(1, channels, rows, columns, generator=generator)
        found["spatial"] = Function(MAIN, Spatial(model).eval(), (held,), ("held",))
    return found


def export_decoder(folder: Path, out: Path, clip: str = "deployment", *, check: bool = True) -> dict[str, Any]:
    """Write ``out/temporal.mlpackage``, ``out/spatial.mlpackage`` and what is told of them, ``out/export.json``.

    An app runs the first once and the second once a frame: what they compute together is ``decode``.

    Returns:
        Per half: its input, operations, sizes in MB and the check; and seconds and peak host memory.

    Raises:
        NasError: if the folder holds no searched autoencoder. AnswerIsNo: if a package computes something else.
    """
    model = load_autoencoder(folder).eval()
    size = model.space.clip(clip)
    weights = model_digest(model)
    model.kept = None
    model.network.unet.encoder = None  # what stays on the server
    started = time.perf_counter()
    check_replaceable(out, lambda place: (place / FACTS).is_file(), "export")
    with new_folder(out) as partial:
        facts: dict[str, Any] = {"weights": weights, "clip": clip, "made_by": MADE_BY}
        for name, half in halves(model, (size.frames, size.height, size.width)).items():
            told = write_package(f"{folder}: the {name} half", [half], How(check=check), partial / f"{name}.mlpackage")
            inputs = {key: list(x.shape) for key, x in zip(half.names, half.inputs, strict=True)}
            facts[name] = {"inputs": inputs, **{key: told[key] for key in ("operations", "weights_mb", "package_mb")}}
            facts[name] |= {"parity": told["parity"], "check": told["check"]}
        facts["seconds"] = round(time.perf_counter() - started, 1)
        facts["peak_host_mb"] = round(host.most_resident_mb(), 0)
        write_whole(partial / FACTS, json.dumps(facts, indent=1))
    return facts
