"""Devices: what ships, and what a wrong YAML is told."""

import platform
import re
from pathlib import Path

import pytest

from device_profiler import ProfileError, host
from device_profiler.device import Device, list_devices

GOOD = "name: board\nruntime: onnxruntime\nprecision: fp32\n"


def test_shipped_devices_load_and_are_named_like_their_files() -> None:
    for name in list_devices():
        assert Device.load(name).name == name
    assert {"host_cpu", "host_torch", "iphone16_pro_max_roofline"} <= set(list_devices())


def test_the_embedded_default_is_one_thread_of_onnxruntime() -> None:
    device = Device.load("host_cpu")
    assert (device.runtime, device.threads, device.precision) == ("onnxruntime", 1, "fp32")


def test_an_estimated_device_states_its_ceilings_and_their_source() -> None:
    device = Device.load("iphone16_pro_max_roofline")
    assert device.roofline is not None and "Apple" in device.roofline.source
    assert "estimate" in device.summary


def test_a_path_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "board.yaml"
    path.write_text(GOOD)
    assert Device.load(path).name == "board"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("memory_limt_mb: 5", r"unknown key 'memory_limt_mb'. Did you mean 'memory_limit_mb'\?"),
        ("memory_limit_mb: 8GB", r"memory_limit_mb: '8GB' is not a number of MB"),
        ("memory_limit_mb: -5", r"memory_limit_mb: .*greater than 0"),
        ("compute_unit: ANE", r"compute_unit: 'ANE' is not allowed; it must be 'ALL'"),
        ("method: once", r"method: 'once' is not allowed; it must be 'alone', 'slope' or 'in_context'"),
        ("precision: fp16", r"key 'precision' stands there twice; keep one, line 4"),
        ("memory_limit_mb: .inf", r"memory_limit_mb: .*finite number"),
        ("threads: 1.5", r"threads: 1.5 is not a number"),
        ("timeout_s: 10 min", r"timeout_s: '10 min' is not a number of seconds; write the bare number"),
        ("memory_limit_gb: 8", r"unknown key 'memory_limit_gb'. Did you mean 'memory_limit_mb'\?"),
        ("local: maybe", r"local: 'maybe' is neither true nor false"),
        ("local: true", r"local is for runtime coreml alone, and this is onnxruntime; leave it out"),
        ("cuda_graph: true", r"cuda_graph is for runtime torch on compute_unit CUDA"),
        ("roofline: {peak_tflop: 1, bandwidth_gb_s: 2, source: x}", r"roofline.peak_tflop"),
        ("roofline: {peak_tflops: 2 T, bandwidth_gb_s: 2, source: x}", r"'2 T' is not a number of TFLOP/s"),
    ],
)
def test_a_wrong_value_is_one_line_with_the_remedy(change: str, message: str) -> None:
    with pytest.raises(ProfileError, match=message) as caught:
        Device.parse(GOOD + change, origin="board.yaml")
    assert "\n" not in str(caught.value) and str(caught.value).startswith("board.yaml: ")


def test_unknown_names_are_told_the_nearest() -> None:
    with pytest.raises(ProfileError, match=r"unknown device 'host_cpuu'. Did you mean 'host_cpu'\?"):
        Device.load("host_cpuu")
    with pytest.raises(ProfileError, match=r"unknown runtime 'onnxruntme'. Did you mean 'onnxruntime'\?"):
        Device.parse(GOOD.replace("onnxruntime", "onnxruntme"))


@pytest.mark.parametrize("text", ["- a list", "a: [", "runtime: onnxruntime", "name: x\nruntime: roofline"])
def test_what_is_no_device_is_refused(text: str) -> None:
    with pytest.raises(ProfileError):
        Device.parse(text)


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=re.escape("absent.yaml does not exist")):
        Device.load(tmp_path / "absent.yaml")


def test_macs_are_told_apart_by_their_chip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "processor", lambda: "arm")
    tool = tmp_path / "sysctl"
    tool.write_text('#!/bin/sh\n[ "$*" = "-n machdep.cpu.brand_string" ] && echo Apple M4 Pro\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert host.chip() == "Apple M4 Pro"


def test_arm_boards_are_told_apart_by_their_device_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo, board = tmp_path / "cpuinfo", tmp_path / "model"
    cpuinfo.write_text("processor\t: 0\nBogoMIPS\t: 48.00\nCPU implementer\t: 0x41\n")
    board.write_bytes(b"Radxa ROCK 5B\0")
    monkeypatch.setattr(host, "CPUINFO", cpuinfo)
    monkeypatch.setattr(host, "BOARD", board)
    monkeypatch.setattr(platform, "processor", lambda: "aarch64")
    assert host.chip() == "Radxa ROCK 5B"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: AMD EPYC\n")
    assert host.chip() == "AMD EPYC"
