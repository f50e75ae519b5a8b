"""The network's package as a graph for Google's Model Explorer, with what a table and the evaluator know of its nodes.

``unet.graph/graph.json`` is the graph (nodes are operations, grouped by their place in the network); ``ms.json``,
``bytes.json``, ``unit.json`` and ``error.json`` are node data to lay over it. The forms are those of
``ai-edge-model-explorer``: ``graph_builder.GraphCollection`` and ``node_data_builder.ModelNodeData``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.export.checks import Places

if TYPE_CHECKING:
    from device_profiler.evaluator.check import Check
    from device_profiler.evaluator.package import Function, Operation
    from device_profiler.evaluator.types import TensorType
    from latency_tables.record import Record
    from nas.model.network import VideoUNet

SUFFIX, GRAPH = ".graph", "graph.json"
INPUTS, OUTPUT = "the inputs", "output"
UNITS = {"cpu": "CPU", "gpu": "GPU", "ane": "Neural Engine"}
COLOURS = {"CPU": "#4477aa", "GPU": "#ccbb44", "Neural Engine": "#228833"}
WARM = [{"stop": 0, "bgColor": "#ffffff"}, {"stop": 1, "bgColor": "#ee6677"}]
DATA = {
    "ms": "ms (the table's row of a layer, at its last operation; the rest is the backbone's, at the output)",
    "bytes": "bytes (stored weights read, and what comes out)",
    "unit": "compute unit (most operations of the row)",
    "error": "error of float16 against float32 in torch (of the largest value)",
}


@dataclass(frozen=True)
class Row:
    """What a device's table says of one layer, or of the backbone: its latency, and where most of it runs."""

    ms: float
    unit: str


@dataclass(frozen=True)
class Drawn:
    """One function of a saved package: its operations, what the evaluator read of them, and where they belong."""

    function: Function
    places: Places
    check: Check | None


def rows_of(unet: VideoUNet, device: str, tables: Path) -> dict[str, Row]:
    """Module -> its row in the device's table; the backbone's under the empty name.

    Raises:
        TableError: if there is no such table, or it lacks rows of the space.
    """
    from latency_tables.cost import CostModel
    from latency_tables.lookup import load_table
    from search_spaces.network import module_name
    from search_spaces.planning import load_plan

    table, space = load_table(device, tables), unet.space
    plan = load_plan(space)
    rows = CostModel(plan, table, allow_mixed=True).rows
    found = {"": _row(rows[plan.backbone_workload])}
    for position, variants in unet.arrangement.layers:
        for index, variant in enumerate(variants):
            record = rows[space.workload(position, variant, table.header.precision).base]
            found[f"temporal.{module_name(position)}.{index}"] = _row(record)
    return found


def _row(record: Record) -> Row:
    shares = {name: getattr(record, f"placement_{name}") or 0.0 for name in UNITS}
    most = max(shares, key=lambda name: shares[name])
    return Row(record.latency_ms_median or 0.0, UNITS[most] if shares[most] else "")


def write(folder: Path, package: str, drawn: Sequence[Drawn], rows: Mapping[str, Row]) -> list[str]:
    """Write the graph and its node data into a new folder; gives the names of the files.

    Node data of which nothing is known (``ms`` and ``unit`` without a table, ``error`` without a check) has no file.
    """
    folder.mkdir()
    graphs = [graph_of(one) for one in drawn]
    (folder / GRAPH).write_text(json.dumps({"label": package, "graphs": graphs}))
    written = [GRAPH]
    for name, said in DATA.items():
        told = {one.function.name: _data(name, said, values_of(one, rows)[name]) for one in drawn}
        if any(one["results"] for one in told.values()):
            (folder / f"{name}.json").write_text(json.dumps(told))
            written.append(f"{name}.json")
    return written


def graph_of(drawn: Drawn) -> dict[str, Any]:
    """One function: a node for each input, each operation and the output; constants are left out."""
    function, nodes, makers = drawn.function, [], {}
    for name, kind in function.inputs:
        makers[name] = name
        nodes.append({"id": name, "label": name, "namespace": "", "outputsMetadata": [_tensor(name, kind)]})
    for one, place in _placed(drawn):
        nodes.append(
            {
                "id": one.name,
                "label": one.kind,
                "namespace": place.replace(".", "/") if place != INPUTS else "",
                "incomingEdges": _edges(one.reads(), makers),
                "outputsMetadata": [_tensor(name, kind) for name, kind in one.outputs],
                "attrs": [{"key": "name", "value": one.name}, {"key": "place", "value": place}],
            }
        )
        makers |= {name: one.name for name, _ in one.outputs}
    nodes.append({"id": OUTPUT, "label": OUTPUT, "namespace": "", "incomingEdges": _edges(function.outputs, makers)})
    return {"id": function.name, "nodes": nodes}


def values_of(drawn: Drawn, rows: Mapping[str, Row]) -> dict[str, dict[str, float | str]]:
    """``ms``, ``bytes``, ``unit`` and ``error`` of each node that has one."""
    found: dict[str, dict[str, float | str]] = {name: {} for name in DATA}
    last: dict[str, str] = {}
    packed = _packed(drawn.function)
    for one, place in _placed(drawn):
        owner = next((name for name in rows if name and f"{place}.".startswith(f"{name}.")), "")
        last[owner] = one.name
        stored = sum(_stored(drawn.function, name) + packed.get(name, 0) for name in one.reads())
        found["bytes"][one.name] = stored + sum(_bytes(kind) for _, kind in one.outputs)
        if owner in rows and rows[owner].unit:
            found["unit"][one.name] = rows[owner].unit
    found["ms"] = {last[owner] if owner else OUTPUT: row.ms for owner, row in rows.items() if owner in last}
    for reading in drawn.check.audit.readings if drawn.check is not None else ():
        if math.isfinite(reading.error):
            found["error"][reading.name] = float(f"{reading.error:.3g}")
    return found


def _packed(function: Function) -> dict[str, int]:
    """Value -> bytes of what it is unpacked from, of weights in fewer bits; the operations that do it are no nodes."""
    found: dict[str, int] = {}
    for one in function.operations:
        if one.kind.startswith("constexpr_"):
            size = sum(_stored(function, name) + found.get(name, 0) for name in one.reads())
            found |= {name: size for name, _ in one.outputs}
    return found


def _stored(function: Function, name: str) -> int:
    return _bytes(function.declared(name)) if function.is_stored(name) else 0


def _placed(drawn: Drawn) -> list[tuple[Operation, str]]:
    """Each operation that computes, with the module whose weight was read last."""
    place, found = INPUTS, []
    for one in drawn.function.operations:
        stored = [name for key in ("weight", "gamma") for name in one.inputs.get(key, ())]
        named = [name for name in (*stored, *one.reads()) if drawn.function.is_stored(name)]
        place = next((known for name in named if (known := drawn.places.module(name))), place)
        if not one.kind.startswith("constexpr_"):
            found.append((one, place))
    return found


def _edges(reads: Any, makers: Mapping[str, str]) -> list[dict[str, str]]:
    known = [name for name in reads if name in makers]
    return [
        {"sourceNodeId": makers[name], "sourceNodeOutputId": name, "targetNodeInputId": str(place)}
        for place, name in enumerate(known)
    ]


def _tensor(name: str, kind: TensorType) -> dict[str, Any]:
    shape = "x".join("?" if size is None else str(size) for size in kind.shape)
    told = {"tensor_name": name, "tensor_shape": f"{kind.kind.lower()}[{shape}]"}
    return {"id": name, "attrs": [{"key": key, "value": value} for key, value in told.items()]}


def _bytes(kind: TensorType) -> int:
    from device_profiler.evaluator.types import BITS

    return math.ceil(math.prod(size or 0 for size in kind.shape) * BITS.get(kind.kind, 0) / 8)


def _data(name: str, said: str, values: Mapping[str, float | str]) -> dict[str, Any]:
    results = {node: {"value": value} for node, value in values.items()}
    if name == "unit":
        return {
            "name": said,
            "results": {n: {**one, "bgColor": COLOURS[str(one["value"])]} for n, one in results.items()},
        }
    return {"name": said, "results": results, "gradient": WARM}
