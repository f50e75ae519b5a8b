"""Pruning from end to end: of a frame's own parts, or of the blocks that a space lets be chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from nas.errors import NasError
from nas.prune.asked import Asked, check_folder
from nas.prune.config import PruneSettings
from search_spaces.space import Space


def prune_network(
    source: str,
    space: str | Path,
    out: Path,
    settings: PruneSettings,
    *,
    parameters: float | None = None,
    latency_ms: float | None = None,
    memory_mb: float | None = None,
    device: str = "host_cpu",
    table: Path = Path("tables"),
    text: str | None = None,
) -> dict[str, Any]:
    """Prune a network into ``out``; goes on where a part of that work is there.

    Where the space's family names cuts of its frame, a given frame is cut: see ``prune_frame``. Elsewhere the uncut
    network is the space's baseline, and narrower blocks, or none, take the place of its own: see ``prune_blocks``.

    Args:
        source: hub id or folder of a diffusers model or pipeline; for blocks a run's folder too. space: latents, text
            and clips, and what may be left.
        parameters, latency_ms, memory_mb: the target, one of them. device, table: where latency and memory come from.
        text: CLIP text model for data that is no cache; by default that of the source.

    Raises:
        NasError: if the source, the space and the data do not fit each other, or no cut leads to the target.
    """
    targets = {"parameters": parameters, "latency_ms": latency_ms, "memory_mb": memory_mb}
    given = {name: value for name, value in targets.items() if value is not None}
    if len(given) > 1:
        raise NasError(f"{' and '.join(_flag(name) for name in given)} are two targets; give one")
    loaded = Space.load(space)
    check_folder(out)
    cost, target = next(iter(given.items()), ("parameters", None))
    asked = Asked(source, loaded, out, settings, cost, target, device, table, text)
    if settings.prune.threads:
        torch.set_num_threads(settings.prune.threads)
    pruning = loaded.backbone.family.pruning()
    if pruning is not None:
        from nas.prune.frame import prune_frame

        return prune_frame(asked, pruning)
    if not loaded.baseline().num_layers:
        raise NasError(f"networks of family {loaded.backbone.family.name} have nothing that nas prune could take out")
    if target is None:
        raise NasError(f"give a target: {', '.join(_flag(name) for name in targets)}")
    from nas.prune.blocks import prune_blocks

    return prune_blocks(asked)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def render(told: dict[str, Any]) -> str:
    """A pruning's result for people: what was cut, and what is missed."""
    if "kept" in told:
        from nas.prune.blocks import render_blocks

        return render_blocks(told)
    cuts = told["cuts"]
    worst = max((step["loss"] for step in cuts), default=0.0) or 1.0
    lines = [f"{'cut':<28} {told['cost']:>14} {'missed':>8}"]
    for step in cuts:
        lines.append(
            f"{step['cut']:<28} {step['cost']:>14,.10g} {step['loss']:>8.4f} {'#' * round(30 * step['loss'] / worst)}"
        )
    kept = told["parameters"] / told["parameters_before"]
    lines.append(
        f"{told['unet']}: {told['parameters']:,} parameters, {kept:.0%} of {told['parameters_before']:,}; misses "
        f"{told['missed']:.4f} of the uncut answer, {told['missed_before_recovery']:.4f} before recovery"
    )
    lines.append(f"next       nas train {told['space']} --init {told['unet']} --out RUN")
    return "\n".join(lines)
