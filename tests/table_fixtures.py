"""A small plan and tables over it, for the tests of the lookup tables."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from latency_tables import Header, Plan, Record, Table

SHAPES = {"down.0.0": (16, 48), "down.1.0": (32, 24), "up.0.0": (32, 24), "up.1.0": (16, 48)}
PARAMETERS = {"Conv1D(kernel_size=3)": 3, "Conv3D(kernel_size=3)": 27, "SelfAttention1D(heads=2)": 4}


def plan_json(positions: tuple[str, ...] = tuple(SHAPES), max_layers: int = 2) -> dict[str, Any]:
    """A plan of the contracted schema: shapes and skips like a small UNet's."""
    places = []
    for name in positions:
        channels, side = SHAPES[name]
        layers = []
        for variant, factor in PARAMETERS.items():
            block, _, rest = variant.rstrip(")").partition("(")
            params = {key: int(value) for key, value in (item.split("=") for item in rest.split(", "))}
            layers.append(
                {
                    "variant": variant,
                    "block": block,
                    "params": params,
                    "workload": f"{variant}/c{channels}/t8/{side}x{side}/b1",
                    "parameters": factor * channels * channels,
                }
            )
        places.append(
            {
                "name": name,
                "channels": channels,
                "frames": 8,
                "height": side,
                "width": side,
                "max_layers": max_layers,
                "layers": layers,
            }
        )
    alive = {"down.0.0": [["conv_in", 294912]], "down.1.0": [["conv_in", 294912], ["down.0.0", 294912]]}
    points = [{"name": "conv_in", "kind": "backbone", "skips": []}]
    for name in positions:
        points.append({"name": name, "kind": "position", "skips": alive.get(name, [["conv_in", 294912]])})
    return {
        "schema": 1,
        "space": "small",
        "fingerprint": "0123456789ab",
        "clip": {"name": "deployment", "frames": 8, "height": 48, "width": 48, "fps": 8, "latent": [8, 3, 48, 48]},
        "backbone": {"name": "unet_small", "workload": "backbone:small/t8/48x48/b1", "parameters": 100_000},
        "positions": places,
        "points": points,
    }


def small_plan(positions: tuple[str, ...] = tuple(SHAPES), max_layers: int = 2) -> Plan:
    """The plan of ``plan_json``."""
    return Plan.from_json(plan_json(positions, max_layers))


def small_header(**changes: Any) -> Header:
    """A header of a host CPU."""
    values: dict[str, Any] = {
        "device": "host_cpu",
        "runtime": "onnxruntime",
        "runtime_version": "1.31.1",
        "compute_unit": "cpu",
        "precision": "fp32",
    }
    return Header(**{**values, **changes})


def small_record(key: str, latency_ms: float | None = 1.0, **changes: Any) -> Record:
    """An ok row of ``key``."""
    values: dict[str, Any] = {
        "key": key,
        "lowering": "default",
        "latency_ms_median": latency_ms,
        "weights_mb": 0.01,
        "activation_peak_mb": 2.0,
        "runs": 30,
        "latency_iqr_ratio": 0.01,
    }
    return Record(**{**values, **changes})


def small_table(plan: Plan | None = None, seed: int = 0, header: Header | None = None, **changes: Any) -> Table:
    """A complete table of the plan: random costs, a dear 3D convolution, a backbone of 5 ms."""
    plan = plan or small_plan()
    rng = np.random.default_rng(seed)
    header = header or small_header()
    records = [
        small_record(
            f"{plan.backbone_workload}@{header.precision}",
            5.0,
            block="backbone",
            weights_mb=0.4,
            activation_peak_mb=6.0,
            **changes,
        )
    ]
    layers = {layer.workload: layer for position in plan.positions for layer in position.layers}
    for workload, layer in layers.items():
        factor = 4.0 if "3D" in layer.label else 1.0
        records.append(
            small_record(
                f"{workload}@{header.precision}",
                float(rng.uniform(0.4, 2.5)) * factor,
                block=layer.variant.block,
                params=",".join(f"{name}={value}" for name, value in layer.variant.params),
                weights_mb=layer.parameters * 4 / 1e6 * float(rng.uniform(1.0, 1.2)),
                activation_peak_mb=float(rng.uniform(1.0, 5.0)) * factor**0.5,
                **changes,
            )
        )
    return Table(header, records)


def slow_costs(plan: Plan, table: Table, arrangement: dict[str, tuple[str, ...]]) -> tuple[float, float, float, int]:
    """(latency_ms, weights_mb, peak_mb, parameters) of one arrangement, in plain Python, from the definition."""
    rows = {record.key: record for record in table}
    precision = table.header.precision
    size = {"fp32": 4, "fp16": 2}[precision]
    backbone = rows[f"{plan.backbone_workload}@{precision}"]
    latency, weights, peak = backbone.latency_ms_median, backbone.weights_mb, backbone.activation_peak_mb
    parameters = plan.backbone_parameters
    assert latency is not None and weights is not None and peak is not None
    for position in plan.positions:
        skips = next(point.skips for point in plan.points if point.name == position.name)
        live = sum(elements for _, elements in skips) * size / 1e6
        for label in arrangement[position.name]:
            layer = next(layer for layer in position.layers if layer.label == label)
            row = rows[f"{layer.workload}@{precision}"]
            if not row.ok:
                return float("inf"), float("inf"), float("inf"), parameters
            assert row.latency_ms_median is not None and row.weights_mb is not None
            assert row.activation_peak_mb is not None
            latency += row.latency_ms_median
            weights += row.weights_mb
            peak = max(peak, live + row.activation_peak_mb)
            parameters += layer.parameters
    return latency, weights, weights + peak, parameters


def every_arrangement(sizes: list[int]) -> np.ndarray[Any, Any]:
    """All option indices of a small space, shape (N, P)."""
    return np.array(list(itertools.product(*(range(size) for size in sizes))), dtype=np.int64)
