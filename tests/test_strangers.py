"""What a stranger's file says is shown or refused, and never run: pickles, markup, shell words, tags."""

from __future__ import annotations

import ast
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from test_report import write_fake_run
from test_table_report import changed, repository

from device_profiler.device import Device
from latency_tables.errors import TableError
from latency_tables.header import Header
from latency_tables.lookup import load_table
from latency_tables.report.table_page import write_table_page
from latency_tables.table import Table
from latency_tables.versions import committed, git, previous
from nas.report import write_report
from search_spaces.space import SPACES, Space

SCRIPT = "<script>alert(1)</script><img src=x onerror=alert(1)>"
SHELL = "$(touch ran); touch ran | `touch ran` && touch ran"
ROOT = Path(__file__).resolve().parents[1]


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> object:
        return (os.mkdir, (str(self.proof),))


def test_a_pickle_in_a_runs_samples_is_not_opened(tmp_path: Path) -> None:
    run, proof = write_fake_run(tmp_path / "run", trials=6), tmp_path / "ran"
    np.savez(run / "samples" / "samples.npz", real=np.array([Payload(proof)], dtype=object))
    page = write_report(run).read_text()
    assert "samples.npz cannot be read" in page and not proof.exists()


def test_nothing_of_ours_unpickles_or_asks_a_shell() -> None:
    """No call of ours makes an object of a pickle, a whole YAML or a shell's line of somebody's text."""
    for file in (
        path
        for room in ("nas", "device_profiler", "search_spaces", "latency_tables")
        for path in (ROOT / room).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not names & {"pickle", "dill", "marshal", "shelve", "joblib"}, file
            if isinstance(node, ast.Call):
                said = {keyword.arg: getattr(keyword.value, "value", None) for keyword in node.keywords}
                assert not said.get("shell") and not said.get("allow_pickle"), (file, node.lineno)
                assert ast.unparse(node.func) not in ("os.system", "os.popen", "eval", "exec", "yaml.unsafe_load"), file


def test_markup_in_a_tables_words_is_text_on_its_page(tmp_path: Path) -> None:
    header = Header(
        "board", "roofline", chip=SCRIPT, notes=SCRIPT, os=SCRIPT, precision="fp32", details={SCRIPT: SCRIPT}
    )
    page = write_table_page(tmp_path / "page.html", Table(header, [])).read_text()
    assert SCRIPT not in page and "&lt;script&gt;alert(1)" in page


def test_markup_in_a_runs_words_is_text_on_its_page(tmp_path: Path) -> None:
    run = write_fake_run(tmp_path / "run", trials=6)
    import json

    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(
        json.dumps({**metrics, "device": SCRIPT, "commit": SCRIPT, "machine": {SCRIPT: SCRIPT}})
    )
    (run / "front.csv").write_text((run / "front.csv").read_text().replace("search", f'"{SCRIPT}"'))
    page = write_report(run).read_text()
    assert SCRIPT not in page and "&lt;script&gt;" in page


def test_shell_words_in_a_device_are_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    device = Device.parse(
        f"name: board\nruntime: onnxruntime\nchip: '{SHELL}'\nprovider: '{SHELL}'\n"
        f"phone: {{udid: '{SHELL}', model: '{SHELL}', app_path: '{SHELL}'}}\n"
    )
    assert device.chip == SHELL and not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.mkdir", "!!python/name:os.mkdir", "!!python/module:os", "!own"]
)
def test_a_tag_makes_nothing(tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.yaml"
    path.write_text((SPACES / "tiny.yaml").read_text().replace("name: tiny", f"name: {tag} [ran]"))
    with pytest.raises(ValueError, match="plain values need none"):
        Space.load(path)
    assert not (tmp_path / "ran").exists()


def test_the_settings_of_a_strangers_repository_run_nothing(tmp_path: Path) -> None:
    """A table in a folder that somebody sent is compared with git, and the folder says what git is to run."""
    ran, program, sent = tmp_path / "ran", tmp_path / "program", tmp_path / "sent"
    program.write_text(f"#!/bin/sh\ntouch {ran}\ncat\n")
    program.chmod(0o755)
    first = load_table("amd_epyc_zen5")
    sent.mkdir()
    path = repository(sent, [first, changed(first, 2.0, 0)])
    (sent / ".gitattributes").write_text("* diff=mine filter=mine\n")
    keys = ["core.fsmonitor", "core.pager", "pager.log", "diff.external", "diff.mine.textconv", "filter.mine.smudge"]
    keys += ["filter.mine.clean", "gpg.program", "core.sshCommand", "core.askPass"]
    settings = dict.fromkeys(keys, str(program)) | {"log.showSignature": "true", "extensions.partialClone": "origin"}
    settings |= {
        "remote.origin.promisor": "true",
        "remote.origin.url": f"ext::{program}",
        "protocol.ext.allow": "always",
    }

    def ask(*words: str) -> str:
        return subprocess.run(["git", "-C", str(sent), *words], capture_output=True, text=True).stdout

    blob = ask("rev-parse", f"HEAD~:./{path.relative_to(sent)}").strip()
    for key, value in settings.items():
        ask("config", key, value)
    ran.unlink(missing_ok=True)
    found = previous(path)
    assert found is not None and list(found[1]) == list(first)
    assert git(sent, "ls-files", "--error-unmatch", str(path)) and not ran.exists()
    (sent / ".git" / "objects" / blob[:2] / blob[2:]).unlink()  # now git would fetch it
    with pytest.raises(TableError, match="git has no"):
        committed(path, "HEAD~")
    assert not ran.exists()
