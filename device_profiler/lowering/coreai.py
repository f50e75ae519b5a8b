"""Module to Core AI: an ``.aimodel``, and one prediction of it by Core AI's own runtime, which also runs on Linux.

``coreai-torch`` (BSD-3, extra ``coreai``) converts an exported program; the runtime comes with it. That runtime is the
check of what was converted. On Linux it is no clock: it is not what a phone executes, and was not made to be fast.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import importlib.util
import io
import json
import os
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from device_profiler.child import classify
from device_profiler.errors import WORKLOAD_ERRORS, WorkloadError, one_line
from device_profiler.quiet import quiet

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

INSTALL = "pip install 'temporal-nas[coreai]'"
FILE = "model.aimodel"
MAIN = "main"
TOLERANCE = {"fp32": 1e-3, "fp16": 5e-2}  # of what is lowered to be timed; an export is held to less


@dataclass(frozen=True)
class Entry:
    """One function to write: its name, its module, and inputs of its shape."""

    name: str
    module: nn.Module
    inputs: tuple[Tensor, ...]


def available() -> bool:
    """Whether ``coreai-torch`` is installed; nothing is imported."""
    return importlib.util.find_spec("coreai_torch") is not None


def lower(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    names: tuple[str, ...],
    lowering: str,
    precision: str,
    folder: Path,
    check: bool = True,
) -> dict[str, Any]:
    """Write ``model.aimodel`` into the folder and say what is in it.

    Args:
        lowering: ``decomposed`` spells attention out; else it is Core AI's own operation.
        check: predict once with Core AI's runtime and compare; without it ``numeric_error`` is ``None``.

    Returns:
        ``file``, ``weights_mb`` (parameters at the precision), ``package_mb``, ``ops`` (count by type, constants left
        out), ``operations``, and ``numeric_error`` (of the precision alone).

    Raises:
        WorkloadError: if it cannot be converted, or computes something else.
    """
    path = folder / FILE
    half = precision == "fp16"
    write([Entry(MAIN, module, inputs)], names, path, half=half, fused=lowering != "decomposed")
    numeric = None
    if check:
        numeric = {precision: error_of(path, module, inputs, names)}
        if not numeric[precision] <= TOLERANCE[precision]:
            raise WorkloadError(
                f"Core AI's answer is off by {numeric[precision]:.2g} of the largest output against the module; the "
                "converter wrote another function"
            )
    size = 2 if half else 4
    tensors = [*module.parameters(), *module.buffers()]
    return {
        "file": path.name,
        "weights_mb": sum(t.numel() * (size if t.is_floating_point() else t.element_size()) for t in tensors) / 1e6,
        "package_mb": package_mb(path),
        "numeric_error": numeric,
        **describe(path),
    }


def write(
    entries: Sequence[Entry],
    names: Sequence[str],
    path: Path,
    *,
    half: bool,
    fused: bool = True,
    wide: Collection[str] = (),
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Convert the entries to functions of one ``.aimodel`` that share their weights; the output is called ``y``.

    Args:
        half: weights, inputs and arithmetic in float16; the module itself is left as it is.
        wide: inputs that stay float32, such as a timestep.
        metadata: name -> text, for whoever loads the file.

    Raises:
        WorkloadError: what the converter said, as the status that it stands for.
    """
    import torch

    problem: WorkloadError | None = None
    with quiet(), contextlib.redirect_stdout(io.StringIO()), _untested():
        from coreai.runtime import AIModelAssetMetadata
        from coreai_torch import TorchConverter, get_decomp_table

        from device_profiler.lowering.spelled import Spelling

        told = AIModelAssetMetadata()
        for name, text in (metadata or {}).items():
            told.set_custom(name, text)
        try:
            converter = TorchConverter(mode=TorchConverter.Mode.RELEASE)
            for entry in entries:
                module = copy.deepcopy(entry.module).half() if half else entry.module
                inputs = tuple(
                    x.half() if half and x.is_floating_point() and name not in wide else x
                    for name, x in zip(names, entry.inputs, strict=True)
                )
                with torch.no_grad(), contextlib.nullcontext() if fused else Spelling(fused=False):
                    program = torch.export.export(module.eval(), inputs).run_decompositions(get_decomp_table())
                converter.add_exported_program(
                    program, input_names=list(names), output_names=["y"], entrypoint_name=entry.name
                )
            converter.to_coreai().save_asset(path, metadata=told)
        except Exception as error:  # of any class: a converter's own, or Python's from deep inside it
            problem = WORKLOAD_ERRORS[classify(error)](one_line(error))
    if problem is not None:
        raise problem


def predict(path: Path, feeds: Mapping[str, NDArray[Any]], function: str = MAIN) -> NDArray[Any]:
    """The output ``y`` of one function, by Core AI's runtime.

    Raises:
        WorkloadError: if the file cannot be loaded or run, or lacks the function.
    """

    async def once() -> NDArray[Any]:
        from coreai.authoring.asset import AIModelAsset
        from coreai.runtime import NDArray as Array

        async with AIModelAsset.load(path).executable() as model:
            if function not in model.function_names:
                raise WorkloadError(f"{path}: no function {function!r}; it has {', '.join(model.function_names)}")
            loaded = model.load_function(function)
            answer: NDArray[Any] = (await loaded({name: Array(x) for name, x in feeds.items()}))["y"].numpy().copy()
            return answer

    if not (path / "main.mlirb").is_file():
        raise WorkloadError(f"{path}: no Core AI model; write it with nas export --format coreai")
    try:
        # In a thread of its own: the caller may be inside a running event loop, as a notebook's is.
        with ThreadPoolExecutor(1) as pool, _untested(), _silent():
            return pool.submit(lambda: asyncio.run(once())).result()
    except WorkloadError:
        raise
    except Exception as error:  # of any class: the runtime's own
        raise WorkloadError(f"{path}: Core AI cannot run it: {one_line(error)}") from None


def error_of(
    path: Path, module: nn.Module, inputs: Sequence[Tensor], names: Sequence[str], function: str = MAIN
) -> float:
    """The largest difference of Core AI's answer from the module's, relative to the latter's largest value.

    Inputs are rounded to the types that the file declares, for Core AI alone.
    """
    import torch

    from device_profiler.evaluator.audit import relative_error

    with torch.no_grad():
        expected = module(*inputs)
    got = predict(path, feeds_of(path, inputs, names, function), function)
    return relative_error(torch.from_numpy(got).reshape(expected.shape), expected)


def feeds_of(path: Path, inputs: Sequence[Tensor], names: Sequence[str], function: str) -> dict[str, NDArray[Any]]:
    """The inputs as arrays of the types that a function declares."""
    import numpy as np

    kinds = {"Float16": np.float16, "Float32": np.float32, "Int32": np.int32}
    declared = dict(summary(path).function_inputs(function))  # "NDArray (Float16, 8 × 32 × 8 × 8)"
    return {
        name: x.numpy().astype(kinds[declared[name].partition("(")[2].partition(",")[0]])
        for name, x in zip(names, inputs, strict=True)
    }


def summary(path: Path) -> Any:
    """What coreai-core tells of a saved file: functions, inputs, operations."""
    with _untested():
        from coreai.authoring.asset import AIModelAsset

        return AIModelAsset.load(path).summary()


def metadata_of(path: Path) -> dict[str, Any]:
    """What ``write`` was told to note in the file."""
    told = json.loads((path / "metadata.json").read_text("utf-8"))
    return dict(told.get("creatorDefinedMetadata", {}))


def describe(path: Path) -> dict[str, Any]:
    """Operations of a saved file by type, constants left out."""
    ops = {name: count for name, count in summary(path).operation_distribution if name != "constant"}
    return {"ops": ops, "operations": sum(ops.values())}


def package_mb(path: Path) -> float:
    """Size of the folder, MB of 10^6 bytes."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e6


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without the line that the runtime writes to standard error for each function; what fails is an exception."""
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


@contextlib.contextmanager
def _untested() -> Iterator[None]:
    """Without the warning that torch 2.13.0+cpu is newer than 2.13.0, which coreai-torch is tested with."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="coreai-torch has only been validated")
        yield
