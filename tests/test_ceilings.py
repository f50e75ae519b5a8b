"""The roofline's ceilings: one for convolutions, one for products, one for memory, and what a dispatch costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from profiler_fakes import artifact
from torch import nn

from device_profiler.device import Device, Roofline
from device_profiler.lowering import Lowered, default_lowerings
from device_profiler.lowering import lower as lower_here
from device_profiler.lowering.counts import lower
from device_profiler.lowering.kinds import CONV, MATMUL, OTHER
from device_profiler.runtimes.roofline import RooflineRuntime
from device_profiler.subject import Subject
from search_spaces.space import Space
from search_spaces.workload import Workload


def runtime(**ceilings: Any) -> RooflineRuntime:
    plain = {"peak_tflops": 10.0, "bandwidth_gb_s": 50.0, "efficiency": 0.5, "overhead_us": 2.0, "source": "made up"}
    return RooflineRuntime(Device(name="chip", runtime="roofline", roofline=Roofline(**{**plain, **ceilings})))


def test_an_operation_takes_the_longer_of_computing_and_moving() -> None:
    chip = runtime()
    compute, move = 1e12 / 5e12 * 1e3, 1e9 / 50e9 * 1e3
    for kind in (CONV, MATMUL, OTHER):
        assert chip.latency_ms([(1e12, 1.0, kind)]) == pytest.approx(compute)
        assert chip.latency_ms([(1.0, 1e9, kind)]) == pytest.approx(move)
    assert chip.latency_ms([(1e12, 1.0, CONV), (1.0, 1e9, OTHER)]) == pytest.approx(compute + move)
    assert chip.latency_ms([(1.0, 1.0, OTHER)]) == pytest.approx(2e-3)


def test_convolutions_and_products_have_ceilings_of_their_own() -> None:
    chip = runtime(conv_tflops=8.0, matmul_tflops=2.0)
    taken = {kind: chip.latency_ms([(1e12, 1.0, kind)]) for kind in (CONV, MATMUL, OTHER)}
    assert taken == pytest.approx({CONV: 125.0, MATMUL: 500.0, OTHER: 200.0}), "measured: no efficiency on top"
    assert runtime(conv_tflops=8.0).latency_ms([(1e12, 1.0, MATMUL)]) == pytest.approx(200.0)


def counted(workload: Workload) -> Lowered:
    """An artifact of one convolution."""
    stats: dict[str, Any] = {"activation_peak_mb": 1.0, "operations": [[1e9, 1.0, CONV]]}
    return replace(artifact("Conv1D", **stats), subject=Subject(workload, "" if workload.is_block else "tiny"))


def test_a_dispatch_is_paid_once_by_a_program_and_not_by_its_layers() -> None:
    free, paid = runtime(), runtime(dispatch_us=95.0)
    space = Space.load("tiny")
    layer = counted(space.workloads("fp16")[-1])
    assert layer.subject.workload.is_block
    assert paid.load(layer, 1.0).run(1, 1.0)[0].ms == free.load(layer, 1.0).run(1, 1.0)[0].ms
    for whole in (space.backbone_workload("fp16"), *space.ends("fp16")):
        made = counted(whole)
        more = paid.load(made, 1.0).run(1, 1.0)[0].ms - free.load(made, 1.0).run(1, 1.0)[0].ms
        assert more == pytest.approx(0.095)


def test_a_networks_estimate_stays_the_sum_of_its_rows(tmp_path: Path) -> None:
    """Each row with a dispatch of its own would add one for every layer."""
    space, device = Space.load("tiny"), Device.load("iphone16_pro_max_roofline")
    assert device.roofline is not None and device.roofline.dispatch_us
    arrangement = space.arrange({name: ["Conv1D(kernel_size=3)"] for name in ("down.0.0", "down.1.0")})

    def estimate(workload: Workload) -> float:
        subject = Subject(
            workload, "" if workload.is_block else "tiny", arrangement if "net" in workload.block else None
        )
        lowered = lower_here(subject, "counts", default_lowerings("counts", workload)[0], tmp_path)
        return RooflineRuntime(device).load(lowered, 1.0).run(1, 1.0)[0].ms

    layers = [space.workload(name, variant, "fp16") for name, variants in arrangement.layers for variant in variants]
    parts = {workload.key: estimate(workload) for workload in {space.backbone_workload("fp16"), *layers}}
    total = parts[space.backbone_workload("fp16").key] + sum(parts[layer.key] for layer in layers)
    assert len(layers) == 2 and estimate(space.network_workload(arrangement, "fp16")) == pytest.approx(total, rel=1e-6)


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv3d(4, 4, 3, padding=1), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x).flatten(2).transpose(1, 2)
        y = nn.functional.scaled_dot_product_attention(y, y, y)
        return torch.relu(self.linear(y))


@pytest.mark.parametrize("attention", ["fused", "decomposed"])
def test_what_computes_is_told_apart(attention: str, tmp_path: Path) -> None:
    stats = lower(Mixed(), (torch.zeros(1, 4, 2, 3, 3),), ("x",), attention, "fp16", tmp_path)
    kinds = {kind for flops, _, kind in stats["operations"] if flops}
    assert kinds == {CONV, MATMUL}
    assert all(kind == OTHER for flops, _, kind in stats["operations"] if not flops)
    assert [kind for _, _, kind in stats["operations"]].count(CONV) == 1
    assert stats["flops"] == sum(flops for flops, _, _ in stats["operations"])


def test_the_shipped_phone_says_whose_figures_its_ceilings_are() -> None:
    device = Device.load("iphone16_pro_max_roofline")
    roof = device.roofline
    assert roof is not None and roof.conv_tflops and roof.matmul_tflops and roof.conv_tflops > roof.matmul_tflops
    assert 95 <= (roof.dispatch_us or 0) <= 230, "0.1 to 0.23 ms a dispatch"
    for name in ("measure_ane_capacity", "maderix", "arXiv 2606.22283", "assumptions"):
        assert name in roof.source
    told = RooflineRuntime(device).describe()["runtime_version"]
    assert "convolution 17 TFLOP/s, matrix product 5.25 TFLOP/s, dispatch 95 us" in told
