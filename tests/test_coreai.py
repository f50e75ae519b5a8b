"""Core AI: files that its own runtime executes here, and a runtime that is no clock on Linux."""

import importlib.util
import platform
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from device_profiler import ProfileError
from device_profiler.device import Device
from device_profiler.errors import WorkloadError
from device_profiler.lowering import coreai, lower
from device_profiler.runtimes.contract import open_runtime
from device_profiler.runtimes.in_child import ChildSession
from device_profiler.subject import Subject
from search_spaces.workload import Workload

needs_coreai = pytest.mark.skipif(not coreai.available(), reason=f"coreai-torch is not installed: {coreai.INSTALL}")


class Traps(nn.Module):
    """What coreml's converter changes or refuses, in one module."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.rms, self.group = nn.Linear(32, 32), nn.RMSNorm(32, eps=1e-5), nn.GroupNorm(4, 32)

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        y = self.group(self.rms(self.linear(x)).transpose(1, 2)).transpose(1, 2)
        heads = y.reshape(y.shape[0], -1, 4, 8).transpose(1, 2)
        attended = F.scaled_dot_product_attention(heads, heads[:, :2], heads[:, :2], enable_gqa=True, scale=0.3)
        return torch.concatenate([attended[:, n : n + 1] for n in range(4)], 1) * torch.sin(timestep).to(x.dtype)


@needs_coreai
def test_two_functions_share_their_weights_and_each_is_the_module(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, path, names = Traps().eval(), tmp_path / "two.aimodel", ("x", "timestep")
    calls = {
        name: (1e-3 * torch.randn(1, length, 32), torch.tensor([999.3]))
        for name, length in zip("ab", (8, 4), strict=True)
    }
    for half, bound in ((False, 1e-4), (True, 5e-3)):
        entries = [coreai.Entry(name, module, inputs) for name, inputs in calls.items()]
        coreai.write(entries, names, path, half=half, wide=["timestep"], metadata={"temporal_nas.app": "{}"})
        for name, inputs in calls.items():
            assert coreai.error_of(path, module, inputs, names, name) < bound, (name, half)
    assert coreai.metadata_of(path) == {"temporal_nas.app": "{}"}
    assert next(module.parameters()).dtype == torch.float32, "the module is left as it was"
    with pytest.raises(WorkloadError, match="no function 'c'; it has a, b"):
        coreai.predict(path, {}, "c")


@needs_coreai
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_lowered_block_is_predicted_by_the_child_that_a_mac_would_time(precision: str, tmp_path: Path) -> None:
    workload = Workload.parse(f"SelfAttention1D(heads=2)/c8/t4/4x4/b1@{precision}")
    lowered = lower(Subject(workload), "coreai", "fused", tmp_path)
    error = lowered.stats["numeric_error"][precision]
    assert error < (1e-5 if precision == "fp32" else 5e-3)
    device = Device.load("mac_coreai").model_copy(update={"precision": precision})
    session: ChildSession = open_runtime(device).load(lowered, 120.0)  # type: ignore[assignment]
    assert len(session.run(3, 60.0)) == 3
    assert 0 <= session.facts.max_error <= 1.01 * error  # type: ignore[operator]  # of a sample of the output
    assert session.facts.load_cold_ms and session.facts.load_warm_ms
    session.close()


@needs_coreai
def test_a_converter_that_writes_another_function_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    predict = coreai.predict
    monkeypatch.setattr(coreai, "predict", lambda *given: predict(*given) * np.float32(1.1))
    with pytest.raises(WorkloadError, match="off by 0.1 of the largest output against the module"):
        coreai.lower(nn.Tanh(), (torch.randn(2, 8),), ("x",), "plain", "fp32", tmp_path)


def test_on_linux_it_is_refused_as_a_clock_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = open_runtime(Device.load("mac_coreai"))
    with pytest.raises(ProfileError, match="this is Linux, where its runtime checks numbers and is no clock; run"):
        runtime.check()
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr(platform, "mac_ver", lambda: ("26.1", ("", "", ""), "arm64"))
    found: Any = object()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    with pytest.raises(ProfileError, match="needs macOS 27 or later, and this is 26.1; update it, or use the device"):
        runtime.check()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ProfileError, match=r"needs coreai-torch; pip install 'temporal-nas\[coreai\]'"):
        runtime.check()
    with pytest.raises(ProfileError, match="has no compute unit CUDA; it is one of ALL"):
        open_runtime(Device(name="x", runtime="coreai", compute_unit="CUDA"))
