"""The exported network on real latents at several noise levels: how large values become, by operation and place."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nas.errors import AnswerIsNo, NasError
from nas.export.checks import Function, Places, Told, placed, remedy
from nas.tasks.noise import TIMESTEPS, mix

if TYPE_CHECKING:
    from device_profiler.evaluator.audit import Reading
    from device_profiler.evaluator.check import Check
    from nas.export.network import Shape

LEVELS = (0.05, 0.3, 0.6, 0.9, 0.9993)  # the last is a timestep between two float16s
CLIPS = 2
LOSS = 5e-3  # of the largest output: an error of float16 that is worth a line


def audit_network(
    package: Path, functions: Sequence[Function], shapes: Sequence[Shape], pipeline: Any, data: Path
) -> Told:
    """Evaluate every function of the network's package on clips of ``data``, at ``LEVELS``.

    Args:
        functions: of the package, and ``shapes`` in pixels in the same order. data: a cache, or a folder of clips.

    Returns:
        ``clips``, ``levels``, ``error`` (of float16 arithmetic against the model, at the worst), ``by_operation`` (the
        value nearest to float16's end of each kind of operation), ``overflow`` and ``loses_precision`` (each with its
        operation, place in the network and noise level).

    Raises:
        AnswerIsNo: if the network's answer is not finite. NasError: if no clip of an exported shape is there.
    """
    from device_profiler.evaluator.check import check_package
    from device_profiler.evaluator.package import Package

    opened, found = Package(package), Worst()
    for one, shape in zip(functions, shapes, strict=True):
        places = Places(one.module)
        for latents, context in real_clips(data, pipeline, shape):
            for level in LEVELS:
                generator = torch.Generator().manual_seed(0)
                noise = torch.randn(latents.shape, generator=generator)
                noisy = mix(latents[None], noise[None], torch.tensor([level]))[0]
                timestep = torch.tensor([TIMESTEPS * level])
                check = check_package(opened, one.module, (noisy, timestep, context), one.names, one.name)
                if not all(bool(output.isfinite().all()) for output in check.audit.outputs.values()):
                    lost = placed(check.audit.told(), places)["not_finite"]
                    raise AnswerIsNo(
                        f"{package.name}, function {one.name}: at noise level {level} of {data} the answer is not "
                        f"finite; {lost[0]!r} is the first of {len(lost)} that are not; {remedy(check)}"
                    )
                found.add(check, level, places)
                found.hear(timestep, dict(opened.function(one.name).inputs)[one.names[1]].kind, level)
    return {"clips": str(data), "levels": list(LEVELS), **found.told()}


class Worst:
    """The worst reading of each operation, over clips, levels and functions."""

    def __init__(self) -> None:
        self.error = 0.0
        self._readings: dict[str, tuple[Reading, Told]] = {}
        self._jumps: dict[str, Told] = {}

    def add(self, check: Check, level: float, places: Places) -> None:
        """Take in one evaluation."""
        self.error = max(self.error, check.error_fp16)
        for one in check.audit.readings:
            name = f"{check.function} {one.name}"
            if name not in self._readings or one.headroom < self._readings[name][0].headroom:
                self._readings[name] = (one, {**placed({"one": one.told()}, places)["one"], "level": level})
        jump = check.audit.first_jump
        if jump is not None and check.error_fp16 > LOSS:  # else it is of a term too small to matter, as an epsilon
            self._jumps.setdefault(
                f"{check.function} {jump.name}", {**placed({"one": jump.told()}, places)["one"], "level": level}
            )

    def hear(self, timestep: Tensor, kind: str, level: float) -> None:
        """Note a timestep that its input rounds."""
        off = float((timestep.half().float() - timestep).abs()) if kind == "FLOAT16" else 0.0
        if off:
            told = {"name": "timestep", "operation": "input", "place": "the inputs", "error": off, "level": level}
            known = self._jumps.get("timestep")
            self._jumps["timestep"] = told if known is None or off > known["error"] else known

    def told(self) -> Told:
        """See ``audit_network``."""
        ordered = sorted(self._readings.values(), key=lambda pair: pair[0].headroom)
        by_operation: dict[str, Told] = {}
        for reading, told in ordered:
            by_operation.setdefault(reading.operation, told)
        lost = [told for reading, told in ordered if reading.headroom < 1 or reading.not_finite]
        return {
            "error": float(f"{self.error:.4g}"),
            "by_operation": by_operation,
            "overflow": lost,
            "loses_precision": list(self._jumps.values()),
        }


def real_clips(data: Path, pipeline: Any, shape: Shape) -> Iterator[tuple[Tensor, Tensor]]:
    """(t, C, h, w) latents and (1, L, D) text states of ``CLIPS`` clips at most, of a shape in pixels.

    Raises:
        NasError: if there is none.
    """
    from nas.config import DataConfig
    from nas.data import open_data
    from nas.data.cached import HEADER
    from nas.pretrained.autoencoder import VideoAutoencoder

    if not data.is_dir():
        raise NasError(f"--audit {data}: must be a cache or a folder of captioned clips; no folder is there")
    space = pipeline.unet.space
    if (data / HEADER).is_file():
        yield from _cached(data, pipeline, shape)
        return
    frames, height, width = shape
    clip = replace(space.clip("training"), frames=frames, height=height, width=width)
    autoencoder = None if pipeline.vae is None else VideoAutoencoder(pipeline.vae, "vae")
    with tempfile.TemporaryDirectory() as decoded:
        found = open_data(DataConfig(source="folder", path=data, cache=Path(decoded)), clip, "train", 0)
        for index in range(CLIPS):
            item = found[index]
            video = item["video"] if autoencoder is None else autoencoder.encode(item["video"])
            yield video, pipeline.encode([item["caption"]])


def _cached(data: Path, pipeline: Any, shape: Shape) -> Iterator[tuple[Tensor, Tensor]]:
    from nas.data.cached import LatentCache
    from search_spaces.space import latent_shape

    space = pipeline.unet.space
    frames, height, width = latent_shape(space, *shape)
    cache, wanted = LatentCache(data), (frames, space.latent_channels, height, width)
    fits = [entry for entry in cache.entries if entry.shape == wanted and not entry.still]
    if not fits:
        held = sorted({"x".join(map(str, entry.shape)) for entry in cache.entries if not entry.still})
        raise NasError(
            f"--audit {data}: holds latents of {', '.join(held) or 'no clip'} and none of "
            f"{'x'.join(map(str, wanted))} (frames, channels, height, width), as the package at "
            f"{'x'.join(map(str, shape))} takes; export with a --shape of the cached clips"
        )
    for entry in fits[:: max(1, len(fits) // CLIPS)][:CLIPS]:
        yield cache.tensor(entry.shard, entry.name), pipeline.encode([entry.caption])
