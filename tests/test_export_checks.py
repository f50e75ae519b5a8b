"""What an export says of the packages it saved, and that a wrong one replaces nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from device_profiler.evaluator.operations import OPERATIONS
from device_profiler.evaluator.package import Package
from nas.cli import main
from nas.errors import AnswerIsNo
from nas.export.checks import UNCHECKED, Function, Places, check_functions
from nas.export.packages import How, write_package
from nas.export.telling import sentences
from nas.model.packages import PREFIX

Exported = tuple[Path, dict[str, Any]]


def run(*words: str | Path) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    return int(stopped.value.code or 0)


def test_each_function_of_each_package_says_how_far_it_is_from_its_module(exported: Exported) -> None:
    out, facts = exported
    assert json.loads((out / "export.json").read_text())["check"] == facts["check"]
    for package, told in (("unet", facts["check"]), ("text_encoder", facts["text_encoder"]["check"])):
        assert list(told) == ["main"]
        found = told["main"]
        assert 0 < found["error_fp32"] < 2e-3 and found["error_fp32"] < found["error_fp16"] < 5e-3
        assert found["not_finite"] == [] and found["first_jump"] is None
        assert found["largest"]["headroom"] > 1 and found["largest"]["place"]
        assert json.loads(Package(out / f"{package}.mlpackage").metadata[PREFIX + "check"]) == told
    lines = list(sentences(facts))
    assert len(lines) == 2 and lines[0].startswith("unet.mlpackage, main: off by ")
    assert "all finite; no operation's error jumps" in lines[0]


def test_a_package_that_computes_something_else_replaces_nothing(
    exported_model: Path,
    exported: Exported,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "coreml"
    words = ("export", exported_model, "--out", out, "--parts", "text_encoder")
    monkeypatch.setitem(OPERATIONS, "softmax", OPERATIONS["sigmoid"])
    monkeypatch.setitem(OPERATIONS, "sigmoid", OPERATIONS["tanh"])
    assert run(*words, "--no-check") == 0
    assert f"text_encoder.mlpackage: {UNCHECKED}" in capsys.readouterr().out
    assert json.loads((out / "export.json").read_text())["text_encoder"]["check"] == UNCHECKED
    assert Package(out / "text_encoder.mlpackage").metadata[PREFIX + "check"] == UNCHECKED
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert run(*words) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "the text encoder: text_encoder.mlpackage, function main: float32 arithmetic is off by" in said
    assert "nothing was replaced" in said
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    monkeypatch.delitem(OPERATIONS, "sigmoid")
    assert run(*words) == 2 and "no evaluation is known of: sigmoid" in capsys.readouterr().err


class Far(nn.Module):
    """A normalisation of what lies 300 from its group's mean, as a network's might on real input."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x)


def functions(*heights: int, size: float = 300.0) -> list[Function]:
    torch.manual_seed(0)
    inputs = [size * torch.randn(1, 8, height, 8) for height in heights]
    return [Function(f"f{x.shape[2]}", Far().eval(), (x,), ("x",)) for x in inputs]


def test_what_float16_cannot_hold_is_refused_and_written_safely(tmp_path: Path) -> None:
    unsafe = [Function("main", one.module, one.inputs, one.names) for one in functions(8)]
    with pytest.raises(AnswerIsNo, match=r"net: x.mlpackage, function main: float16 .* not finite; --safe spells"):
        write_package("net", unsafe, How(), tmp_path / "x.mlpackage")
    told = write_package("net", unsafe, How(safe=True), tmp_path / "safe.mlpackage")["check"]["main"]
    assert told["error_fp16"] < 5e-3 and told["not_finite"] == []


def test_every_function_of_a_package_is_checked(tmp_path: Path) -> None:
    both = functions(4, 8, size=1.0)
    written = write_package("net", both, How(), tmp_path / "two.mlpackage")
    assert list(written["check"]) == ["f4", "f8"] and [path.name for path in tmp_path.iterdir()] == ["two.mlpackage"]
    other = functions(4, 8, size=1.0)
    with torch.no_grad():
        other[1].module.norm.weight *= 2  # type: ignore[union-attr, operator]
    with pytest.raises(AnswerIsNo, match="two.mlpackage, function f8: float32 arithmetic is off"):
        check_functions(tmp_path / "two.mlpackage", other, "net")


def test_weights_in_fewer_bits_are_held_to_themselves(tmp_path: Path) -> None:
    torch.manual_seed(0)
    one = [Function("main", nn.Linear(64, 64).eval(), (torch.randn(2, 64),), ("x",))]
    told = write_package("net", one, How(quantize="int8"), tmp_path / "x.mlpackage")["check"]["main"]
    assert 1e-3 < told["error_fp32"] < 0.1 and math.isfinite(told["error_fp16"])
    huge = [Function("main", one[0].module, (torch.full((2, 64), 60_000.0),), ("x",))]
    with pytest.raises(AnswerIsNo, match="off by inf of float32's largest output on the same weights"):
        check_functions(tmp_path / "x.mlpackage", huge, "net", compressed=True)


def test_a_reading_is_placed_by_the_weight_read_last() -> None:
    places = Places(nn.ModuleDict({"a_b": nn.Linear(2, 2), "a": nn.Linear(2, 2)}))
    assert places.of("p_a_b_weight_to_fp16") == "a_b" and places.of("p_a_bias_palettized") == "a"
    assert places.of("") == "the inputs" and places.of("const_7") == "const_7"
