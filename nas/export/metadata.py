"""What a package says of itself: which model it is, and what a table predicts that it will cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nas.model.network import VideoUNet

PREFIX = "temporal_nas."


def facts_of(unet: VideoUNet, predicted: dict[str, str] | None = None, check: Any = None) -> dict[str, str]:
    """Name -> text: space, arrangement, toolkit version, what the check told, and predicted costs where there are."""
    from nas.doctor import version

    space, arrangement = unet.space, unet.arrangement
    layers = "; ".join(f"{name}: {' + '.join(labels)}" for name, labels in arrangement.labels().items() if labels)
    known = {
        "version": version("temporal-nas") or "unknown",
        "space": space.name,
        "arrangement": arrangement.key,
        "layers": layers,
    }
    if check is not None:
        known["check"] = check if isinstance(check, str) else json.dumps(check)
    return {**known, **(predicted or {})}


def predicted_costs(unet: VideoUNet, device: str, tables: Path) -> dict[str, str]:
    """What the device's table predicts for one evaluation at the space's deployment clip, which tables are made of.

    Raises:
        TableError: if there is no such table, or it lacks rows of the space.
    """
    from latency_tables.cost import CostModel
    from latency_tables.lookup import load_table
    from latency_tables.plan import Plan as CostPlan
    from latency_tables.predict import predict
    from search_spaces.planning import load_plan

    table = load_table(device, tables)
    plan = CostPlan.from_json(load_plan(unet.space).to_json())
    found = predict(CostModel(plan, table, allow_mixed=True), unet.arrangement.labels())
    clip = unet.space.clip("deployment")
    return {
        "clip": f"{clip.frames}x{clip.height}x{clip.width}",
        "device": f"{found.device}/{found.runtime}",
        "latency_ms": f"{found.latency_ms:.3f}",
        "latency_low_ms": f"{found.latency_low_ms:.3f}",
        "latency_high_ms": f"{found.latency_high_ms:.3f}",
        "peak_mb": f"{found.peak_mb:.2f}",
        "source": found.source,
        "evidence": found.audit,
    }


def write(package: Path, facts: dict[str, str]) -> None:
    """Put the facts into the package's user-defined metadata, each under ``temporal_nas.``."""
    from device_profiler.quiet import quiet

    with quiet():
        from coremltools.proto import Model_pb2

    file = next(package.rglob("*.mlmodel"))
    spec = Model_pb2.Model()
    spec.ParseFromString(file.read_bytes())
    for name, text in facts.items():
        spec.description.metadata.userDefined[PREFIX + name] = text
    file.write_bytes(spec.SerializeToString())
