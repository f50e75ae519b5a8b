"""The README's tree: every folder of code with the first sentence of what it says of itself.

A test compares it with the README; ``python .ci/tree.py --write`` puts it there.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("search_spaces", "device_profiler", "latency_tables", "nas")
DATA = {
    "configs": "named configurations",
    "devices": "one YAML a device",
    "ladders": "designs that differ by one change at a time",
    "spaces": "one YAML a space, and its plan",
    "tables": "one folder a device",
}
OTHERS = {
    "benchmarks": "one script a claim: each prints a table and, last, one JSON line",
    "tests": "contracts over every plugin, one end-to-end test, and the rest named after what it shows",
    "docs": "the pages that this one names",
}
WIDTH = 28
BLOCK = re.compile(r"(?<=## The tree\n\n```\n).*?(?=```)", re.DOTALL)


def sentence(folder: Path) -> str:
    """The first sentence of the package's docstring, or what a folder without code holds."""
    init = folder / "__init__.py"
    if not init.exists():
        return DATA[folder.name]
    text = (ast.get_docstring(ast.parse(init.read_text())) or "").split("\n\n")[0].replace("\n", " ")
    text = text.split(". ")[0].rstrip(".").replace("`", "")
    return text[0].lower() + text[1:] if re.match(r"[A-Z]([a-z]| )", text) else text


def lines(folder: Path, depth: int = 0) -> Iterator[str]:
    yield ("  " * depth + f"{folder.name}/").ljust(WIDTH) + sentence(folder)
    for path in sorted(folder.iterdir()):
        if path.is_dir() and (path / "__init__.py").exists() or path.name in DATA:
            yield from lines(path, depth + 1)


def tree() -> str:
    rooms = [line for room in ROOMS for line in lines(ROOT / room)]
    return "\n".join([*rooms, *(f"{f'{name}/':<{WIDTH}}{text}" for name, text in OTHERS.items())])


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        readme = ROOT / "README.md"
        readme.write_text(BLOCK.sub(lambda _: tree() + "\n", readme.read_text()))
    else:
        print(tree())
