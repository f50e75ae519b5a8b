"""Module to ONNX by torch.onnx's exporter, attention spelled out (``decomposed``) or as one operation (``fused``)."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from device_profiler.lowering.liveness import Step, live_peak_bytes

if TYPE_CHECKING:
    from torch import Tensor, nn

# Opset 23 is the first with an Attention operation; 20 is what every runtime of the last years executes.
OPSETS = {"plain": 20, "decomposed": 20, "fused": 23}
VIEWS = {"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Shape", "Constant"}
EMBED_LIMIT = 1_500_000_000  # one protobuf holds 2 GB at most; larger weights go into a file beside it


def lower(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    names: tuple[str, ...],
    lowering: str,
    precision: str,
    folder: Path,
) -> dict[str, Any]:
    """Write ``model.onnx`` into the folder and say what is in it.

    Returns:
        ``file``, ``weights_mb`` (bytes of the initializers), ``ops`` (count by type), ``attention_ops``,
        ``static_peak_mb`` (weights plus the most tensors alive at once).
    """
    import onnx
    import torch

    if precision == "fp16":
        module = module.half()
        inputs = tuple(x.half() if x.is_floating_point() else x for x in inputs)
    path = folder / "model.onnx"
    weights = sum(p.numel() * p.element_size() for p in (*module.parameters(), *module.buffers()))
    with quiet():
        torch.onnx.export(
            module,
            inputs,
            str(path),
            input_names=list(names),
            output_names=["y"],
            opset_version=OPSETS[lowering],
            dynamo=True,
            external_data=weights > EMBED_LIMIT,
            verbose=False,
        )
    model = onnx.load(str(path), load_external_data=False)
    return {"file": "model.onnx", **describe(model)}


def describe(model: Any) -> dict[str, Any]:
    """Operation counts, weights and static peak of an ONNX model."""
    graph = model.graph
    weights = {tensor.name: _bytes(tensor.data_type, tensor.dims) for tensor in graph.initializer}
    sizes = {}
    for value in (*graph.input, *graph.output, *graph.value_info):
        kind = value.type.tensor_type
        sizes[value.name] = _bytes(kind.elem_type, [d.dim_value for d in kind.shape.dim])
    inputs = [value.name for value in graph.input if value.name not in weights]
    alias: dict[str, str] = {}
    steps: list[Step] = []
    for node in graph.node:
        reads = [alias.get(name, name) for name in node.input if name and name not in weights]
        if node.op_type in VIEWS and reads:
            alias[node.output[0]] = reads[0]
            continue
        steps.append((reads, [name for name in node.output if name]))
    kept = [alias.get(value.name, value.name) for value in graph.output]
    ops = Counter(node.op_type for node in graph.node)
    weight_bytes = sum(weights.values())
    return {
        "weights_mb": weight_bytes / 1e6,
        "static_peak_mb": (weight_bytes + live_peak_bytes(steps, sizes, inputs, kept)) / 1e6,
        "ops": dict(sorted(ops.items())),
        "attention_ops": ops.get("Attention", 0),
    }


def _bytes(data_type: int, dims: Any) -> int:
    import numpy as np
    from onnx import helper

    count = 1
    for dim in dims:
        count *= int(dim)
    return count * np.dtype(helper.tensor_dtype_to_np_dtype(data_type)).itemsize


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The exporter warns of packages it does not need and of its own deprecations; nothing of ours is silenced."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning, module="onnxscript.*|torch.*")
            yield
    finally:
        logger.setLevel(level)
