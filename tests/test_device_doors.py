"""A device's YAML is somebody else's text: numbers that are none, terminal escapes and YAML's traps end at the door."""

from __future__ import annotations

from pathlib import Path

import pytest

from device_profiler import ProfileError
from device_profiler.device import Device

GOOD = "name: board\nruntime: onnxruntime\n"
ROOF = "name: board\nruntime: roofline\nroofline: {{peak_tflops: {}, bandwidth_gb_s: {}, source: us}}\n"


def refused(text: str) -> str:
    with pytest.raises(ProfileError) as caught:
        Device.parse(text, "board.yaml")
    said = str(caught.value)
    assert said.isprintable() and len(said) < 1000, "one line, and nothing in it that a terminal obeys"
    return said


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "1e308", "1e-300", "0", "-1"])
def test_a_ceiling_is_a_rate_that_a_chip_can_have(value: str) -> None:
    assert "roofline.peak_tflops" in refused(ROOF.format(value, 60))
    assert "roofline.bandwidth_gb_s" in refused(ROOF.format(1, value))


@pytest.mark.parametrize("key", ["timeout_s", "cool_down_s", "memory_limit_mb"])
@pytest.mark.parametrize("value", [".inf", ".nan", "1e300"])
def test_no_other_number_is_endless_either(key: str, value: str) -> None:
    assert f"{key}: " in refused(f"{GOOD}{key}: {value}\n")


@pytest.mark.parametrize("key", ["chip", "os", "summary", "notes", "provider", "name"])
@pytest.mark.parametrize("bad", [r"\e[2J", r"\x9b31m", r"a\u202eb", r"\x07", r"\0"])
def test_what_a_terminal_would_obey_is_refused(key: str, bad: str) -> None:
    stated = f'runtime: onnxruntime\n{key}: "{bad}"\n'
    said = refused(stated if key == "name" else f"name: board\n{stated}")
    assert ("control character U+" in said and key in said) or "holds a NUL character, line" in said


def test_escapes_in_keys_and_in_the_files_own_name_are_spelled_out(tmp_path: Path) -> None:
    assert r"\x1b" in refused(GOOD + r'"\e[2J": 1' + "\n")
    path = tmp_path / "\x1b[2Jboard.yaml"
    path.write_text("name: [")
    with pytest.raises(ProfileError) as caught:
        Device.load(path)
    assert str(caught.value).isprintable()


def test_prose_may_be_wrapped_in_the_file() -> None:
    device = Device.parse(GOOD + "notes: |\n  one line\n  and another\n")
    assert device.notes == "one line and another"


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", "a\\\\b", "x" * 101, "a\U000d4a3f"])
def test_a_name_is_a_folders(name: str) -> None:
    assert "names a folder" in refused(f'name: "{name}"\nruntime: onnxruntime\n')


@pytest.mark.parametrize(
    "text",
    [
        "threads: 2001-13-45",
        "threads: " + "9" * 5000,
        "threads: 1_0_x:1",
        "notes: " + "[" * 3000,
        "notes: !!timestamp x",
    ],
    ids=["month", "digits", "sexagesimal", "depth", "tag"],
)
def test_what_yaml_cannot_hold_is_one_line(text: str) -> None:
    assert refused(GOOD + text + "\n").startswith("board.yaml: ")


def test_aliases_are_refused_before_they_grow() -> None:
    wide = ", ".join(["*{p}"] * 8)
    bomb = "a: &a [x, x]\n" + "".join(
        f"{n}: &{n} [{wide.format(p=p)}]\n" for p, n in zip("abcdefgh", "bcdefghi", strict=True)
    )
    assert "aliases" in refused(bomb + GOOD)
    assert "longer than 1,000,000 characters" in refused(GOOD + "notes: " + "x" * 1_000_001)
