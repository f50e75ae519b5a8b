"""Other forms of a block compute the plain block's function, in torch, ONNX Runtime and as Core ML packages."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from device_profiler.device import Device
from device_profiler.errors import ProfileError, WorkloadError
from device_profiler.lowering import artifact_name, default_lowerings, lower
from device_profiler.lowering.forms import FORMS, LOWERING_NAMES, forms_of, reform, split
from device_profiler.profile import measure_workloads, operator_workload, profile_operator, wanted_rows
from device_profiler.samples import Limits
from device_profiler.subject import Subject
from latency_tables.table import Table
from nas.cli import main
from search_spaces.space import Space

LIMITS = Limits(warmup=1, min_rounds=3, max_rounds=3, visit_ms=1.0, max_repeats=1)
SHAPE = "16x4x6x5"
CASES = [(block, form) for form, blocks in FORMS.items() for block in blocks]


def subject(block: str, precision: str = "fp32") -> Subject:
    return Subject(operator_workload(block, SHAPE, precision, "7x12" if "Cross" in block else ""))


@pytest.mark.parametrize(("block", "form"), CASES)
@pytest.mark.parametrize("kernel", [3, 5])
def test_a_form_gives_what_the_plain_block_gives_and_its_gradients(block: str, form: str, kernel: int) -> None:
    name = f"{block}(kernel_size={kernel})" if "Conv" in block else block
    module, inputs, _ = subject(name).build()
    module.requires_grad_(True)
    plain = module(*inputs)
    slopes = torch.autograd.grad(plain.square().sum(), list(module.parameters()))
    same = reform(module, f"plain+{form}")(*inputs)
    assert same.shape == plain.shape
    assert torch.allclose(same, plain, atol=1e-5)
    for one, other in zip(slopes, torch.autograd.grad(same.square().sum(), list(module.parameters())), strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-3)


def test_every_temporal_layer_has_a_form_and_every_lowering_a_known_name() -> None:
    layers = {variant.block for position in Space.load("snapgen_v").positions for variant in position.variants}
    assert layers and all(forms_of(block) for block in layers)
    space = Space.load("snapgen_v")
    for toolkit in ("onnx", "coreml", "counts", "module"):
        for workload in space.workloads("fp16"):
            assert set(default_lowerings(toolkit, workload)) <= set(LOWERING_NAMES)
            assert not split(default_lowerings(toolkit, workload)[0])[1], "the default is the block as it is"


def test_a_form_is_another_artifact_and_a_backbone_has_none() -> None:
    assert artifact_name(subject("Conv3D"), "onnx", "plain+taps") != artifact_name(subject("Conv3D"), "onnx", "plain")
    assert default_lowerings("coreml", Space.load("tiny").backbone_workload("fp16")) == ("fused", "decomposed")
    module, inputs, _ = subject("Conv1D").build()
    before = module(*inputs)
    assert torch.equal(reform(module, "plain+taps")(*inputs), before), "what has no such form stays as it is"


def test_a_form_that_computes_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from device_profiler.lowering import reformed

    monkeypatch.setattr(reformed.TimeLastConv1D, "forward", lambda self, x, num_frames, context=None: x * 1.01)
    with pytest.raises(WorkloadError, match=r"the form plain\+time_last is off by .* it is another function"):
        lower(subject("Conv1D"), "onnx", "plain+time_last", tmp_path)


def test_the_forms_are_really_other_operations(tmp_path: Path) -> None:
    def ops(block: str, lowering: str, toolkit: str = "onnx") -> dict[str, int]:
        return dict(lower(subject(block), toolkit, lowering, tmp_path).stats["ops"])

    assert ops("Conv3D", "plain+taps")["Conv"] == 3 and ops("Conv3D", "plain")["Conv"] == 1
    plain, conv = ops("SelfAttention1D", "decomposed"), ops("SelfAttention1D", "decomposed+conv1x1")
    assert conv["Conv"] == 4 and "Conv" not in plain and conv.get("MatMul", 0) == plain["MatMul"] - 4
    package = lower(subject("SelfAttention3D", "fp16"), "coreml", "fused+conv1x1", tmp_path).stats
    assert package["ops"]["conv"] == 4 and package["attention_ops"] == 1 and package["max_rank"] <= 5


def test_all_forms_are_measured_and_the_table_answers_with_the_fastest(tmp_path: Path) -> None:
    device = Device.load("host_cpu")
    table, workload = profile_operator("Conv3D", SHAPE, device, tmp_path, lowerings=["all"], limits=LIMITS)
    rows = {row.lowering: row for row in table}
    assert set(rows) == {"plain", "plain+taps"} and all(row.latency_ms_median for row in rows.values())
    stable = [row for row in rows.values() if row.ok]  # a busy machine may call one unstable
    if stable:
        found = table.get(workload.key)
        assert found is not None and found == min(stable, key=lambda row: row.latency_ms_median or 0)
    torch_table, _ = profile_operator(
        "CrossAttention1D", SHAPE, "host_torch", tmp_path, lowerings=["all"], limits=LIMITS
    )
    names = {row.lowering for row in torch_table}
    assert names == {"plain", "plain+conv1x1", "plain+tiled"} and all(row.latency_ms_median for row in torch_table)


@pytest.mark.parametrize("method", ["slope", "in_context"])
def test_a_form_is_measured_by_every_method(method: str, tmp_path: Path) -> None:
    space = Space.load("tiny")
    workload = next(w for w in space.workloads("fp32") if w.block == "Conv3D" and w.channels == 32)
    names = ("plain", "plain+taps")
    rows = measure_workloads(
        [workload], "host_cpu", space="tiny", lowerings=names, method=method, limits=LIMITS, cache_dir=tmp_path
    )
    assert [(row.lowering, row.method) for row in rows] == [(name, method) for name in names]
    assert all(row.latency_ms_median for row in rows), "a busy machine may call them unstable, but they have a number"


def test_lowerings_are_named_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["profile", "--block", "Conv1D", "--shape", SHAPE, "--device", "iphone16_pro_max_roofline"]
    words += ["--table", str(tmp_path)]
    with pytest.raises(SystemExit) as stop:
        main([*words, "--lowering", "plain", "--lowering", "plain+time_last"])
    assert stop.value.code == 0
    table = Table.load(tmp_path / "iphone16_pro_max_roofline" / "roofline.csv")
    assert [row.lowering for row in table] == ["plain", "plain+time_last"]
    with pytest.raises(SystemExit) as stop:
        main([*words, "--lowering", "plain+time_lost"])
    assert stop.value.code == 2 and "Did you mean 'plain+time_last'?" in capsys.readouterr().err
    with pytest.raises(ProfileError, match="unknown lowering"):
        wanted_rows([], Device.load("host_cpu"), ["sideways"])
