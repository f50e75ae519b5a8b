"""The workflows: sound by GitHub's own schema; the table check runs with pandas, numpy and YAML alone."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import yaml

from latency_tables import Header, Plan, Record, Table

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
# What the check may import, and what those import themselves.
LIBRARIES = ("pandas", "numpy", "yaml", "_yaml", "dateutil", "six", "tzdata", "pytz", "numpy.libs", "pandas.libs")
HEADER = Header("bench_phone", "coreml", chip="a chip", os="an OS", compute_unit="ALL", precision="fp16")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_keep_to_the_schema(path: Path) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", str(path)]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


def test_the_schema_check_can_fail(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yml"
    bad.write_text((ROOT / ".github/workflows/tables.yml").read_text().replace("runs-on:", "runs-at:"))
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", str(bad)]
    assert subprocess.run(command, capture_output=True).returncode != 0


def test_measuring_never_runs_for_a_fork_and_once_a_device() -> None:
    found = yaml.safe_load((ROOT / ".github/workflows/tables.yml").read_text())
    triggers = found[True]  # YAML reads the key `on` as a truth value
    assert set(triggers) == {"schedule", "workflow_dispatch"}
    assert "fork == false" in found["jobs"]["measure"]["if"]
    assert "inputs.device" in found["concurrency"]["group"] and not found["concurrency"]["cancel-in-progress"]


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has pandas, numpy and pyyaml, and nothing else."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False, symlinks=True)
    site = next(folder.glob("lib/python*/site-packages"))
    for name in LIBRARIES:
        spec = importlib.util.find_spec(name) if "." not in name else None
        if "." in name:
            libs = Path(str(importlib.util.find_spec("numpy").origin)).parents[1] / name  # type: ignore[union-attr]
            if libs.exists():
                os.symlink(libs, site / name)
        elif spec is not None and spec.origin is not None:
            origin = Path(spec.origin)
            source = origin.parent if origin.name == "__init__.py" else origin
            os.symlink(source, site / source.name)
    return folder / "bin"


@pytest.fixture()
def repository(tmp_path: Path) -> Path:
    """The packages that the check needs, with one complete table of `tiny`, committed as the base branch."""
    folder = tmp_path / "repository"
    for package in ("latency_tables", "search_spaces"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__", "tables"))
    Table(HEADER, rows()).save(table_of(folder))
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "base")
    git(folder, "branch", "base")
    return folder


def rows(factor: float = 1.0, only: int | None = None) -> list[Record]:
    keys = Plan.load("tiny").keys("fp16", ends=True)[:only]
    return [
        Record(
            key,
            "plain",
            precision="fp16",
            latency_ms_median=2.0 * factor,
            weights_mb=0.5,
            activation_peak_mb=9.0,
            latency_low_ms=1.99 * factor,
            latency_high_ms=2.01 * factor,
            latency_iqr_ratio=0.01,
            runs=30,
        )  # fmt: skip
        for key in keys
    ]


def table_of(folder: Path) -> Path:
    return folder / "latency_tables" / "tables" / "bench_phone" / "coreml.csv"


def git(folder: Path, *words: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@localhost"]
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


def check(folder: Path, bare_python: Path) -> dict[str, tuple[int, str]]:
    """Exit code and output of each step after the installation, as the runner would give them."""
    steps = yaml.safe_load((ROOT / ".github/workflows/tables-check.yml").read_text())["jobs"]["check"]["steps"]
    summary = folder / "summary.md"
    environment = {
        "PATH": f"{bare_python}:{os.environ['PATH']}",
        "BASE": "base",
        "GITHUB_STEP_SUMMARY": str(summary),
        "HOME": str(folder),
    }
    found = {}
    for step in steps:
        if step.get("name") in ("Validate", "Coverage", "Diff"):
            command = ["bash", "-e", "-c", step["run"]]
            ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
            found[step["name"]] = (ran.returncode, ran.stdout + ran.stderr)
    assert len(found) == 3
    return found


def change(folder: Path, table: Table) -> None:
    path = table_of(folder)
    path.unlink()
    path.with_suffix(".yaml").unlink()
    table.save(path)
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "change")


def test_the_bare_python_has_no_ml_stack(bare_python: Path) -> None:
    for name, there in (("pandas", True), ("torch", False), ("typer", False)):
        ran = subprocess.run([bare_python / "python", "-c", f"import {name}"], capture_output=True, cwd="/")
        assert (ran.returncode == 0) is there


def test_a_table_within_its_spread_passes(repository: Path, bare_python: Path) -> None:
    change(repository, Table(dataclasses.replace(HEADER, notes="again"), rows(1.001)))
    found = check(repository, bare_python)
    assert {name: code for name, (code, _) in found.items()} == {"Validate": 0, "Coverage": 0, "Diff": 0}, found
    assert "0 regressions" in (repository / "summary.md").read_text()


def test_a_slower_table_fails_with_the_rows_named(repository: Path, bare_python: Path) -> None:
    change(repository, Table(HEADER, rows(1.5)))
    found = check(repository, bare_python)
    assert found["Diff"][0] == 1 and "slower" in (repository / "summary.md").read_text()
    assert found["Validate"][0] == found["Coverage"][0] == 0


def test_a_table_with_rows_missing_fails(repository: Path, bare_python: Path) -> None:
    change(repository, Table(HEADER, rows(only=4)))
    found = check(repository, bare_python)
    assert found["Coverage"][0] == 1 and "missing" in found["Coverage"][1]
    assert found["Diff"][0] == 1


# What stands in for `nas profile` on the bench: rows of another speed, and what lowering leaves in the cache.
PROFILER = """
import sys
from pathlib import Path
from device_profiler.device import Device
from latency_tables import Table

assert sys.argv[1:3] == ["profile", "tiny"] and sys.argv[3] == "--device" and sys.argv[5] == "--table"
path = Path(sys.argv[6]) / Device.load(sys.argv[4]).name / "coreml.csv"
table = Table.load(path)
Table(table.header, list(table)[1:]).save(path, replace=True)
package = Path(sys.argv[6]) / ".cache" / "Conv1D-coreml" / "model.mlpackage"
package.mkdir(parents=True)
(package / "weights.bin").write_text("large")
"""
SIGNED = "name: bench_phone\nruntime: coreml\ncompute_unit: ALL\nphone: {development_team: ABCDE12345}\n"


@pytest.fixture()
def bench(repository: Path) -> Path:
    """The repository on a bench: its environment, and a remote to push to."""
    shutil.copy(ROOT / ".gitignore", repository)
    git(repository, "add", ".")
    git(repository, "commit", "-q", "-m", "ignore")
    programs = repository / ".venv" / "bin"
    programs.mkdir(parents=True)
    (repository / ".venv" / "profiler.py").write_text(PROFILER)
    for name, command in (("python", ""), ("nas", f"{repository}/.venv/profiler.py"), ("gh", "-c pass")):
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} {command} "$@"\n')
        (programs / name).chmod(0o755)
    git(repository, "init", "-q", "--bare", str(repository / ".venv" / "remote"))
    git(repository, "remote", "add", "origin", str(repository / ".venv" / "remote"))
    return repository


def nightly(folder: Path, device: str = "", device_yaml: str = "") -> tuple[int, str]:
    """Run the steps after the installation as the runner would, until one fails: its exit code, and all output."""
    environment = {
        **{name: os.environ[name] for name in ("HOME", "PATH")},
        "PATH": f"{folder / '.venv' / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": f"{folder}:{ROOT}",
        "RUNNER_TEMP": str(folder / ".venv"),
        **{name: str(folder / ".venv" / name) for name in ("GITHUB_ENV", "GITHUB_OUTPUT")},
        "SPACE": "tiny",
    }
    given = {"DEVICE": device, "DEVICE_YAML": device_yaml}
    said = ""
    for step in yaml.safe_load((ROOT / ".github/workflows/tables.yml").read_text())["jobs"]["measure"]["steps"]:
        if step.get("name", "Install") in ("Install", "Fail on a regression"):
            continue
        own = {name: given.get(name, "") for name in step.get("env", {})}
        command = ["bash", "-e", "-c", step["run"]]
        ran = subprocess.run(command, cwd=folder, env={**environment, **own}, capture_output=True, text=True)
        said += ran.stdout + ran.stderr
        if ran.returncode:
            return ran.returncode, said
        for line in (folder / ".venv" / "GITHUB_ENV").read_text().splitlines():
            name, _, value = line.partition("=")
            environment[name] = value
    return 0, said


@pytest.mark.parametrize("source", ["variable", "path"])
def test_the_nightly_run_proposes_the_devices_tables_and_nothing_else(bench: Path, source: str) -> None:
    own = bench / ".venv" / "my_bench.yaml"
    own.write_text(SIGNED)
    code, said = nightly(bench, str(own)) if source == "path" else nightly(bench, device_yaml=SIGNED)
    assert code == 0, said
    names = ["git", "show", "--name-only", "--format=%s"]
    shown = subprocess.run(names, cwd=bench, capture_output=True, text=True, check=True).stdout.split("\n")
    assert shown[0] == "Tables of bench_phone, measured again"
    folder = "latency_tables/tables/bench_phone"
    assert sorted(filter(None, shown[1:])) == [f"{folder}/coreml.csv", f"{folder}/coreml.yaml"]
    pushed = subprocess.run(["git", "ls-remote", "origin"], cwd=bench, capture_output=True, text=True).stdout
    assert "refs/heads/tables/bench_phone-" in pushed and "failed=1" in (bench / ".venv" / "GITHUB_OUTPUT").read_text()


def test_a_nightly_run_without_a_signed_device_says_what_to_set(bench: Path) -> None:
    code, said = nightly(bench)
    assert code == 1 and said.startswith("::error::no device: set the repository's variable or secret DEVICE_YAML")


def test_the_bench_installs_what_measures_memory() -> None:
    steps = yaml.safe_load((ROOT / ".github/workflows/tables.yml").read_text())["jobs"]["measure"]["steps"]
    assert "'.[iphone]'" in next(step["run"] for step in steps if step.get("name") == "Install")
