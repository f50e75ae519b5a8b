"""Small packages for the tests of the evaluator: converted from a module, or written operation by operation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from device_profiler.evaluator.package import Package
from device_profiler.lowering.coreml import convert
from device_profiler.quiet import quiet


def converted(
    module: nn.Module, inputs: Sequence[Tensor], folder: Path, names: Sequence[str] = ("x",), **how: Any
) -> Path:
    """The module's package, saved into the folder."""
    torch.set_num_threads(1)
    path = folder / "model.mlpackage"
    model, _ = convert(module.eval(), tuple(inputs), tuple(names), **how)
    model.save(str(path))
    return path


def rewritten(package: Path, target: Path, change: Callable[[Any], None]) -> Path:
    """A copy of a package whose program was changed by hand."""
    import shutil

    with quiet():
        from coremltools.proto import Model_pb2

    shutil.copytree(package, target)
    file = next(target.rglob("*.mlmodel"))
    spec = Model_pb2.Model()
    spec.ParseFromString(file.read_bytes())
    change(spec)
    file.write_bytes(spec.SerializeToString())
    return target


def block_of(spec: Any, function: str = "main") -> Any:
    """The operations of a function in a package's message."""
    found = spec.mlProgram.functions[function]
    return found.block_specializations[found.opset]


def evaluable(package: Path, function: str | None = None) -> Any:
    """A function of a saved package."""
    return Package(package).function(function)
