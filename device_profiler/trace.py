"""One evaluation of a network as a trace: each operation's time on the device, for Perfetto (ui.perfetto.dev).

The format is Chrome's trace events, which Perfetto opens: complete events (``ph: X``) with a start and a length in
microseconds. Two rows: the layers of the network, and within them the operations as the runtime executed them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from device_profiler.errors import ProfileError, WorkloadError
from search_spaces.arrangement import Arrangement
from search_spaces.space import Space

if TYPE_CHECKING:
    from device_profiler.device import Device
    from device_profiler.lowering import Lowered

PARTS = 5  # of a module's name, at most, that name a layer
ELSEWHERE = "the network"
SCOPE = re.compile("'([^']*)'")  # a module's name in what torch's exporter notes: ['', 'network.unet', 'conv_in']
ROWS = ((1, "layers"), (2, "operations"))


@dataclass(frozen=True)
class Event:
    """One operation of an evaluation: its name, its kind, start and length in microseconds, and what is known of it."""

    name: str
    kind: str
    start_us: float
    length_us: float
    facts: Mapping[str, Any]


@runtime_checkable
class Tracer(Protocol):
    """A runtime that tells the time of each operation of one evaluation."""

    def trace(self, lowered: Lowered, timeout_s: float) -> list[Event]:
        """The operations of one evaluation after warming up, in order."""
        ...


def trace_network(
    space: str,
    device: Device,
    out: Path,
    *,
    arrangement: Arrangement | None = None,
    cache: Path,
    clip: str = "deployment",
) -> dict[str, Any]:
    """Evaluate one network on the device and write its trace.

    Args:
        arrangement: the network's; the space's baseline where none is given. cache: of lowered files.

    Returns:
        ``trace`` (the file), ``ms`` (from the first operation to the end of the last), ``operations``, ``slowest``
        (layers with their ms, the five that took longest).

    Raises:
        ProfileError: if the runtime tells no times of operations, or the network cannot be run.
    """
    from device_profiler.lowering import default_lowerings, lower_all
    from device_profiler.profile import _open, _origin
    from device_profiler.subject import Subject

    runtime = _open(device)
    if not isinstance(runtime, Tracer):
        raise ProfileError(
            f"{device.name}: runtime {device.runtime} tells no times of operations; trace a device of runtime "
            "onnxruntime, or on Apple's use xctrace record --template 'Core ML'."
        )
    loaded = Space.load(space)
    chosen = arrangement or loaded.baseline()
    workload = loaded.network_workload(chosen, device.precision, clip)
    subject = Subject(workload, _origin(space, loaded), chosen)
    lowering = (device.lowerings or default_lowerings(runtime.toolkit, workload))[0]
    try:
        ((_, lowered),) = lower_all([(subject, runtime.toolkit, lowering)], cache, workers=1)
        if isinstance(lowered, WorkloadError):
            raise lowered
        events = runtime.trace(lowered, device.timeout_s)
    except WorkloadError as error:
        raise ProfileError(f"{workload.key}: cannot be traced: {error}") from None
    finally:
        runtime.close()
    layers = layers_of(events)
    about = {"network": workload.key, "lowering": lowering, "device": device.name, **runtime.describe()}
    _write(out, document(events, layers, about))
    slowest = sorted(layers, key=lambda one: -one.length_us)[:5]
    return {
        "trace": str(out),
        "ms": round((events[-1].start_us + events[-1].length_us - events[0].start_us) / 1e3, 3),
        "operations": len(events),
        "slowest": {one.name: round(one.length_us / 1e3, 3) for one in slowest},
    }


def layers_of(events: Sequence[Event]) -> list[Event]:
    """Operations of one layer that follow each other, as one event each."""
    found: list[Event] = []
    for one in events:
        name = layer_of(str(one.facts.get("place", "")))
        end = one.start_us + one.length_us
        if found and found[-1].name == name:
            before = found[-1]
            found[-1] = Event(name, "layer", before.start_us, end - before.start_us, {})
        else:
            found.append(Event(name, "layer", one.start_us, one.length_us, {}))
    return found


def layer_of(place: str) -> str:
    """The layer that a module belongs to: its name up to the last number among its first parts.

    >>> layer_of("temporal.down_0_0.0.to_q"), layer_of("unet.conv_in"), layer_of("")
    ('temporal.down_0_0.0', 'unet.conv_in', 'the network')
    """
    parts = place.split(".")[:PARTS]
    numbers = [index for index, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[-1] + 1] if numbers else parts) or ELSEWHERE


def document(events: Iterable[Event], layers: Iterable[Event], about: Mapping[str, str]) -> dict[str, Any]:
    """The trace as JSON: what Perfetto draws, and what it was made of."""
    drawn: list[dict[str, Any]] = [_named("process_name", 0, f"{about['device']}: {about['network']}")]
    drawn += [_named("thread_name", row, name) for row, name in ROWS]
    for row, some in ((1, layers), (2, events)):
        drawn += [
            {
                **{"ph": "X", "pid": 1, "tid": row, "name": one.name, "cat": one.kind},
                **{"ts": one.start_us, "dur": one.length_us, "args": dict(one.facts)},
            }
            for one in some
        ]
    return {"traceEvents": drawn, "displayTimeUnit": "ms", "otherData": dict(about)}


def places_of(model: Path) -> dict[str, str]:
    """ONNX node -> the module it comes from, as torch's exporter noted it in the file."""
    import onnx

    found = {}
    for node in onnx.load(str(model), load_external_data=False).graph.node:
        noted = {entry.key: entry.value for entry in node.metadata_props}.get("pkg.torch.onnx.name_scopes")
        if noted:
            scopes = [scope for scope in SCOPE.findall(noted)[:-1] if scope]
            found[node.name] = scopes[-1].removeprefix("network.") if scopes else ""
    return found


def onnx_events(told: Sequence[Mapping[str, Any]], places: Mapping[str, str]) -> list[Event]:
    """The operations of the last evaluation in ONNX Runtime's profile.

    An operation that ONNX Runtime made of several has a name of its own; it is taken to be where the last one was.
    """
    runs = [event for event in told if event["name"] == "model_run"]
    start = max(event["ts"] for event in runs)
    nodes = [e for e in told if e["cat"] == "Node" and e["name"].endswith("_kernel_time") and e["ts"] >= start]
    place, found = "", []
    for event in sorted(nodes, key=lambda event: event["ts"]):
        name = event["name"].removesuffix("_kernel_time")
        plain = name.removesuffix("_nchwc")
        place = next((places[known] for known in (name, plain, f"node_{plain}") if known in places), place)
        args = event["args"]
        facts = {"place": place, "name": name, "output_bytes": int(args.get("output_size", 0))}
        facts["weight_bytes"] = int(args.get("parameter_size", 0))
        found.append(Event(args["op_name"], args["provider"], event["ts"] - start, event["dur"], facts))
    return found


def _named(kind: str, row: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "pid": 1, "tid": row, "name": kind, "args": {"name": name}}


def _write(out: Path, told: Mapping[str, Any]) -> None:
    if out.exists() and not _is_trace(out):
        raise ProfileError(f"{out}: is no trace of ours and stays; name another file.")
    partial = out.with_name(f".{out.name}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(told))
        os.replace(partial, out)
    except OSError as error:
        raise ProfileError(f"{out}: cannot be written ({error.strerror}); name another file.") from None


def _is_trace(path: Path) -> bool:
    try:
        told = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(told, dict) and "traceEvents" in told and "network" in (told.get("otherData") or {})
