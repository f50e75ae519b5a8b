"""The README tells the truth about files and commands."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def load_tree() -> str:
    spec = importlib.util.spec_from_file_location("tree", ROOT / ".ci" / "tree.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.tree()


def test_the_tree_in_the_readme_is_the_tree() -> None:
    """Write it again with: python .ci/tree.py --write"""
    assert load_tree() in README


def test_every_command_in_the_readme_exists() -> None:
    from typer.main import get_command

    from nas.cli.options import app

    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    named = set(re.findall(r"^(?:\$ |\| `)nas ([a-z-]+)", README, flags=re.M))
    assert named and named <= known
    assert known <= named | {"table"}


def test_pictures_and_files_that_the_readme_links_are_there() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_front_page_is_short() -> None:
    assert len(README.encode()) <= 12_000
