"""A saved package evaluated on any machine: both arithmetics, every function, stored weights, and the audit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluator_packages import block_of, converted, evaluable, rewritten
from torch import nn

from device_profiler.errors import WorkloadError
from device_profiler.evaluator.audit import audit
from device_profiler.evaluator.check import check_package
from device_profiler.evaluator.evaluate import Arithmetic, evaluate
from device_profiler.evaluator.operations import OPERATIONS
from device_profiler.evaluator.package import Package, PackageError
from device_profiler.lowering import lower
from device_profiler.lowering.coreml import lower as lower_coreml
from device_profiler.quiet import quiet
from device_profiler.subject import Subject
from nas.export.compress import compress
from search_spaces.workload import Workload


class Mixer(nn.Module):
    """A product, an activation and a square: enough for every kind of weight, and to overflow."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 64), nn.Linear(64, 64, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.first(x))) * x * x


@pytest.fixture(scope="module")
def mixer() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return Mixer().eval(), torch.randn(3, 64)


@pytest.fixture(scope="module")
def package(mixer: tuple[nn.Module, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    module, x = mixer
    return converted(module, (x,), tmp_path_factory.mktemp("mixer"))


def test_float32_arithmetic_errs_by_the_stored_weights_alone(
    mixer: tuple[nn.Module, torch.Tensor], package: Path
) -> None:
    module, x = mixer
    half = x.half().float()  # what the package hears
    rounded = Mixer().eval()
    rounded.load_state_dict({name: weight.half().float() for name, weight in module.state_dict().items()})
    with torch.no_grad():
        assert torch.allclose(evaluate(evaluable(package), {"x": x}, Arithmetic.FLOAT32)["y"], rounded(half), rtol=1e-5)


def test_float16_arithmetic_rounds_each_operation(mixer: tuple[nn.Module, torch.Tensor], package: Path) -> None:
    module, x = mixer
    got = evaluate(evaluable(package), {"x": x})["y"]
    weights = {name: weight.half().float() for name, weight in module.state_dict().items()}
    y = x.half().float()

    def rounded(value: torch.Tensor) -> torch.Tensor:
        return value.half().float()

    hidden = rounded(torch.tanh(rounded(y @ weights["first.weight"].T + weights["first.bias"])))
    expected = rounded(rounded(rounded(hidden @ weights["last.weight"].T) * y) * y)
    assert got.dtype == torch.float16 and torch.equal(got.float(), expected)


def test_what_float16_cannot_hold_becomes_infinite_and_is_named(
    mixer: tuple[nn.Module, torch.Tensor], package: Path
) -> None:
    _, x = mixer
    found = audit(evaluable(package), {"x": x * 600})
    assert found.outputs["y"].isinf().any() and found.exact["y"].isfinite().all()
    lost = found.overflowed
    assert [one.operation for one in lost] == ["mul"] and lost[0].not_finite > 0
    assert found.largest is lost[0] and lost[0].largest > 65504 and lost[0].headroom < 1
    assert found.first_jump is lost[0] and lost[0].near == next(
        name for name in evaluable(package).constants if "last_weight" in name
    )
    json.dumps(found.told())


def test_a_quiet_program_has_nothing_to_report(mixer: tuple[nn.Module, torch.Tensor], package: Path) -> None:
    module, x = mixer
    found = check_package(package, module, (x,))
    assert 0 < found.error_fp32 < 1e-3 and 0 < found.error_fp16 < 2e-3 and found.problem() is None
    assert found.audit.overflowed == () and found.audit.first_jump is None
    problem = found.problem(bound_fp16=1e-6)
    assert problem is not None and "float16 arithmetic is off by" in problem and "\n" not in problem


def test_a_package_of_another_function_is_over_its_bound(mixer: tuple[nn.Module, torch.Tensor], package: Path) -> None:
    _, x = mixer
    torch.manual_seed(1)
    problem = check_package(package, Mixer().eval(), (x,)).problem()
    assert problem is not None and "converter wrote another function" in problem


def shrunk(package: Path, target: Path, how: str) -> Path:
    shutil.copytree(package, target)
    compress(target, how)
    return target


@pytest.mark.parametrize(
    ("how", "kind", "error"),
    [
        ("int8", "constexpr_blockwise_shift_scale", 0.02),
        ("palettize6", "constexpr_lut_to_dense", 0.1),
        ("palettize4", "constexpr_lut_to_dense", 0.4),
    ],
)
def test_weights_in_fewer_bits_are_what_coremltools_makes_of_them(
    how: str, kind: str, error: float, mixer: tuple[nn.Module, torch.Tensor], package: Path, tmp_path: Path
) -> None:
    if how != "int8":
        pytest.importorskip("sklearn", reason="palettising needs scikit-learn")
    module, x = mixer
    small = shrunk(package, tmp_path / "small.mlpackage", how)
    function = evaluable(small)
    weights = [one for one in function.operations if one.kind == kind]
    assert len(weights) == 2
    with quiet():
        import coremltools as ct
        from coremltools.converters.mil.frontend.milproto.load import load

        model = ct.models.MLModel(str(small), skip_model_load=True)
        program = load(model.get_spec(), model.get_spec().specificationVersion, model.weights_dir)
    theirs = {
        op.outputs[0].name: op.materialized_val_inference()
        for op in program.functions["main"].operations
        if op.op_type == kind
    }
    for one in weights:
        got = _value(function, one.name)
        np.testing.assert_array_equal(got, theirs[one.name])
    assert check_package(small, module, (x,)).error_fp16 < error


def _value(function: Any, name: str) -> np.ndarray[Any, Any]:
    from device_profiler.evaluator.evaluate import Values, steps

    values = Values(function, Arithmetic.FLOAT16, {"x": torch.zeros(3, 64)})
    for one, results in steps(function, [values]):
        if one.name == name:
            return results[0][0].numpy()
    raise AssertionError(name)


@pytest.fixture(scope="module")
def two(package: Path, mixer: tuple[nn.Module, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    more = converted(mixer[0], (torch.randn(5, 64),), folder)
    with quiet():
        import coremltools as ct

        functions = ct.utils.MultiFunctionDescriptor()
        functions.add_function(str(package), src_function_name="main", target_function_name="three")
        functions.add_function(str(more), src_function_name="main", target_function_name="five")
        functions.default_function_name = "three"
        ct.utils.save_multifunction(functions, str(folder / "two.mlpackage"))
    return folder / "two.mlpackage"


def test_every_function_of_a_package_is_evaluated(two: Path, mixer: tuple[nn.Module, torch.Tensor]) -> None:
    opened = Package(two)
    assert sorted(opened.functions) == ["five", "three"] and opened.function().name == "three"
    for name, rows in (("three", 3), ("five", 5)):
        found = check_package(opened, mixer[0], (torch.randn(rows, 64),), function=name)
        assert found.problem() is None and found.function == name


def test_a_function_that_is_not_there_is_named_with_those_that_are(two: Path) -> None:
    with pytest.raises(PackageError, match=r"no function 'thre'. Did you mean 'three'\? It has: five, three."):
        evaluable(two, "thre")


@pytest.mark.parametrize("what", ["shape", "type"])
def test_a_result_that_is_not_as_declared_is_refused(what: str, package: Path, tmp_path: Path) -> None:
    def change(spec: Any) -> None:
        tanh = next(op for op in block_of(spec).operations if op.type == "tanh")
        tensor = tanh.outputs[0].type.tensorType
        if what == "shape":
            tensor.dimensions[1].constant.size = 63
        else:
            tensor.dataType = 11  # FLOAT32

    changed = rewritten(package, tmp_path / "changed.mlpackage", change)
    with pytest.raises(PackageError, match=r"tanh '.*': gives torch.float16 \(3, 64\), declared is"):
        evaluate(evaluable(changed), {"x": torch.zeros(3, 64)})


@pytest.mark.parametrize(
    ("workload", "lowering"),
    [
        ("SelfAttention1D(heads=2)/c32/t4/4x4/b1@fp16", "fused"),
        ("Conv1D(kernel_size=3)/c32/t4/4x4/b1@fp16", "plain+time_last"),
    ],
)
def test_a_lowering_says_how_far_its_package_is_from_the_module(workload: str, lowering: str, tmp_path: Path) -> None:
    told = lower(Subject(Workload.parse(workload)), "coreml", lowering, tmp_path).stats["numeric_error"]
    assert 0 < told["fp32"] < 1e-3 and 0 < told["fp16"] < 5e-3
    assert (
        lower(Subject(Workload.parse(workload)), "coreml", lowering, tmp_path, check=False).stats["numeric_error"]
        is None
    )


def test_a_lowering_that_holds_an_unknown_operation_says_which(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delitem(OPERATIONS, "tanh")
    told = lower_coreml(nn.Tanh(), (torch.zeros(2, 8),), ("x",), "plain", "fp16", tmp_path)["numeric_error"]
    assert told["fp32"] is None and "no evaluation is known of: tanh (1)" in told["reason"]


def test_a_lowering_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(OPERATIONS, "tanh", OPERATIONS["sigmoid"])
    with pytest.raises(WorkloadError, match="float32 arithmetic is off by .*; the converter wrote another function"):
        lower_coreml(nn.Tanh(), (torch.ones(2, 8),), ("x",), "plain", "fp16", tmp_path)
