"""What weight sharing costs a training step: the supernet on a path against the plain network of the same arrangement.

A step is forward, loss, backward, gradient clipping and AdamW, on the same batch. Both sides keep optimiser state for
what they train, so the supernet's holds every layer ever walked. Steps are interleaved in shuffled order and medians
compared. Memory is, with CUDA, the peak of the device, read in a process of its own for each side; on a CPU what must
live at once: weights, gradients, optimiser state and the activations kept for the way back. Exit code 1 above the
target.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nas.config import TrainConfig
from nas.supernet.supernet import Supernet
from nas.tasks.noise import mix, velocity
from nas.training.optimizers import build_optimizer
from search_spaces.arrangement import Arrangement
from search_spaces.space import Space

TARGET = 1.05
SEED = 7


def arrangement_of(space: Space) -> Arrangement:
    return space.sample(np.random.default_rng(SEED))


def stepper(
    side: str, space: Space, options: argparse.Namespace
) -> tuple[Callable[[], float], Callable[[], list[Tensor]]]:
    """One side: a function that makes one training step and returns its loss, and one that lists what is kept."""
    torch.manual_seed(SEED)
    device = torch.device(options.device)
    path = arrangement_of(space)
    supernet = Supernet(space)
    model: nn.Module = supernet if side == "supernet" else supernet.extract(path)
    del supernet
    model.to(device).train()
    config = TrainConfig(learning_rate=1e-4)
    optimizer = build_optimizer(config, [{"params": list(model.parameters())}], device)
    frames, channels, height, width = space.latent_shape(options.clip)
    generator = torch.Generator().manual_seed(SEED)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    video, noise = (
        draw(options.batch, frames, channels, height, width),
        draw(options.batch, frames, channels, height, width),
    )
    context = draw(options.batch, space.text.tokens, space.text.dim)
    level = torch.full((options.batch,), 0.5, device=device)
    noisy, target = mix(video, noise, level).flatten(0, 1), velocity(video, noise).flatten(0, 1)
    more: tuple[Any, ...] = (path,) if side == "supernet" else ()

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16"):
            loss = nn.functional.mse_loss(model(noisy, 1000 * level, context, frames, *more).float(), target)
        loss.backward()
        nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], 1.0)
        optimizer.step()
        return float(loss.detach())

    def kept() -> list[Tensor]:
        states = [value for entries in optimizer.state.values() for value in entries.values()]
        return [*model.parameters(), *(p.grad for p in model.parameters() if p.grad is not None), *states]

    return step, kept


def timed(step: Callable[[], float], device: str) -> float:
    started = time.perf_counter()
    step()  # its loss is read, so the device is done
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - started


def memory_mb(side: str, space: Space, options: argparse.Namespace) -> float:
    """What training one side needs at once; of a CUDA device it is the peak so far, so call it in a fresh process."""
    step, kept = stepper(side, space, options)
    step()
    if options.device.startswith("cuda"):
        step()
        return torch.cuda.max_memory_allocated() / 1e6
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step()
    for tensor in kept():  # weights are saved for the way back as well: once is enough
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(saved.values()) / 1e6


def in_process(side: str) -> float:
    command = [sys.executable, "-W", "ignore", __file__, *sys.argv[1:], "--memory-of", side]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--space", default="tiny")
    parser.add_argument("--clip", default="training")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--memory-of", choices=("supernet", "plain"))
    options = parser.parse_args()
    if options.device == "cpu":
        torch.set_num_threads(1)
    space = Space.load(options.space)
    if options.memory_of:
        print(memory_mb(options.memory_of, space, options))
        return 0
    sides = ("supernet", "plain")
    steps = {side: stepper(side, space, options)[0] for side in sides}
    losses = {side: steps[side]() for side in sides}
    assert abs(losses["supernet"] - losses["plain"]) <= 1e-4 * abs(losses["plain"]), losses  # the same network
    for side in sides:
        for _ in range(3):
            steps[side]()
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    order = random.Random(SEED)
    for _ in range(options.rounds):
        for side in order.sample(sides, 2):
            seconds[side].append(timed(steps[side], options.device))
    median = {side: statistics.median(seconds[side]) for side in sides}
    ratios = sorted(a / b for a, b in zip(seconds["supernet"], seconds["plain"], strict=True))
    spread = (ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4])
    measure = in_process if options.device.startswith("cuda") else lambda side: memory_mb(side, space, options)
    memory = {side: measure(side) for side in sides}
    shape = "x".join(map(str, space.latent_shape(options.clip)))
    print(
        f"{space.name}, {options.batch} clips of {shape}, {options.precision} on {options.device}, "
        f"{options.rounds} rounds"
    )
    print(f"{'':12}{'ms a step':>12}{'MB':>12}")
    for side in sides:
        print(f"{side:12}{1e3 * median[side]:>12.2f}{memory[side]:>12.1f}")
    ratio = median["supernet"] / median["plain"]
    print(f"{'ratio':12}{ratio:>12.3f}{memory['supernet'] / memory['plain']:>12.3f}")
    print(f"half of the rounds' ratios lie within {spread[0]:.3f}..{spread[1]:.3f}")
    result = {
        "step_ratio": round(ratio, 4),
        "memory_ratio": round(memory["supernet"] / memory["plain"], 4),
        "step_ms": {side: round(1e3 * median[side], 3) for side in sides},
        "memory_mb": {side: round(memory[side], 1) for side in sides},
        "space": space.name,
        "device": options.device,
    }
    print(json.dumps(result))
    return 0 if ratio <= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
