"""The import graph of each package: no circle among its files, none among the rooms of ``nas``."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("search_spaces", "device_profiler", "latency_tables", "nas")

Graph = Mapping[str, set[str]]


def modules(package: str) -> dict[str, Path]:
    """Every module of a package by its dotted name."""
    files = sorted((ROOT / package).rglob("*.py"))
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def imports(package: str) -> dict[str, set[str]]:
    """Module -> the modules of the same package that it names, within functions and for types alone included."""
    known = modules(package)
    found: dict[str, set[str]] = {}
    for name, file in known.items():
        wanted: set[str] = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                wanted |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
            elif isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names}
        # ``from package import module`` names the module, and not what stands in the package's own file.
        inner = {n for n in wanted if n in known}
        inner -= {n for n in inner if any(other.startswith(f"{n}.") for other in inner)}
        found[name] = inner - {name}
    return found


def circles(graph: Graph) -> list[list[str]]:
    """Sets of nodes that reach each other: Tarjan's strongly connected components of more than one."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph.get(node, ())):
            if other not in index:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == index[node]:
            part = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(part) > 1:
                found.append(sorted(part))

    for node in graph:
        if node not in index:
            visit(node)
    return found


def rooms(graph: Graph, package: str) -> dict[str, set[str]]:
    """The same graph with every folder of the package as one node."""
    known = {name for name in graph if (ROOT / name.replace(".", "/")).is_dir()}

    def room(module: str) -> str:
        parts = module.split(".")
        first = ".".join(parts[:2])
        return first if first in known else module

    found: dict[str, set[str]] = {room(name): set() for name in graph if name != package}
    for name, wanted in graph.items():
        if name != package:
            found[room(name)] |= {room(other) for other in wanted if other != package} - {room(name)}
    return found


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_no_file_imports_itself_through_others(package: str) -> None:
    assert circles(imports(package)) == []


def test_no_room_imports_itself_through_others() -> None:
    assert circles(rooms(imports("nas"), "nas")) == []
