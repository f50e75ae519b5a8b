"""How far ONNX Runtime rewrites a graph is a fact of a device, kept in the header of its table."""

from __future__ import annotations

import pytest

from device_profiler.device import Device
from device_profiler.errors import ProfileError
from device_profiler.profile import settings
from device_profiler.runtimes.onnxruntime import OnnxRuntime
from latency_tables import Header


def test_the_level_reaches_the_runtime_and_the_header() -> None:
    plain = Device(name="a", runtime="onnxruntime")
    bare = Device(name="a", runtime="onnxruntime", optimization="none")
    assert OnnxRuntime(plain).options()["optimization"] == "all" and "optimization" not in settings(plain)
    assert OnnxRuntime(bare).options()["optimization"] == settings(bare)["optimization"] == "none"
    ours, theirs = (Header("a", "onnxruntime", details={"optimization": level}) for level in ("none", "basic"))
    assert ours.conflicts(theirs) == ["optimization none and basic"]


def test_another_runtime_has_no_level() -> None:
    with pytest.raises(ProfileError, match="optimization is for runtime onnxruntime alone"):
        Device.parse("name: a\nruntime: torch\noptimization: none\n")
    with pytest.raises(ProfileError, match="optimization"):
        Device.parse("name: a\nruntime: onnxruntime\noptimization: most\n")
