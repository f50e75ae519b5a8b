"""``nas profile --trace``: one evaluation of a network, operation by operation, as Perfetto draws it."""

import json
from pathlib import Path
from typing import Any

import pytest
from profiler_fakes import small

from device_profiler import ProfileError, trace
from device_profiler.device import Device
from device_profiler.lowering import lower
from device_profiler.runtimes.contract import open_runtime
from device_profiler.trace import Event, layer_of, layers_of, onnx_events, trace_network
from nas.cli import main


def test_onnx_runtime_tells_each_operation_of_one_evaluation(tmp_path: Path) -> None:
    lowered = lower(small(channels=8), "onnx", "plain", tmp_path)
    runtime = open_runtime(Device.load("host_cpu"))
    assert isinstance(runtime, trace.Tracer)
    events = runtime.trace(lowered, 120.0)
    assert "Conv" in {one.name for one in events} and len(events) <= 2 * sum(lowered.stats["ops"].values())
    assert all(one.length_us >= 0 and one.start_us >= 0 for one in events)
    starts = [one.start_us for one in events]
    assert starts == sorted(starts)
    assert [path.name for path in lowered.folder.glob("profile-*")] == [], "ONNX Runtime's own file does not stay"


def test_the_last_evaluation_is_told_with_each_operation_s_place() -> None:
    def ran(name: str, ts: int, kind: str = "Conv") -> dict[str, Any]:
        args = {"op_name": kind, "provider": "CPU", "output_size": "8", "parameter_size": "4"}
        return {"cat": "Node", "name": f"{name}_kernel_time", "ts": ts, "dur": 5, "args": args}

    told = [
        {"cat": "Session", "name": "model_run", "ts": 0, "dur": 9},
        ran("node_conv2d", 1),
        {"cat": "Session", "name": "model_run", "ts": 100, "dur": 50},
        ran("conv2d_nchwc", 110),
        ran("fused of several", 116, "Gelu"),
        ran("node_add", 125, "Add"),
    ]
    events = onnx_events(told, {"node_conv2d": "temporal.down_0_0.0.conv", "node_add": "unet.conv_out"})
    assert [(one.name, one.start_us, one.facts["place"]) for one in events] == [
        ("Conv", 10, "temporal.down_0_0.0.conv"),
        ("Gelu", 16, "temporal.down_0_0.0.conv"),
        ("Add", 25, "unet.conv_out"),
    ]
    layers = layers_of(events)
    assert [(one.name, one.start_us, one.length_us) for one in layers] == [
        ("temporal.down_0_0.0", 10, 11), ("unet.conv_out", 25, 5)
    ]  # fmt: skip


def test_a_layer_is_named_by_its_module_s_first_parts() -> None:
    assert layer_of("unet.up_blocks.0.resnets.1.conv1") == "unet.up_blocks.0.resnets.1"
    assert layer_of("unet.conv_in") == "unet.conv_in" and layer_of("") == "the network"


def test_a_trace_replaces_a_trace_and_nothing_else(tmp_path: Path) -> None:
    about = {"device": "d", "network": "n"}
    event = Event("Conv", "CPU", 1.0, 2.0, {"place": "a"})
    out = tmp_path / "deep" / "t.json"
    for _ in range(2):
        trace._write(out, trace.document([event], layers_of([event]), about))
    told = json.loads(out.read_text())
    drawn = [one for one in told["traceEvents"] if one["ph"] == "X"]
    assert {(one["tid"], one["name"], one["ts"], one["dur"]) for one in drawn} == {(1, "a", 1, 2), (2, "Conv", 1, 2)}
    assert {one["args"]["name"] for one in told["traceEvents"] if one["ph"] == "M"} == {"d: n", "layers", "operations"}
    other = tmp_path / "notes.json"
    other.write_text("{}")
    with pytest.raises(ProfileError, match="is no trace of ours and stays; name another file"):
        trace._write(other, told)


def test_a_runtime_that_tells_no_operations_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ProfileError, match="runtime torch tells no times of operations; trace a device of runtime onnx"
    ):
        trace_network("tiny", Device.load("host_torch"), tmp_path / "t.json", cache=tmp_path)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--trace", "t.json"], "--trace evaluates one network of a SPACE; name one"),
        (["tiny", "--trace", "t.json", "--spatial", "--retry"], "leave --spatial, --retry out"),
        (["tiny", "--arrangement", "a.yaml"], "--arrangement names the network of --trace; give both"),
    ],
)
def test_what_a_trace_does_not_go_with_is_one_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["profile", *words])
    assert end.value.code == 2 and said in capsys.readouterr().err
