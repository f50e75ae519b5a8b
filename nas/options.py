"""The options that commands share, and what an option may be at all."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Annotated

import typer

# What an option may be: more than these never ends, or no file and no generator holds it.
MANY, LONG, MOST_STEPS, MAX_SEED = 1_000_000, 100_000, 10_000, 2**32 - 1


def finite(value: float | None) -> float | None:
    """A number of an option, which infinity is none of."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"must be a finite number, but is {value}")
    return value


def below_root(path: Path | None) -> Path | None:
    """An output's path, which names something inside a folder."""
    if path is not None and not os.path.basename(os.path.abspath(path)):
        raise typer.BadParameter(f"{path} is the root of all folders; name a folder or a file in it")
    return path


def a_file(path: Path | None) -> Path | None:
    """An output's path, which a folder does not hold already."""
    if path is not None and (path.name in ("", "..") or path.is_dir()):
        raise typer.BadParameter(f"{path} is a folder; give the path of a file")
    return below_root(path)


Json = Annotated[bool, typer.Option("--json", help="Machine-readable output on standard output.")]
Config = Annotated[
    Path | None, typer.Option("--config", help="YAML of keys that override the defaults, or a recipe's name: paper.")
]
Set = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override one key, e.g. train.clips=4.")]
Yaml = Annotated[Path | None, typer.Option("--config", help="YAML of keys that override the defaults.")]
Out = Annotated[Path, typer.Option("--out", callback=below_root, help="Run folder; an existing one is continued.")]
RunDir = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")]
ModelDir = Annotated[Path, typer.Argument(metavar="MODEL", help="Model folder, such as RUN/model.")]

Workers = Annotated[int, typer.Option(max=1024, help="Processes that search at once on this machine, one thread each.")]
Storage = Annotated[
    str | None,
    typer.Option(
        envvar="NAS_STORAGE",
        metavar="URL",
        help="Database that several machines search together, e.g. postgresql+psycopg://user@host/name.",
    ),
]

Scoring = Annotated[
    str | None, typer.Option(help="path, or one_replaced (in place of search.scoring); see nas.ranking.scoring.")
]
