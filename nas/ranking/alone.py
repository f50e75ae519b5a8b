"""One arrangement trained alone from a warm start: the truth that a supernet's scores stand for."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nas.config import TrainConfig
from nas.data import Dataset
from nas.pretrained.text import TextEncoder
from nas.supernet.stage import begin
from nas.supernet.supernet import Supernet
from nas.training.log import Step
from nas.training.loop import Loop
from search_spaces.arrangement import Arrangement
from search_spaces.space import Space


def train_alone(
    space: Space,
    data: Dataset,
    config: TrainConfig,
    arrangement: Arrangement,
    start: tuple[Supernet, TextEncoder],
    *,
    steps: int,
    seed: int,
    inherit: bool = False,
    progress: Callable[[Step], None] | None = None,
) -> tuple[Supernet, TextEncoder]:
    """Train one path for ``steps`` steps, everything else as the supernet is trained; averaged weights come back.

    Args:
        config: the supernet's; its steps, warm-up, sandwich and trackers do not apply here.
        start: supernet and text encoder to start from; not changed.
        seed: of new layers, of the order of the data, and of noise.
        inherit: start the arrangement's temporal layers from ``start`` too, and not anew.

    Returns:
        A supernet and text encoder in evaluation mode, in which only this path is trained.

    Raises:
        NasError: if a step goes wrong again and again.
    """
    with tempfile.TemporaryDirectory() as folder:
        loop = begin(
            space,
            data,
            _alone(config, steps),
            Path(folder),
            seed,
            lambda message: None,
            draw=lambda step: [arrangement],
            start=start,
            temporal=inherit,
            held=start[0].held if inherit else None,
        )
        _run(loop, progress)
        for module in (loop.stage.supernet, loop.stage.text):
            module.eval().requires_grad_(False)
        return loop.stage.supernet, loop.stage.text


def _run(loop: Loop[Any], progress: Callable[[Step], None] | None) -> None:
    """All steps; the averaged weights stand in the loop's modules then."""
    loop.save()  # to go back to, should a step go wrong
    try:
        while loop.step < loop.stage.config.steps:
            row = loop.advance()
            if row is not None and progress is not None:
                progress(Step.of(row))
    finally:
        loop.close()
    loop.load_average()


def _alone(config: TrainConfig, steps: int) -> TrainConfig:
    """The supernet's settings without what does not apply to one arrangement."""
    return config.model_copy(
        update={
            "steps": steps,
            "warmup_steps": 0,
            "validate_every": 0,
            "sample_every": 0,
            "checkpoint_every": steps,
            "trackers": (),
            "init": None,
        }
    )
