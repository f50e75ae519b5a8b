"""The Python API: the page's names are at the faces of the packages, the faces are light, and the page runs."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FACES = ("search_spaces", "device_profiler", "latency_tables", "nas")
PAGE = (ROOT / "docs" / "api.md").read_text()
QUICK, TRAINED = (
    re.findall(r"^```python\n(.*?)^```", part, flags=re.M | re.S) for part in PAGE.split("## With a trained network")
)
BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Block())
"""


def run(code: str, cwd: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def imported(code: str) -> set[tuple[str, str]]:
    """(face, name) of every import from one of the packages."""
    nodes = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)]
    return {(str(n.module), name.name) for n in nodes for name in n.names if str(n.module).split(".")[0] in FACES}


def test_the_page_imports_from_the_faces_alone_and_every_name_is_there() -> None:
    named = {pair for code in (*QUICK, *TRAINED) for pair in imported(code)}
    assert {face for face, _ in named} == set(FACES)
    for face, name in named:
        assert getattr(import_module(face), name).__doc__, f"{face}.{name}"


@pytest.mark.parametrize("face", FACES)
def test_a_face_offers_what_it_says(face: str) -> None:
    module = import_module(face)
    assert sorted(module.__all__) == list(module.__all__) or face == "latency_tables"
    assert set(module.__all__) <= set(dir(module))
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = module.nothing_of_the_kind


def test_faces_are_imported_without_anything_heavy(tmp_path: Path) -> None:
    heavy = ("torch", "diffusers", "pydantic", "typer", "optuna", "coremltools", "onnxruntime", "pandas", "scipy")
    run(BLOCKED.format(blocked=heavy) + f"import {', '.join(FACES)}", tmp_path)


def test_a_space_and_the_costs_of_it_need_no_torch_typer_or_pydantic(tmp_path: Path) -> None:
    code = "from search_spaces import Space; from latency_tables import CostModel, Plan, load_table\n"
    code += "plan = Plan.load('tiny'); assert Space.load('tiny').size() == plan.size\n"
    code += "model = CostModel(plan, load_table('amd_epyc_zen5'))\n"
    code += "print(model.cost([model.encode(Space.load('tiny').empty().labels())]).latency_ms > 0)"
    assert run(BLOCKED.format(blocked=("torch", "pydantic", "typer")) + code, tmp_path) == "[ True]\n"


def test_the_part_of_the_page_that_needs_no_training_runs(tmp_path: Path) -> None:
    told = run("\n".join(QUICK), tmp_path)
    assert "Table(amd_epyc_zen5/onnxruntime" in told and "Table(iphone16_pro_max_roofline/roofline" in told
    assert (tmp_path / "own.journal").exists()
    assert re.search(r"^0\.\d{3} +\d+\.\d ms", told, flags=re.M)


@pytest.mark.parametrize("code", TRAINED)
def test_calls_of_the_rest_name_arguments_that_exist(code: str) -> None:
    """What needs a trained network is not run here; end-to-end tests call the same functions."""
    import inspect

    homes = dict(pair[::-1] for block in (*QUICK, *TRAINED) for pair in imported(block))
    called = [n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    for call in called:
        if call.func.id in homes:  # type: ignore[attr-defined]
            function = getattr(import_module(homes[call.func.id]), call.func.id)  # type: ignore[attr-defined]
            keywords = {word.arg: None for word in call.keywords if word.arg}
            inspect.signature(function).bind(*[None] * len(call.args), **keywords)
