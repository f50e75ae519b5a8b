"""What a training would take, before anything is opened or written: memory, disk and days."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.config import RunConfig, as_begun, check_warmup
from nas.errors import NasError
from nas.run.costs import draw_within

if TYPE_CHECKING:
    from device_profiler.device import Device
    from nas.supernet.estimate import StepEstimate

BEST = 1  # checkpoints that are kept beside the newest ones: the best validated


@dataclass(frozen=True)
class Ahead:
    """A training as it is configured, what a step takes, and the device that it is told for.

    Attributes:
        tflops: what the device reaches in this precision; None where its YAML does not say.
        room_mb: the device's memory, where its YAML says. processes: that share a step's clips, one device each.
    """

    config: RunConfig
    step: StepEstimate
    precision: str
    device: Device
    tflops: float | None
    processes: int
    latent: tuple[int, ...]

    @property
    def room_mb(self) -> float | None:
        return self.device.memory_limit_mb

    @property
    def clips(self) -> int:
        """Clips of a step on each device."""
        return self.config.train.clips // self.processes

    @property
    def at_once(self) -> int | None:
        """How many of them fit into the device's memory at once."""
        return None if self.room_mb is None else min(self.clips, self.step.clips_within(1e6 * self.room_mb))

    @property
    def days(self) -> float | None:
        if self.tflops is None:
            return None
        return self.step.total_operations(self.config.train) / self.processes / (1e12 * self.tflops) / 86400

    @property
    def kept(self) -> int:
        train = self.config.train
        return train.keep + (BEST if train.validate_every else 0)

    def to_json(self) -> dict[str, Any]:
        step = self.step
        return {
            "estimate": True,
            "parameters": step.parameters,
            "layer_parameters": step.layers,
            "state_gb": step.state_bytes / 1e9,
            "optimizer_gb": step.optimizer_bytes / 1e9,
            "gradients_gb": step.gradient_bytes / 1e9,
            "clip_gb": step.clip_bytes / 1e9,
            "fixed_gb": step.fixed_bytes / 1e9,
            "precision": self.precision,
            "latent": list(self.latent),
            "operations_a_step": step.operations,
            "warm_operations_a_step": step.warm_operations,
            "checkpoint_gb": step.state_bytes / 1e9,
            "checkpoints_kept": self.kept,
            "device": self.device.name,
            "device_tflops": self.tflops,
            "clips_at_once": self.at_once,
            "steps": self.config.train.steps,
            "processes": self.processes,
            "days": self.days,
        }

    def render(self) -> str:
        """The same for a person, a line each."""
        step, train = self.step, self.config.train
        shape = "x".join(map(str, self.latent))
        again = ", activations computed again" if train.activation_checkpoints else ""
        lines = [
            ("parameters", f"{step.parameters:,}, of them {step.layers:,} in the layers that are chosen among"),
            (
                "state",
                f"{_size(step.state_bytes)}: weights, their averages, and {_size(step.optimizer_bytes)} of the "
                f"optimiser ({train.optimizer})",
            ),
            (
                "memory",
                f"{_size(step.clip_bytes)} a clip of {shape} along the deepest path in {self.precision}{again}; beside "
                f"it {_size(step.fixed_bytes)} of any step and {_size(step.gradient_bytes)} of gradients",
            ),
            (
                "operations",
                f"{_count(step.operations)} a step of {train.clips * train.accumulate} clips "
                f"({train.paths}); {_count(step.warm_operations)} in the warm-up",
            ),
            (
                "checkpoint",
                f"{_size(step.state_bytes)}, at most {self.kept} kept and one more while it is written: "
                f"{_size((self.kept + 1) * step.state_bytes)} of disk",
            ),
            (self.device.name, self._on_device()),
            ("estimate", "counted on the modules with shapes alone, without kernels' workspaces; nothing was written"),
        ]
        return "\n".join(f"{name:<14} {text}" for name, text in lines)

    def _on_device(self) -> str:
        several = f" on each of {self.processes}" if self.processes > 1 else ""
        if self.at_once is None:
            fits = "its memory is not stated"
        elif self.at_once < 1:
            fits = f"not one clip fits its {_size(1e6 * (self.room_mb or 0))}; try train.activation_checkpoints=true"
        else:
            fits = f"{self.at_once} of {self.clips} clips{several} fit its {_size(1e6 * (self.room_mb or 0))} at once"
        if self.days is None:
            return f"{fits}; days not told, as its YAML does not state a peak in {self.precision}"
        speed = f"{self.tflops:.0f} TFLOP/s"
        return f"{fits}; {self.config.train.steps:,} steps take {_days(self.days)} at {speed}, data not counted"


def dry_run(config: RunConfig, out: Path, device: str, processes: int = 1) -> Ahead:
    """What ``nas train`` would take; nothing is opened or written.

    Args:
        out: its run folder: what was begun there, and the table that ``train.paths=within_budget`` needs. device: whose
            memory and speed count, by the roofline of its YAML. processes: devices that share each step.

    Raises:
        NasError: on settings that ``nas train`` would refuse before it opens the data, or a device without a roofline.
    """
    from device_profiler.device import Device
    from nas.supernet.estimate import estimate_step
    from search_spaces.space import Space

    check_warmup(config.train)
    config = as_begun(config, out)
    space, target = Space.load(config.space), Device.load(device)
    if target.roofline is None:
        raise NasError(f"--on {device}: states no roofline, so no days follow from it; name one that does")
    if config.train.clips % processes:
        raise NasError(
            f"train.clips must divide by the {processes} processes that share it, but is {config.train.clips}"
        )
    precision = config.train.precision
    if precision == "auto":
        precision = "bf16" if target.compute_unit == "CUDA" else "fp32"
    within = draw_within(config, out) if config.train.paths == "within_budget" else None
    draw, held = (within.draw, within.layers) if within is not None else (None, None)
    step = estimate_step(space, config.train, precision, draw, config.seed, held)
    frames, channels, height, width = space.latent_shape("training")
    tflops = _reached(target, precision, config.train.tf32)
    return Ahead(config, step, precision, target, tflops, processes, (frames, channels, height, width))


def _reached(device: Device, precision: str, tf32: bool) -> float | None:
    """The device's peak in a precision times its efficiency, in TFLOP/s."""
    line = device.roofline
    assert line is not None
    if precision == "fp32" and device.precision != "fp32":
        peak = line.tf32_tflops if tf32 else line.fp32_tflops
    else:
        peak = line.peak_tflops
    return None if peak is None else peak * line.efficiency


def _size(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _count(operations: float) -> str:
    for unit, least in (("P", 1e15), ("T", 1e12), ("G", 1e9)):
        if operations >= least:
            return f"{operations / least:.2f} {unit}FLOP"
    return f"{operations:.3g} FLOP"


def _days(days: float) -> str:
    for unit, least in (("days", 1.0), ("hours", 1 / 24)):
        if days >= least:
            return f"{days / least:.1f} {unit}"
    return f"{1440 * days:.1f} minutes"
