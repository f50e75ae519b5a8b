"""Module to Core ML: an ``.mlpackage`` for iOS 18 in float16, with its operations, ranks, weights and static plan.

The way that works on Linux with current torch and numpy: ``torch.export`` with an empty decomposition table (the full
one tiles weights; ``jit.trace`` fails with numpy >= 2.4). Nothing here needs a Mac; running the package does.
"""

from __future__ import annotations

import gc
import math
import shutil
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from device_profiler.child import classify
from device_profiler.errors import WORKLOAD_ERRORS, Unsupported, WorkloadError, one_line
from device_profiler.lowering.liveness import Step, live_peak_bytes
from device_profiler.quiet import quiet

if TYPE_CHECKING:
    from torch import Tensor, nn

MAX_RANK = 5  # of any tensor in Core ML
FUSED = "scaled_dot_product_attention"
VIEWS = {"reshape", "squeeze", "expand_dims", "identity"}
EXPORT_TOLERANCE = 1e-3
EVALUATED_TOLERANCE = 1e-2  # of the saved package in float32 arithmetic: its weights are float16, its function is ours


def lower(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    names: tuple[str, ...],
    lowering: str,
    precision: str,
    folder: Path,
    check: bool = True,
    safe: bool = False,
    wide: Collection[str] = (),
) -> dict[str, Any]:
    """Write ``model.mlpackage`` into the folder and say what is in it.

    Args:
        lowering: ``fused`` keeps attention one operation, ``decomposed`` spells it out; ``plain`` has none.
        precision: fp16, or fp32 for a comparison.
        check: run module, exported program and saved package and compare them; without it their errors are None.

        safe, wide: as ``convert``.

    Returns:
        ``file``, ``weights_mb`` (size of the weight file), ``ops`` (count by type, constants left out), ``operations``,
        ``attention_ops``, ``max_rank``, ``static_peak_mb``, ``export_error`` of the exported program in torch,
        ``numeric_error`` of the package evaluated in float32 and in float16 (``device_profiler.evaluator``), and
        ``evaluated``, a sample of its output in float16 (``None`` where that is not known or not finite).

    Raises:
        Unsupported: if a tensor has more than five axes, or Core ML lacks an operation.
        WorkloadError: if the exported program or the package computes something else than the module.
    """
    path = folder / "model.mlpackage"
    fused = lowering != "decomposed"
    model, error = convert(module, inputs, names, fused=fused, precision=precision, check=check, safe=safe, wide=wide)
    if check and not error <= EXPORT_TOLERANCE:
        raise WorkloadError(
            f"the exported program is off by {error:.2g} against the module; its output cannot be trusted"
        )
    stats = describe(model._mil_program)
    if stats["max_rank"] > MAX_RANK:
        raise Unsupported(f"a tensor has {stats['max_rank']} axes, over Core ML's {MAX_RANK}; reshape in the block")
    if path.exists():
        shutil.rmtree(path)
    model.save(str(path))
    weights = sum(file.stat().st_size for file in path.rglob("weight.bin"))
    numeric, evaluated = numeric_error(path, module, inputs, names) if check else (None, None)
    return {
        "file": path.name,
        "weights_mb": weights / 1e6,
        "package_mb": sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) / 1e6,
        "static_peak_mb": weights / 1e6 + stats.pop("live_peak_mb"),
        "export_error": error if check else None,
        "numeric_error": numeric,
        "evaluated": evaluated,
        **stats,
    }


def convert(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    names: tuple[str, ...],
    *,
    fused: bool = True,
    precision: str = "fp16",
    check: bool = True,
    safe: bool = False,
    wide: Collection[str] = (),
) -> tuple[Any, float]:
    """The Core ML model of a module (not loaded), and its exported program's error (nan without ``check``).

    Inputs and output are float16 where the precision is (whole numbers int32); the output is called ``y``. Functions
    that the converter does not keep are spelled as ``device_profiler.lowering.spelled`` says, and angles are float32.

    Args:
        safe: spell what may leave float16's range, too.
        wide: inputs that enter in float32, such as a timestep.

    Raises:
        WorkloadError: what the converter said, as the status that it stands for.
    """
    import torch

    with quiet():
        import coremltools as ct

        from device_profiler.lowering.spelled import DECOMPOSITIONS, Spelling, keeps_float16

        with torch.no_grad():
            with Spelling(fused=fused, safe=safe):
                exported = torch.export.export(module.eval(), tuple(inputs)).run_decompositions(DECOMPOSITIONS)
            off = _export_error(module, exported, inputs) if check else float("nan")
        half = precision == "fp16"
        number = np.float16 if half else np.float32
        how: Any = ct.transform.FP16ComputePrecision(op_selector=keeps_float16) if half else ct.precision.FLOAT32
        problem: WorkloadError | None = None
        try:
            model = ct.convert(
                exported,
                inputs=[
                    ct.TensorType(
                        name=name,
                        shape=tuple(x.shape),
                        dtype=np.int32 if not x.is_floating_point() else np.float32 if name in wide else number,
                    )
                    for name, x in zip(names, inputs, strict=True)
                ],
                outputs=[ct.TensorType(name="y", dtype=number)],
                minimum_deployment_target=ct.target.iOS18,
                compute_precision=how,
                skip_model_load=True,
            )
        except Exception as error:  # of any class: a converter's own, or Python's from deep inside it
            problem = WORKLOAD_ERRORS[classify(error)](one_line(error))
        gc.collect()  # the converter's temporary folder goes in here, with its warning
        if problem is not None:
            raise problem
    return model, off


def numeric_error(
    path: Path, module: nn.Module, inputs: tuple[Tensor, ...], names: tuple[str, ...]
) -> tuple[dict[str, float | str | None], list[float] | None]:
    """Error of the saved package against the module, ``fp32`` and ``fp16``; a sample of its output in float16.

    ``None`` is not finite; or not known, where ``reason`` says which operation the evaluator lacks.

    Raises:
        WorkloadError: if it computes something else in float32 arithmetic.
    """
    import torch

    from device_profiler.evaluator.check import check_package
    from device_profiler.evaluator.types import UnknownOperation
    from device_profiler.lowering import sampled_places

    try:
        found = check_package(path, module, inputs, names)
    except UnknownOperation as unknown:
        return {"fp32": None, "fp16": None, "reason": one_line(unknown)}, None
    if not found.error_fp32 <= EVALUATED_TOLERANCE:
        raise WorkloadError(one_line(found.problem(EVALUATED_TOLERANCE, None)))
    both = {"fp32": found.error_fp32, "fp16": found.error_fp16}
    output = next(iter(found.audit.outputs.values())).float().flatten()
    sampled = output[torch.from_numpy(sampled_places(output.numel()))]
    return (
        {name: error if math.isfinite(error) else None for name, error in both.items()},
        sampled.tolist() if bool(sampled.isfinite().all()) else None,
    )


def _export_error(module: nn.Module, exported: Any, inputs: tuple[Tensor, ...]) -> float:
    expected, got = module(*inputs), exported.module()(*inputs)
    return float((got - expected).abs().max() / expected.abs().max().clamp_min(1e-12))


def describe(program: Any) -> dict[str, Any]:
    """Operation counts, largest rank and static peak of a converted program."""
    function = program.functions["main"]
    ops: Counter[str] = Counter()
    sizes: dict[str, int] = {}
    alias: dict[str, str] = {}
    steps: list[Step] = []
    rank = 0
    for name, var in function.inputs.items():
        sizes[name] = _bytes(var)
    for op in function.operations:
        if op.op_type == "const" or op.op_type.startswith("constexpr"):
            continue
        ops[op.op_type] += 1
        rank = max([rank, *(var.rank for var in op.outputs if hasattr(var, "rank"))])
        reads = [alias.get(v.name, v.name) for v in _inputs(op) if v.op is None or v.op.op_type != "const"]
        if op.op_type in VIEWS and reads:
            alias[op.outputs[0].name] = reads[0]
            continue
        for var in op.outputs:
            sizes[var.name] = _bytes(var)
        steps.append((reads, [var.name for var in op.outputs]))
    kept = [alias.get(var.name, var.name) for var in function.outputs]
    return {
        "ops": dict(sorted(ops.items())),
        "operations": sum(ops.values()),
        "attention_ops": ops[FUSED],
        "max_rank": rank,
        "live_peak_mb": live_peak_bytes(steps, sizes, list(function.inputs), kept) / 1e6,
    }


def _inputs(op: Any) -> list[Any]:
    found: list[Any] = []
    for value in op.inputs.values():
        found.extend(value if isinstance(value, (list, tuple)) else [value])
    return [var for var in found if var is not None]


def _bytes(var: Any) -> int:
    from coremltools.converters.mil.mil.types.type_mapping import nptype_from_builtin

    shape = [int(size) for size in var.shape]
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(nptype_from_builtin(var.dtype)).itemsize
