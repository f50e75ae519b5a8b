"""The whole network of a model folder as one Core ML package, checked against torch as far as this machine can."""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nas.errors import NasError

if TYPE_CHECKING:
    from nas.model import VideoUNet

PACKAGE = "unet.mlpackage"
PARITY = 0.05  # of the largest output, float16 against float32


class _Bound(nn.Module):
    """The network with its number of frames bound, taking tensors only: (T, C, H, W), (1,), (1, L, D)."""

    def __init__(self, model: VideoUNet, frames: int) -> None:
        super().__init__()
        self.network, self.frames = model.network, frames

    def forward(self, x: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        return self.network(x, timestep, context, self.frames)


def export_model(model: Path, out: Path, clip: str = "deployment") -> dict[str, Any]:
    """Write ``out/unet.mlpackage`` (float16, iOS 18, fixed clip shape) and ``out/export.json`` beside it.

    The exported program is compared with the network in torch everywhere; the package's own output only where Core ML
    can predict (macOS), and ``parity`` says which of the two happened.

    Returns:
        Package path, operation counts, fused attentions, rank, sizes in MB, seconds, peak host memory, parity.

    Raises:
        NasError: if the folder holds no model, Core ML cannot express the network, or the outputs differ.
    """
    from device_profiler.errors import WorkloadError
    from device_profiler.lowering.coreml import lower
    from nas.sample import load_pipeline

    unet = load_pipeline(model).unet.eval()
    space = unet.space
    frames, channels, height, width = space.latent_shape(clip)
    generator = torch.Generator().manual_seed(0)
    inputs = (
        torch.randn(frames, channels, height, width, generator=generator),
        torch.full((1,), 500.0),
        torch.randn(1, space.text.tokens, space.text.dim, generator=generator),
    )
    names = ("x", "timestep", "context")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    bound = _Bound(unet, frames)
    started = time.perf_counter()
    try:
        stats = lower(bound, inputs, names, "fused", "fp16", partial)
    except WorkloadError as error:
        shutil.rmtree(partial)
        raise NasError(f"{model}: cannot be exported to Core ML: {error}") from error
    seconds = time.perf_counter() - started
    os.replace(partial / stats.pop("file"), partial / PACKAGE)
    facts = {
        "package": str(out / PACKAGE),
        "clip": clip,
        "inputs": {name: list(x.shape) for name, x in zip(names, inputs, strict=True)},
        "parameters": sum(p.numel() for p in unet.parameters()),
        "fused_attention": stats.pop("attention_ops"),
        **stats,
        "seconds": round(seconds, 1),
        "peak_host_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, 0),
        "parity": parity(partial / PACKAGE, bound, names, inputs),
    }
    (partial / "export.json").write_text(json.dumps(facts, indent=1))
    if out.exists():
        if not (out / "export.json").is_file() and any(out.iterdir()):
            shutil.rmtree(partial)
            raise NasError(f"{out} is not empty and holds no export; give another --out")
        shutil.rmtree(out)
    os.replace(partial, out)
    return facts


def parity(package: Path, module: nn.Module, names: tuple[str, ...], inputs: tuple[Tensor, ...]) -> str:
    """How far the package's prediction is from torch's, where Core ML can predict; else a sentence.

    Raises:
        NasError: if it is off by more than ``PARITY`` of the largest output.
    """
    if platform.system() != "Darwin":
        return "not checked: Core ML predicts on macOS only; the exported program equals the network in torch"
    import coremltools as ct
    import numpy as np

    loaded = ct.models.MLModel(str(package), compute_units=ct.ComputeUnit.CPU_ONLY)
    fed = {name: x.numpy().astype(np.float16) for name, x in zip(names, inputs, strict=True)}
    got = torch.from_numpy(np.asarray(loaded.predict(fed)["y"], dtype=np.float32))
    with torch.no_grad():
        expected = module(*inputs)
    off = float((got - expected).abs().max() / expected.abs().max())
    if not off <= PARITY:
        raise NasError(f"{package}: Core ML's output is off by {off:.2g} of the largest, over {PARITY}; do not ship it")
    return f"within {off:.1e} of torch"
