"""Commands that choose: run, search, dashboard, report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nas.cli.options import (
    DONE,
    MANY,
    NO,
    Config,
    Json,
    Out,
    RunDir,
    Scoring,
    Set,
    Storage,
    Workers,
    _option,
    app,
    emit,
    finite,
    only_once,
    tell,
)
from nas.errors import NasError

if TYPE_CHECKING:
    from nas.search.ladder import Measured
    from nas.search.letters import Finding

LatencyMs = Annotated[float | None, typer.Option(callback=finite, help="Latency limit of one network evaluation.")]
MemoryMb = Annotated[float | None, typer.Option(callback=finite, help="Limit of the peak memory.")]
ParametersMin = Annotated[
    float | None, typer.Option(callback=finite, help="Least parameters of the network, e.g. 550e6.")
]
ParametersMax = Annotated[float | None, typer.Option(callback=finite, help="Most parameters of the network.")]
Ladder = Annotated[
    str | None, typer.Option(help="Measure designs, each against the one before, instead: snapgen, or a YAML.")
]
Letters = Annotated[bool, typer.Option("--letters", help="Rank all strings of C and T, the sorted ones among them.")]
LadderDevice = Annotated[str | None, typer.Option(help="With --ladder, of a space in place of a run: the device.")]
LadderTable = Annotated[Path | None, typer.Option(help="With --ladder and --device: the folder of tables.")]


@app.command(rich_help_panel=None)
def run(
    space: Annotated[str, typer.Argument(help="A shipped space's name, or a YAML.")],
    out: Out,
    device: Annotated[str | None, typer.Option(help="A shipped device's name, or a YAML.")] = None,
    config: Config = None,
    set_: Set = [],  # noqa: B006 - typer reads the default, nobody mutates it
    workers: Workers = 1,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """The whole main job, resumable: profile, train, search, build, export, sample, report."""
    from nas.config import resolve
    from nas.run.job import run_all

    metrics = run_all(resolve(space, device, config, set_), out, workers=workers, storage=storage)
    if as_json:
        emit(metrics)


@app.command()
def search(
    run: RunDir,
    latency_ms: LatencyMs = None,
    memory_mb: MemoryMb = None,
    parameters_min: ParametersMin = None,
    parameters_max: ParametersMax = None,
    trials: Annotated[int | None, typer.Option(max=MANY, help="Search trials in all.")] = None,
    sampler: Annotated[str | None, typer.Option(help="surrogate, value, nsga2, tpe, gp or random.")] = None,
    workers: Workers = 1,
    storage: Storage = None,
    study: Annotated[str | None, typer.Option(help="Name of the study in --storage; space and device else.")] = None,
    scoring: Scoring = None,
    set_: Annotated[
        list[str], typer.Option("--set", metavar="search.KEY=VALUE", help="Another setting, e.g. search.margin=0.")
    ] = [],  # noqa: B006
    ladder: Ladder = None,
    letters: Letters = False,
    device: LadderDevice = None,
    table: LadderTable = None,
    explain: Annotated[bool, typer.Option("--explain", help="Say why: positions, limits, designs by hand.")] = False,
    helper_of: Annotated[int | None, typer.Option(hidden=True)] = None,
    as_json: Json = False,
) -> None:
    """Choose the arrangement under the budget; exit code 1 when nothing can meet it."""
    from nas.run.answer import search_arrangement

    said: dict[str, Any] = {"latency_ms": latency_ms, "memory_mb": memory_mb, "trials": trials, "sampler": sampler}
    said |= {"parameters_min": parameters_min, "parameters_max": parameters_max, "scoring": scoring}
    if letters or ladder is not None:
        return _designs(run, ladder, device, table, set_, as_json, said)
    if device is not None or table is not None:
        raise NasError("--device and --table belong to --ladder; a run has its own")
    only_once(set_, {f"search.{name}": _option(name) for name, value in said.items() if value is not None})
    answer = search_arrangement(
        run, **said, workers=workers, storage=storage, study=study, sets=set_, helper_of=helper_of
    )
    if helper_of is not None:
        return
    emit(answer.to_json()) if as_json else tell(answer.render())
    if explain and answer.reasons and not as_json:
        tell(f"\n{answer.reasons}")
    raise typer.Exit(DONE if answer.feasible else NO)


def _designs(
    run: Path,
    ladder: str | None,
    device: str | None,
    table: Path | None,
    sets: list[str],
    as_json: bool,
    said: Mapping[str, Any],
) -> None:
    """Designs that are given in place of searched ones: a ladder's, or else every string of letters."""
    from nas.run.ladder import climb, rank_letters

    limits = [_option(name) for name, value in said.items() if value is not None]
    if limits:
        raise NasError(f"--ladder and --letters measure designs and search none; leave {', '.join(limits)} out")
    found: Measured | Finding = climb(run, ladder, device, table, sets) if ladder is not None else rank_letters(run)
    emit(found.to_json()) if as_json else tell(found.render())


@app.command()
def dashboard(
    run: RunDir,
    storage: Storage = None,
    host: Annotated[str, typer.Option(help="Address to serve at; 0.0.0.0 is every one of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8080,
) -> None:
    """The run's studies in a browser, through optuna-dashboard, until stopped."""
    from nas.search.dashboard import serve

    serve(storage or run / "study.journal", host, port, lambda at: tell(f"{at}  stop it with Ctrl-C"))


@app.command()
def report(run: RunDir) -> None:
    """One self-contained HTML page of a run."""
    from nas.report import write_report

    tell(write_report(run))
