"""The roofline estimate: no device, only operations, bytes moved, and ceilings that the device's YAML states."""

from __future__ import annotations

import math
from collections.abc import Sequence

from device_profiler.device import Device, Roofline
from device_profiler.errors import ProfileError
from device_profiler.lowering import Lowered
from device_profiler.lowering.kinds import CONV, MATMUL, OTHER
from device_profiler.runtimes.contract import Execution, Facts
from device_profiler.subject import package_version

ESTIMATOR = "roofline-per-operation-2"
DISPATCHED = ("backbone", "network", "text_encoder", "decoder")  # programs by themselves; a layer is part of one


class Estimate:
    """The answer for one workload, the same on every machine and every call."""

    def __init__(self, latency_ms: float, facts: Facts) -> None:
        self.facts = facts
        self._latency_ms = latency_ms

    def run(self, repeats: int, timeout_s: float) -> list[Execution]:
        """The estimate, once."""
        return [Execution(self._latency_ms)]

    def close(self) -> None:
        """Nothing is held."""


class RooflineRuntime:
    """Each operation takes the longer of computing and of moving its tensors (Williams et al. 2009), one after another.

    A convolution and a matrix product compute at ceilings of their own, where the device states them. Operations that
    only change a view take nothing; a program costs one dispatch, which a layer within it does not pay again. Attention
    counts as one operation in the ``fused`` lowering; the ``decomposed`` one also moves its score matrix.
    """

    source = "estimated"
    toolkit = "counts"

    def __init__(self, device: Device) -> None:
        if device.roofline is None:
            raise ProfileError(f"{device.name}: runtime roofline needs a 'roofline' section; see a shipped device.")
        self.device = device
        self.ceilings: Roofline = device.roofline
        self.tolerance = float("inf")

    def check(self) -> None:
        """Nothing is needed beyond torch, which counts."""

    def describe(self) -> dict[str, str]:
        """The estimator and its ceilings."""
        c = self.ceilings
        own = {"convolution": c.conv_tflops, "matrix product": c.matmul_tflops}
        parts = [f"{c.peak_tflops:g} TFLOP/s x {c.efficiency:g}", f"{c.bandwidth_gb_s:g} GB/s"]
        parts += [f"{name} {rate:g} TFLOP/s" for name, rate in own.items() if rate]
        parts += [f"dispatch {c.dispatch_us:g} us"] if c.dispatch_us else []
        return {
            "chip": self.device.chip,
            "os": self.device.os,
            "runtime_version": f"{ESTIMATOR}: {', '.join(parts)}",
            "toolkit_version": f"torch {package_version('torch')}",
        }

    def latency_ms(self, operations: Sequence[tuple[float, float, str]]) -> float:
        """Sum over (FLOPs, bytes, kind) of each operation, in ms."""
        c = self.ceilings
        usual = c.peak_tflops * c.efficiency
        peaks = {CONV: c.conv_tflops or usual, MATMUL: c.matmul_tflops or usual, OTHER: usual}
        bandwidth, least = c.bandwidth_gb_s * 1e9, c.overhead_us * 1e-6
        seconds = sum(max(flops / (peaks[kind] * 1e12), moved / bandwidth, least) for flops, moved, kind in operations)
        return seconds * 1e3

    def load(self, lowered: Lowered, timeout_s: float) -> Estimate:
        """The estimate of a counted workload."""
        stats = lowered.stats
        facts = Facts(
            weights_mb=stats["weights_mb"],
            activation_peak_mb=stats["activation_peak_mb"],
            static_peak_mb=stats["weights_mb"] + stats["activation_peak_mb"],
            estimator=ESTIMATOR,
        )
        dispatch = (self.ceilings.dispatch_us or 0.0) / 1e3 if lowered.subject.workload.block in DISPATCHED else 0.0
        return Estimate(self.latency_ms(stats["operations"]) + dispatch, facts)

    def capacity_mb(self) -> float:
        """Nothing is loaded, so everything fits."""
        return math.inf

    def close(self) -> None:
        """Nothing is held."""
