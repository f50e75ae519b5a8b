"""The command line: instant help, exit codes, output for scripts."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from typer.main import get_command

from nas.cli import main
from nas.cli.options import app


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


def test_help_is_instant_and_loads_nothing_heavy() -> None:
    code = """
import sys
from nas.cli import main
try:
    main(["--help"])
except SystemExit:
    pass
heavy = {"torch", "optuna", "pandas", "diffusers", "coremltools", "onnxruntime", "transformers", "numpy"}
sys.stderr.write(" ".join(sorted(heavy & set(sys.modules))))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""


@pytest.mark.parametrize("command", sorted(set(get_command(app).commands) - {"table"}))  # type: ignore[attr-defined]
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, command, "--help")
    assert code == 0 and "Usage" in out


def test_the_table_commands_explain_themselves(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "table", "--help")
    assert code == 0 and "coverage" in out


def test_doctor_and_spaces_speak_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "doctor", "--json")
    found = json.loads(out)
    assert code == 0 and {"tiny", "snapgen_v"} <= set(found["spaces"]) and "host_cpu" in found["devices"]
    code, out, _ = run(capsys, "space", "list", "--json")
    assert code == 0 and {entry["name"] for entry in json.loads(out)} >= {"tiny", "snapgen_v"}
    code, out, _ = run(capsys, "space", "show", "snapgen_v", "--json")
    facts = json.loads(out)
    assert code == 0 and facts["parameters_backbone"] == 323_384_964 and facts["size"] == 400**9
    code, out, _ = run(capsys, "space", "check", "tiny")
    assert code == 0 and "everything holds" in out


def test_profile_wants_a_space_or_an_operator_and_not_both(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["tiny", "--block", "Conv3D", "--shape", "16x4x8x8"], ["--block", "Conv3D"]):
        code, _, err = run(capsys, "profile", *words)
        assert code == 2 and err.startswith("nas: ") and err.count("\n") == 1


def test_a_stop_by_hand_says_how_to_go_on(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nas.doctor.examine", stop)
    code, _, err = run(capsys, "doctor")
    assert code == 130 and "go on" in err


def test_a_fault_of_ours_asks_for_a_report_and_shows_its_traceback_on_request(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr("nas.doctor.examine", broken)
    code, out, err = run(capsys, "doctor")
    assert code == 70 and out == "" and err.count("\n") == 1
    assert err.startswith("nas: an unforeseen fault (ZeroDivisionError: by nothing at test_cli.py:") and "report" in err
    code, _, err = run(capsys, "doctor", "--debug")
    assert code == 70 and "Traceback" in err and "nas: an unforeseen fault" in err
