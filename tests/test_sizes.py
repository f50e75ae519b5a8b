"""Functions and files stay short enough to be read at once; what does not is named here, and the list only shrinks."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("search_spaces", "device_profiler", "latency_tables", "nas")
LINES_OF_A_FUNCTION, LINES_OF_A_FILE = 60, 500  # signature and docstring included

LONG_FUNCTIONS: set[str] = set()
LONG_FILES: set[str] = set()


def files() -> dict[str, str]:
    paths = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return {str(path.relative_to(ROOT)): path.read_text() for path in paths}


def long_functions(name: str, text: str) -> set[str]:
    functions = (n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    return {
        f"{name}:{function.name}"
        for function in functions
        if (function.end_lineno or 0) - function.lineno + 1 > LINES_OF_A_FUNCTION
    }


def test_no_function_is_longer_than_a_screen_but_those_named() -> None:
    assert {found for name, text in files().items() for found in long_functions(name, text)} <= LONG_FUNCTIONS


def test_no_file_is_longer_than_can_be_kept_in_mind_but_those_named() -> None:
    assert {name for name, text in files().items() if len(text.splitlines()) > LINES_OF_A_FILE} <= LONG_FILES


def test_long_ones_are_found() -> None:
    body = "\n".join(f"    x{i} = {i}" for i in range(LINES_OF_A_FUNCTION))
    assert long_functions("a.py", f"def short():\n    pass\n\n\ndef long():\n{body}\n") == {"a.py:long"}
