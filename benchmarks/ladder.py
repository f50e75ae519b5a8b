"""SnapGen's five changes on `tiny_image`, each design trained alone: loss, host milliseconds, and the phone's roofline.

Depthwise convolutions need not be faster on a CPU: this says what the device at hand answers.

    python benchmarks/ladder.py [--quick] [--steps N] [--seeds N]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from device_profiler.device import Device
from nas.config import resolve
from nas.data import open_data
from nas.pretrained.text import TextEncoder
from nas.ranking.alone import train_alone
from nas.run.costs import cost_model, load_table, profile_space
from nas.search.ladder import designs, read_ladder
from nas.supernet.quality import Quality
from nas.supernet.supernet import Supernet
from search_spaces.space import Space

DEVICES = ("host_cpu", "iphone16_pro_max_roofline")
SPACE = "tiny_image"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    steps, seeds = (3, 1) if args.quick else (args.steps, args.seeds)
    space = Space.load(SPACE)
    ladder = designs(read_ladder("snapgen"), space)
    with tempfile.TemporaryDirectory() as folder:
        ms = {device: latencies(space, ladder, device, Path(folder)) for device in DEVICES}
    losses = [[loss_alone(space, design, steps, seed, args.quick) for seed in range(seeds)] for _, design in ladder]
    print(f"{'loss':>8} {'over seeds':>10} {'host ms':>9} {'phone ms':>9}  step ({steps} steps alone, {seeds} seeds)")
    for index, (step, _) in enumerate(ladder):
        spread = max(losses[index]) - min(losses[index])
        costs = " ".join(f"{ms[device][index]:9.3f}" for device in DEVICES)
        print(f"{statistics.mean(losses[index]):8.4f} {spread:10.4f} {costs}  {step}")
    told: dict[str, Any] = {"steps": steps, "losses": losses, "names": [step for step, _ in ladder], **ms}
    print(json.dumps(told))
    return 0


def latencies(space: Space, ladder: Any, device: str, folder: Path) -> list[float]:
    """Each design's sum of rows."""
    profile_space(space.name, device, folder)
    costs = cost_model(space, load_table(Device.load(device), folder))
    return [float(ms) for ms in costs.cost(np.stack([costs.encode(d.labels()) for _, d in ladder])).latency_ms]


def loss_alone(space: Space, design: Any, steps: int, seed: int, quick: bool) -> float:
    """The validation loss of a design after training alone from nothing."""
    config = resolve(SPACE, None, None, [f"seed={seed}", "train.clips=16", "train.threads=1"])
    clip = space.clip("training")
    data = open_data(config.data, clip, "train", seed)
    torch.manual_seed(seed)
    start = Supernet(space), TextEncoder.small(space, data.captions)
    nets = train_alone(space, data, config.train, design, start, steps=steps, seed=seed)
    held = open_data(config.data.model_copy(update={"validation_clips": 16 if quick else 256}), clip, "validation")
    quality = config.quality.model_copy(update={"clips": 16 if quick else 256})
    return float(Quality(*nets, held, quality).score(design).loss)


if __name__ == "__main__":
    raise SystemExit(main())
