"""The README's tree: every file with the first phrase of its docstring. A test compares it with the README."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("search_spaces", "device_profiler", "latency_tables", "nas", "benchmarks")
WIDTH = 28
LONGEST = 88


def phrase(file: Path) -> str:
    """The docstring's first sentence, cut at a colon, semicolon or comma where it is long."""
    text = (ast.get_docstring(ast.parse(file.read_text())) or "").split("\n\n")[0].replace("\n", " ")
    text = text.split(". ")[0].rstrip(".").replace("``", "").replace("`", "")
    for mark in (":", ";", ","):
        if len(text) > LONGEST and mark in text[20:]:
            head = text[:20] + text[20:].split(mark)[0]
            if len(head) > 24:
                text = head
    return text[0].lower() + text[1:] if text[:1].isupper() and not text[:2].isupper() else text


def lines(folder: Path, depth: int = 0) -> Iterator[str]:
    init = folder / "__init__.py"
    entries = sorted(folder.iterdir(), key=lambda path: (path.is_dir(), path.name))
    data = ", ".join(path.name for path in entries if path.suffix in (".yaml", ".json"))
    yield _line(f"{'  ' * depth}{folder.name}/", phrase(init) if init.exists() else data)
    for path in entries:
        if path.name.startswith((".", "__")):
            continue
        if path.is_dir():
            yield from lines(path, depth + 1)
        elif path.suffix == ".py":
            yield _line(f"{'  ' * (depth + 1)}{path.name}", phrase(path))


def _line(name: str, text: str) -> str:
    return f"{name:<{WIDTH}}{text}".rstrip()


def tree() -> str:
    return "\n".join(line for room in ROOMS for line in lines(ROOT / room))


if __name__ == "__main__":
    print(tree())
