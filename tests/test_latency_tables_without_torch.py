"""The lookup tables work where no ML stack is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BLOCKED = (
    "torch", "torchvision", "diffusers", "transformers", "coremltools", "onnx", "onnxruntime", "optuna", "typer",
    "pydantic", "rich", "scipy", "device_profiler", "nas",
)  # fmt: skip
PREAMBLE = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED!r}:
            raise ImportError("blocked: " + name)
        return None
sys.meta_path.insert(0, Block())
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", PREAMBLE + code], capture_output=True, text=True, env=environment)


def test_tables_load_save_and_cost_with_the_ml_stack_blocked(tmp_path):
    code = f"""
sys.path.insert(0, {str(ROOT / "tests")!r})
from table_fixtures import small_plan, small_table
from latency_tables import Budget, CostModel, Plan, Table, nearest
small_table().save({str(tmp_path / "t.csv")!r})
model = CostModel(small_plan(), Table.load({str(tmp_path / "t.csv")!r}))
assert nearest(model, Budget(latency_ms=1.0)) is not None
assert Plan.load("tiny").size > 1
assert not set(sys.modules) & set({BLOCKED!r}), set(sys.modules) & set({BLOCKED!r})
"""
    done = run(code)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_pulls_in_numpy_and_yaml_alone():
    code = """
before = set(sys.modules)
import latency_tables
roots = {name.partition(".")[0] for name in set(sys.modules) - before}
foreign = {name for name in roots if name not in sys.stdlib_module_names} - {"latency_tables", "numpy", "yaml", "_yaml"}
print(sorted(name for name in foreign if "cython" not in name))
print(*sorted(name.partition(".")[2] for name in sys.modules if name.startswith("search_spaces.")))
"""
    done = run(code)
    assert done.returncode == 0, done.stderr
    foreign, ours = done.stdout.splitlines()
    assert foreign == "['search_spaces']"
    assert ours.split() == ["arrangement", "errors", "lazily", "plan", "reading", "variant", "workload", "writing"]


def test_a_plan_is_read_without_tables_or_an_ml_stack():
    done = run("from search_spaces import Plan; print(Plan.load('tiny').size > 1, 'latency_tables' in sys.modules)")
    assert (done.returncode, done.stdout) == (0, "True False\n"), done.stderr


def test_a_plan_that_is_none_is_one_line_of_the_command(tmp_path):
    (tmp_path / "x.plan.json").write_text("{")
    words = ["predict", str(tmp_path / "x.plan.json"), "--device", "amd_epyc_zen5"]
    done = run(f"from latency_tables.cli import main; sys.exit(main({words!r}))")
    assert done.returncode == 2 and "is no plan of schema 1" in done.stderr and "Traceback" not in done.stderr
