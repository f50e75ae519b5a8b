"""Core ML packages, made on any machine: operations, ranks, weights and the static plan."""

from pathlib import Path

import pytest
import torch
from profiler_fakes import small

from device_profiler.errors import Unsupported
from device_profiler.lowering import lower
from device_profiler.lowering.coreml import convert
from device_profiler.lowering.coreml import lower as lower_coreml
from device_profiler.subject import Subject
from search_spaces.workload import Workload


def attention(lowering: str, cache: Path) -> dict[str, object]:
    subject = Subject(Workload.parse("SelfAttention1D(heads=2)/c32/t4/4x4/b1@fp16"))
    return dict(lower(subject, "coreml", lowering, cache).stats)


def test_a_package_states_what_is_in_it(tmp_path: Path) -> None:
    lowered = lower(small(channels=64, precision="fp16"), "coreml", "plain", tmp_path)
    assert lowered.file.name == "model.mlpackage" and (lowered.file / "Manifest.json").is_file()
    assert lowered.stats["ops"]["conv"] == 1 and lowered.stats["attention_ops"] == 0
    assert lowered.stats["max_rank"] == 4
    assert lowered.stats["weights_mb"] == pytest.approx(64 * 64 * 9 * 2 / 1e6, rel=0.05)
    assert lowered.stats["export_error"] < 1e-5
    tensor = 4 * 64 * 8 * 8 * 2 / 1e6
    assert 2 * tensor <= lowered.stats["static_peak_mb"] - lowered.stats["weights_mb"] <= 4 * tensor


def test_attention_stays_one_operation_or_is_spelled_out(tmp_path: Path) -> None:
    fused, spelled = attention("fused", tmp_path), attention("decomposed", tmp_path)
    assert fused["attention_ops"] == 1 and spelled["attention_ops"] == 0
    assert spelled["ops"]["softmax"] == 1  # type: ignore[index]
    assert fused["ops"]["linear"] == spelled["ops"]["linear"] == 4  # type: ignore[index]  # weights are not tiled


def test_inputs_and_outputs_are_float16(tmp_path: Path) -> None:
    model, _ = convert(*_built())
    description = model.get_spec().description
    kinds = {feature.type.multiArrayType.dataType for feature in (*description.input, *description.output)}
    assert kinds == {65552}  # ArrayFeatureType.FLOAT16
    assert [feature.name for feature in description.output] == ["y"]


def test_more_than_five_axes_are_unsupported(tmp_path: Path) -> None:
    class SixAxes(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x.reshape(2, 2, 2, 2, 2, 4).permute(5, 3, 1, 0, 2, 4)
            return torch.softmax(y, 2).permute(3, 2, 4, 1, 5, 0).reshape(x.shape)

    with pytest.raises((Unsupported, ValueError), match="rank|axes"):
        lower_coreml(SixAxes(), (torch.zeros(2, 8, 8),), ("x",), "plain", "fp16", tmp_path)


def _built() -> tuple[torch.nn.Module, tuple[torch.Tensor, ...], tuple[str, ...]]:
    return small().build()
