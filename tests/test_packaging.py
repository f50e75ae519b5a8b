"""The wheel holds what it needs, and works where nothing of the tree is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TREE = ("nas", "latency_tables", "device_profiler", "search_spaces")
FILES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE")
NEEDED = (
    "search_spaces/spaces/tiny.yaml",
    "search_spaces/spaces/snapgen_v.plan.json",
    "search_spaces/testing.py",
    "device_profiler/devices/host_cpu.yaml",
    "device_profiler/testing.py",
    "nas/configs/tiny.yaml",
    "nas/data/sample_clips.csv",
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the tree and unpacked into an empty folder."""
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"
    for name in TREE:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, tree / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(tree)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (wheel,) = folder.glob("*.whl")
    site = folder / "site"
    zipfile.ZipFile(wheel).extractall(site)
    return site


def test_the_wheel_holds_data_tests_to_inherit_and_the_licence(installed: Path) -> None:
    for name in NEEDED:
        assert (installed / name).is_file(), name
    for folder in TREE:
        shipped = {path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".yaml")}
        shipped |= {path.relative_to(ROOT) for path in (ROOT / folder / "report").rglob("*.j2")}
        assert not [path for path in shipped if not (installed / path).is_file()]
    assert list(installed.glob("*.dist-info/licenses/LICENSE"))
    assert "nas = nas.cli:main" in next(installed.glob("*.dist-info/entry_points.txt")).read_text()


@pytest.mark.parametrize("words", [["doctor"], ["space", "show", "tiny"], ["table", "list"]])
def test_the_installed_wheel_runs_anywhere(installed: Path, words: list[str], tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    code = "import nas, sys; assert sys.argv.pop(1) in nas.__file__; from nas.cli import main; main()"
    command = [sys.executable, "-P", "-c", code, str(installed), *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
