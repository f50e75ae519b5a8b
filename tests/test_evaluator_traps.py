"""What the converter changes, loses or cannot hold in float16: each fails as it comes and passes as it is spelled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from evaluator_packages import converted, evaluable
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from device_profiler.errors import Unsupported
from device_profiler.evaluator.check import Check, check_package
from device_profiler.lowering import spelled
from device_profiler.lowering.coreml import lower
from search_spaces.network import build_module
from search_spaces.space import Space

QKV = ("q", "k", "v")


class AsItComes(TorchFunctionMode):
    """In place of ``Spelling``: every function as torch has it."""

    def __init__(self, **how: Any) -> None:
        super().__init__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@pytest.fixture
def unspelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spelled, "Spelling", AsItComes)
    monkeypatch.setattr(spelled, "DECOMPOSITIONS", {})


def checked(module: nn.Module, inputs: tuple[Tensor, ...], folder: Path, **how: Any) -> Check:
    names = QKV if len(inputs) == 3 else ("x",)
    how.setdefault("names", names)
    folder.mkdir(exist_ok=True)
    return check_package(converted(module, inputs, folder, **how), module, inputs)


def kinds(found: Check) -> list[str]:
    return [one.kind for one in evaluable(found.package).operations]


def heads(query_heads: int = 4, key_heads: int = 4, size: float = 1.0) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    sizes = ((query_heads, size), (key_heads, size), (key_heads, 1.0))
    return tuple(torch.randn(1, count, 16, 8) * times for count, times in sizes)


class Attention(nn.Module):
    """Attention with whatever is asked of it."""

    def __init__(self, mask: bool = False, **how: Any) -> None:
        super().__init__()
        self.mask, self.how = mask, how

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril() if self.mask else None
        return F.scaled_dot_product_attention(q, k, v, mask, **self.how)


def small_rows() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 5, 32) * 1e-3


def test_rms_norm_is_another_function_as_it_comes(unspelled: None, tmp_path: Path) -> None:
    found = checked(nn.RMSNorm(32, eps=1e-6), (small_rows(),), tmp_path / "small")
    assert found.error_fp32 > 0.02
    zeros = checked(nn.RMSNorm(32, eps=1e-6), (torch.zeros(2, 5, 32),), tmp_path / "zeros")
    assert zeros.error_fp32 == float("inf")  # 0 / 0


@pytest.mark.parametrize("eps", [1e-6, None])
def test_rms_norm_of_our_own_converts_rightly(eps: float | None, tmp_path: Path) -> None:
    module = nn.RMSNorm(32, eps=eps)
    rows = torch.cat([small_rows(), torch.zeros(1, 5, 32), torch.full((1, 5, 32), 300.0)])
    found = checked(module, (rows,), tmp_path)
    assert found.problem() is None and not found.audit.overflowed
    with torch.no_grad():
        got = found.audit.outputs["y"].float()
        apart = (got - module(rows)).abs().amax((1, 2)) / module(rows).abs().amax((1, 2)).clamp_min(1e-12)
    assert apart.max() < 2e-3  # each by itself: the smallest rows are not hidden by the largest


def far_from_its_mean() -> Tensor:
    torch.manual_seed(0)
    x = torch.randn(1, 32, 4, 16)
    x[0, 0] += 300
    return x


def test_a_square_in_group_norm_overflows_unless_it_is_safe(tmp_path: Path) -> None:
    module = nn.GroupNorm(4, 32)
    unsafe = checked(module, (far_from_its_mean(),), tmp_path / "unsafe")
    assert unsafe.error_fp32 < 1e-3 and unsafe.error_fp16 > 0.5  # the group has become its bias, and looks finite
    assert unsafe.audit.outputs["y"].isfinite().all()
    assert unsafe.audit.overflowed[0].operation == "square" and "square" in str(unsafe.problem())
    safe = checked(module, (far_from_its_mean(),), tmp_path / "safe", safe=True)
    assert safe.problem() is None and not safe.audit.overflowed


@pytest.mark.parametrize("safe", [False, True])
def test_group_norm_takes_five_axes(safe: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.GroupNorm(4, 32)
    nn.init.normal_(module.weight)
    nn.init.normal_(module.bias)
    assert checked(module, (torch.randn(1, 32, 2, 4, 4),), tmp_path, safe=safe).problem() is None


def test_group_norm_on_five_axes_fails_as_it_comes(unspelled: None, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="rank|axes"):
        checked(nn.GroupNorm(4, 32), (torch.randn(1, 32, 2, 4, 4),), tmp_path)


class Sines(nn.Module):
    """A timestep as the sines and cosines of 32 frequencies."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", 10_000.0 ** (-torch.arange(32) / 32))

    def forward(self, timestep: Tensor) -> Tensor:
        angles = timestep.expand(2)[:, None] * self.frequencies[None]
        return torch.cat([angles.sin(), angles.cos()], -1)


def test_the_sines_of_a_timestep_are_lost_as_they_come(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(spelled, "keeps_float16", lambda op: True)
    found = checked(Sines(), (torch.tensor([937.0]),), tmp_path, names=("timestep",))
    jump = found.audit.first_jump
    assert found.error_fp32 > 0.02 and found.error_fp16 > 0.1 and jump is not None and jump.operation in ("sin", "cos")


def test_the_sines_of_a_timestep_are_kept(tmp_path: Path) -> None:
    found = checked(Sines(), (torch.tensor([937.0]),), tmp_path, names=("timestep",))
    assert found.error_fp32 < 1e-4 and found.error_fp16 < 1e-3
    assert found.audit.outputs["y"].dtype == torch.float16  # only the angles are wide


def test_a_timestep_between_float16s_needs_a_wide_input(tmp_path: Path) -> None:
    between = (torch.tensor([999.3]),)
    assert checked(Sines(), between, tmp_path / "narrow", names=("timestep",)).error_fp32 > 0.1
    wide = checked(Sines(), between, tmp_path / "wide", names=("timestep",), wide=("timestep",))
    assert wide.error_fp32 < 1e-4 and wide.error_fp16 < 1e-3


def test_scores_beyond_float16_are_lost_unless_they_are_safe(tmp_path: Path) -> None:
    large = heads(size=300.0)
    unsafe = checked(Attention(), large, tmp_path / "unsafe", fused=False)
    assert unsafe.error_fp32 < 1e-3 and unsafe.error_fp16 == float("inf")
    assert unsafe.audit.overflowed[0].operation == "matmul"
    safe = checked(Attention(), large, tmp_path / "safe", fused=False, safe=True)
    assert safe.problem() is None and not safe.audit.overflowed


def test_scores_within_the_fused_operation_are_told(tmp_path: Path) -> None:
    found = checked(Attention(), heads(size=300.0), tmp_path)
    reading = found.audit.largest
    assert reading is not None and reading.operation == "scaled_dot_product_attention"
    q, k, _ = heads(size=300.0)
    expected = float((q.half().float() @ k.half().float().transpose(-1, -2)).abs().max() / 8**0.5)
    assert reading.inside == pytest.approx(expected, rel=1e-4) and reading.headroom < 1


def test_safe_scores_are_as_good_where_they_are_small(tmp_path: Path) -> None:
    assert checked(Attention(), heads(size=0.05), tmp_path, fused=False, safe=True).error_fp16 < 1e-3


@pytest.mark.parametrize(
    ("module", "key_heads"),
    [
        (Attention(scale=0.2), 4),
        (Attention(enable_gqa=True), 2),
        (Attention(enable_gqa=True), 1),
        (Attention(enable_gqa=True, is_causal=True, scale=0.5), 2),
        (Attention(enable_gqa=True, mask=True), 2),
        (Attention(mask=True), 4),
    ],
    ids=["scale", "grouped", "one-head", "grouped-causal-scale", "grouped-mask", "mask"],
)
def test_attention_stays_fused_and_nothing_is_copied(module: nn.Module, key_heads: int, tmp_path: Path) -> None:
    found = checked(module, heads(4, key_heads), tmp_path)
    assert found.problem() is None
    assert kinds(found).count("scaled_dot_product_attention") == 1 and "tile" not in kinds(found)


def test_an_explicit_scale_loses_the_fused_operation_as_it_comes(unspelled: None, tmp_path: Path) -> None:
    assert "scaled_dot_product_attention" not in kinds(checked(Attention(scale=0.2), heads(), tmp_path))


def test_grouped_heads_fail_as_they_come(unspelled: None, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="batch dimension"):
        checked(Attention(enable_gqa=True), heads(4, 2), tmp_path)


def test_a_scale_is_spelled_out_and_a_mask_is_unsupported(tmp_path: Path) -> None:
    found = checked(Attention(scale=0.2), heads(), tmp_path, fused=False)
    assert found.problem() is None and "scaled_dot_product_attention" not in kinds(found)
    for module in (Attention(mask=True), Attention(is_causal=True)):
        with pytest.raises(Unsupported, match="mask, dropout or grouped heads has no decomposed lowering"):
            converted(module, heads(), tmp_path, QKV, fused=False)


class Slices(nn.Module):
    """Queries, keys and values cut from one tensor in a loop; the last slice is all there is."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (x[..., part * 8 : part * 8 + 8] for part in range(3))
        parts = [
            F.scaled_dot_product_attention(q[:, :, end - 8 : end], k[:, :, :end], v[:, :, :end]) for end in (8, 16)
        ]
        return torch.concatenate(parts, 2)


def test_slices_in_a_loop_and_concatenate_convert(tmp_path: Path) -> None:
    torch.manual_seed(0)
    assert checked(Slices(), (torch.randn(1, 4, 16, 24),), tmp_path).problem() is None


def test_slices_in_a_loop_and_concatenate_fail_as_they_come(unspelled: None, tmp_path: Path) -> None:
    class Joined(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.concatenate([x, x], 1)

    for module, said in ((Slices(), "alias|concatenate"), (Joined(), "concatenate")):
        with pytest.raises(Unsupported, match=said):
            checked(module, (torch.randn(1, 4, 16, 24),), tmp_path)


@pytest.fixture(scope="module")
def network() -> tuple[nn.Module, tuple[Tensor, ...], tuple[str, ...]]:
    space = Space.load("tiny")
    arrangement = space.arrange({"down.0.0": ["Conv1D"], "up.0.0": ["SelfAttention3D(heads=4)"]})
    return build_module(space.network_workload(arrangement, "fp16", "training"), space, arrangement)


def test_a_whole_network_is_written_safely(
    network: tuple[nn.Module, tuple[Tensor, ...], tuple[str, ...]], tmp_path: Path
) -> None:
    module, (x, _, context), names = network
    inputs = (x, torch.tensor([999.3]), context)
    told = lower(module, inputs, names, "fused", "fp16", tmp_path, safe=True, wide=("timestep",))
    assert told["attention_ops"] > 0 and told["max_rank"] <= 5
    assert told["numeric_error"]["fp32"] < 1e-3 and told["numeric_error"]["fp16"] < 5e-3
    kinds_of_input = {name: kind.kind for name, kind in evaluable(tmp_path / str(told["file"])).inputs}
    assert kinds_of_input == {"x": "FLOAT16", "timestep": "FLOAT32", "context": "FLOAT16"}
