"""Commands that write tables and pages: killed at any file operation, the same command again ends the same."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from mortal import COMMANDS, KILLED, TABLE, Command, age, clear, digests, forked
from search_problems import tiny_problem

from latency_tables.header import Header
from latency_tables.table import Table
from nas.cli import main
from search_spaces.space import SPACES

SMALL = ("table report", "table merge")
QUICK = (*SMALL, "space show", "table diff", "table transfer", "table seal")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a space and tables, in which each command has been run once."""
    folder = tmp_path_factory.mktemp("shop") / "shop"
    folder.mkdir()
    space = yaml.safe_load((SPACES / "tiny.yaml").read_text())
    (folder / "mini.yaml").write_text(yaml.safe_dump({**space, "name": "mini"}))
    rows = list(tiny_problem().costs.rows.values())
    for name, device, some in (("full", "one", rows), ("few", "other", rows[:4]), (TABLE[:-4], "board", rows)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Table(Header(device, "onnxruntime", precision="fp32"), some).save(folder / f"{name}.csv")
    return folder


def cases() -> Iterator[Any]:
    for command in COMMANDS:
        if command.name in SMALL:
            yield pytest.param(command, 3, id=command.name)
        if command.name in QUICK:
            yield pytest.param(command, 1, id=f"{command.name}, everywhere", marks=pytest.mark.slow)


@pytest.mark.parametrize(("command", "every"), list(cases()))
def test_a_command_that_was_killed_anywhere_ends_as_if_it_had_not_been(
    command: Command, every: int, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    monkeypatch.chdir(shop)
    with pytest.raises(SystemExit):
        main(command.words)  # all that it imports is here then, and a fork is quick
    assert forked(shop, command.words, log) == 0, log.read_text()
    places, whole = int(Path(f"{log}.places").read_text()), digests(shop, ["."])
    assert places >= 4
    for place in range(1, places + 1, every):
        copy = tmp_path / str(place)
        shutil.copytree(shop, copy)
        clear(copy, command)
        assert forked(copy, command.words, log, place) == KILLED
        age(copy)
        assert forked(copy, command.words, log) == 0, (place, log.read_text())
        assert digests(copy, ["."]) == whole, place
