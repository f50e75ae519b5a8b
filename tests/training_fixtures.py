"""A training that takes seconds: moving shapes, few clips, few steps, one thread."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nas.config import DataConfig, TrainConfig
from nas.data import Dataset, open_data
from nas.supernet.stage import train
from search_spaces.space import Space

DATA = DataConfig(source="moving_shapes", validation_clips=8)


def tiny() -> Space:
    torch.set_num_threads(1)
    return Space.load("tiny")


def members(
    target: Callable[..., None], *arguments: Any, method: str = "forkserver"
) -> tuple[list[int | None], list[Any]]:
    """Run ``target(rank, *arguments, said)`` in two processes at once; their exit codes, and what they ``said.put``.

    They are forked by a server that has the libraries and no threads: a fork of a process whose torch has threads may
    crash when its own begin. ``method="fork"`` is for arguments that cannot be pickled.
    """
    context: Any = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["accelerate", "torch.distributed.fsdp", "nas.supernet.stage"])
    said = context.SimpleQueue()
    started = [context.Process(target=target, args=(rank, *arguments, said)) for rank in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    found = []
    while not said.empty():
        found.append(said.get())
    said.close()
    return [process.exitcode for process in started], found


def clips(split: Any = "train") -> Dataset:
    return open_data(DATA, tiny().clip("training"), split, seed=0)


def short(**changes: Any) -> TrainConfig:
    """Six steps, two of them on the backbone alone, a checkpoint every second one."""
    settings = {"steps": 6, "warmup_steps": 2, "clips": 2, "images": 2, "checkpoint_every": 2, "ramp_steps": 1}
    settings |= {"workers": 0, "trackers": (), "paths": "fair"}  # one path a step is quickest
    return TrainConfig(**{**settings, **changes, "threads": 1})


def run(folder: Path, config: TrainConfig | None = None, space: Space | None = None, **more: Any) -> None:
    """Train in ``folder``, or go on."""
    train(space or tiny(), more.pop("data", None) or clips(), config or short(), folder, seed=5, **more)


def losses(folder: Path) -> list[tuple[int, float, float]]:
    """Step, loss and gradient norm of each row of the log."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"], row["grad_norm"]) for row in rows]
