"""The options that commands share, and what an option may be at all."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from nas.errors import NasError

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


# As ``nas --help`` lists them: the order in which a newcomer meets them.
ORDER = (
    *("run", "doctor", "space", "profile", "worker", "table", "prune", "cache", "train", "rank"),
    *("search", "dashboard", "build", "distil-decoder", "export", "finetune", "prefer", "sample", "evaluate", "report"),
)


class InOrder(TyperGroup):
    """The commands, wherever they are written, in ``ORDER``."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=ORDER.index)


app = typer.Typer(
    cls=InOrder,
    name="nas",
    help="Hardware-aware search of video and image networks: measure, train, search, build, export.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
DONE, NO, WRONG_USE, FAULT, STOPPED = 0, 1, 2, 70, 130


def tell(text: object) -> None:
    """Print for a person: without a stranger's escapes, and without complaint where nobody reads on."""
    from latency_tables.terminal import tell as print_plain

    print_plain(text)


def only_once(sets: Sequence[str], said: Mapping[str, str]) -> None:
    """Refuse a ``--set`` of what another word of the command says already: one of the two would be lost.

    Args:
        said: key -> the option or argument that says it.
    """
    for text in sets:
        key = text.partition("=")[0]
        if key in said:
            raise NasError(f"--set {text}: {said[key]} says that already; leave one of them out")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def emit(data: Any) -> None:
    """Print one JSON document."""
    tell(json.dumps(data, indent=2, default=str))
