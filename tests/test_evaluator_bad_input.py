"""Packages that cannot be evaluated: one line each, with what is wrong and what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluator_packages import block_of, converted, evaluable, rewritten
from torch import nn

from device_profiler.evaluator.check import check_package
from device_profiler.evaluator.evaluate import evaluate
from device_profiler.evaluator.package import Package, PackageError
from device_profiler.quiet import quiet


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return converted(nn.Sequential(nn.Linear(8, 8), nn.Tanh()), (torch.randn(2, 8),), tmp_path_factory.mktemp("good"))


def refused(path: Path, match: str, run: Callable[[Path], Any] = Package) -> None:
    with pytest.raises(PackageError, match=match) as caught:
        run(path)
    assert "\n" not in str(caught.value)


def test_no_package_at_all(tmp_path: Path) -> None:
    refused(tmp_path / "none.mlpackage", "no Core ML package")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.onnx").write_bytes(b"onnx")
    refused(tmp_path / "other", "no Core ML package")


def test_a_folder_that_another_tool_wrote(package: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(package, tmp_path / "other.mlpackage")
    (copy / "Manifest.json").write_text("[]")
    refused(copy, "not a Core ML package's manifest")
    (copy / "Manifest.json").write_text(
        json.dumps({"rootModelIdentifier": "a", "itemInfoEntries": {"a": {"path": "x"}}})
    )
    refused(copy, "names the model file x, which is not in the package")
    outside = {"rootModelIdentifier": "a", "itemInfoEntries": {"a": {"path": "../../good"}}}
    (copy / "Manifest.json").write_text(json.dumps(outside))
    refused(copy, "not in the package")


@pytest.mark.parametrize("bytes_", [b"", b"\xff\xff\xff\xff not a message", b"PK\x03\x04"])
def test_a_model_file_of_another_tool(bytes_: bytes, package: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(package, tmp_path / "other.mlpackage")
    next(copy.rglob("*.mlmodel")).write_bytes(bytes_)
    refused(copy, "no Core ML model, or a damaged one")


def test_a_neural_network_is_no_program(package: Path, tmp_path: Path) -> None:
    with quiet():
        from coremltools.proto import Model_pb2

    spec = Model_pb2.Model()
    spec.neuralNetwork.SetInParent()
    single = tmp_path / "old.mlmodel"
    single.write_bytes(spec.SerializeToString())
    refused(single, "holds a neuralNetwork, not an ML program")
    copy = shutil.copytree(package, tmp_path / "old.mlpackage")
    next(copy.rglob("*.mlmodel")).write_bytes(spec.SerializeToString())
    refused(copy, "holds a neuralNetwork, not an ML program; convert it for iOS 15 or later")


@pytest.mark.parametrize(("keep", "match"), [(0, "missing or cut short"), (100, "ends at byte 100")])
def test_a_weight_file_that_was_cut_short(keep: int, match: str, package: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(package, tmp_path / "cut.mlpackage")
    weights = next(copy.rglob("weight.bin"))
    weights.write_bytes(weights.read_bytes()[:keep])
    refused(copy, match)


def test_a_weight_file_of_another_package(package: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(package, tmp_path / "mixed.mlpackage")
    weights = next(copy.rglob("weight.bin"))
    size = weights.stat().st_size
    weights.write_bytes(b"\x01\x00\x00\x00\x02\x00\x00\x00" + bytes(size - 8))
    refused(copy, "damaged or of another package")


def test_weights_outside_the_package_are_not_read(package: Path, tmp_path: Path) -> None:
    def change(spec: Any) -> None:
        for one in block_of(spec).operations:
            value = one.attributes["val"] if one.type == "const" else None
            if value is not None and value.WhichOneof("value") == "blobFileValue":
                value.blobFileValue.fileName = "@model_path/../../../../secret.bin"

    refused(rewritten(package, tmp_path / "out.mlpackage", change), "outside the package")


def test_unknown_operations_are_refused_by_name(package: Path, tmp_path: Path) -> None:
    def change(spec: Any) -> None:
        next(op for op in block_of(spec).operations if op.type == "tanh").type = "warp_drive"

    changed = rewritten(package, tmp_path / "odd.mlpackage", change)
    refused(
        changed,
        r"no evaluation is known of: warp_drive \(1\); the first is",
        lambda path: evaluate(evaluable(path), {"x": torch.zeros(2, 8)}),
    )


@pytest.mark.parametrize(
    ("feeds", "match"),
    [
        ({}, r"no value is given for the input 'x'; the package takes: x \(float16 2x8\)"),
        ({"x": torch.zeros(3, 8)}, r"the input 'x' is \(3, 8\); the package takes float16 2x8"),
        ({"x": torch.zeros(2, 8, dtype=torch.int32)}, r"is torch.int32; the package takes float16 2x8"),
    ],
)
def test_inputs_that_do_not_fit(feeds: dict[str, torch.Tensor], match: str, package: Path) -> None:
    refused(package, match, lambda path: evaluate(evaluable(path), feeds))


def test_a_module_with_other_outputs(package: Path) -> None:
    refused(
        package, "it is a package of another one", lambda p: check_package(p, nn.Linear(8, 4), (torch.zeros(2, 8),))
    )
    refused(package, "2 inputs are given for x", lambda p: check_package(p, nn.Linear(8, 8), (torch.zeros(2, 8),) * 2))
