"""Commands that say what may be chosen and what it costs: space, profile, worker, table, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nas.cli.options import DONE, NO, Json, a_file, app, emit, tell
from nas.errors import NasError

space_app = typer.Typer(help="Positions, variants, size of a space.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(space_app, name="space")


@app.command()
def doctor(as_json: Json = False) -> None:
    """What this machine has: runtimes, devices, extras, versions."""
    from nas.doctor import examine, render

    findings = examine()
    emit(findings) if as_json else tell(render(findings))


@space_app.command("list")
def space_list(as_json: Json = False) -> None:
    """The spaces that ship with the toolkit."""
    from search_spaces.inspect import summaries

    found = summaries()
    if as_json:
        emit([s.to_json() for s in found])
    else:
        for s in found:
            tell(s.line())


@space_app.command("show")
def space_show(space: str, as_json: Json = False) -> None:
    """Positions, variants, size of the space and its parameter range, read from the plan."""
    from search_spaces.inspect import summary

    found = summary(space)
    emit(found.to_json()) if as_json else tell(found.render())


@space_app.command("check")
def space_check(space: str, as_json: Json = False) -> None:
    """Check a space against its blocks and its plan; exit code 1 when something is wrong."""
    from search_spaces.inspect import check

    problems = check(space)
    if as_json:
        emit({"space": space, "problems": problems})
    else:
        tell("\n".join(problems) or f"{space}: everything holds")
    raise typer.Exit(NO if problems else DONE)


@space_app.command("fix")
def space_fix(
    space: str,
    arrangement: Annotated[Path, typer.Argument(help="Choices that are made, such as RUN/arrangement.yaml.")],
    out: Annotated[Path, typer.Option(callback=a_file, help="The new space's YAML.")],
) -> None:
    """Write a space in which an arrangement's choices are made: temporal layers over a network that a search found."""
    from search_spaces.arrangement import Arrangement
    from search_spaces.fixing import fix, write_space
    from search_spaces.space import Space

    if out.exists():
        raise NasError(f"{out} is there already; give another --out, or remove it")
    tell(write_space(fix(Space.load(space), Arrangement.load(arrangement), out.stem), out))


@app.command()
def profile(
    space: Annotated[str | None, typer.Argument(help="A shipped space's name, or a YAML.")] = None,
    device: Annotated[str, typer.Option(help="A shipped device's name, or a YAML.")] = "host_cpu",
    table: Annotated[Path, typer.Option(help="Folder of the tables.")] = Path("tables"),
    retry: Annotated[bool, typer.Option("--retry", help="Measure rows without a number again.")] = False,
    spatial: Annotated[bool, typer.Option("--spatial", help="The backbone's parts too, each by itself.")] = False,
    block: Annotated[str | None, typer.Option(help="One operator instead of a space, e.g. Conv3D.")] = None,
    shape: Annotated[str | None, typer.Option(help="Its input, CxTxHxW, e.g. 320x30x64x64.")] = None,
    lowering: Annotated[
        list[str] | None,
        typer.Option(
            help="How blocks are lowered, e.g. fused+conv1x1; several, or all: the table answers with the best."
        ),
    ] = None,
    networks: Annotated[
        int | None,
        typer.Option(max=1000, help="Measure so many whole networks too: how far sums are off, and a correction."),
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Measure with all workers of this dask scheduler, e.g. tcp://host:8786.")
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(help="Measure no table: write one evaluation of a network as a Perfetto trace, by operation."),
    ] = None,
    arrangement: Annotated[
        Path | None, typer.Option(help="With --trace: the network's, a YAML; the space's baseline by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure what the table lacks of a space, or one operator; run again to go on after a stop."""
    from nas.run.costs import profile_operator, profile_space

    if trace is not None or arrangement is not None:
        alone = {"--networks": networks, "--block": block, "--scheduler": scheduler, "--lowering": lowering}
        others = [name for name, value in {**alone, "--spatial": spatial, "--retry": retry}.items() if value]
        _trace(space, device, trace, arrangement, table, others, as_json)
        return
    if spatial and space is None:
        raise NasError("--spatial measures the parts of a SPACE's backbone; name one, or leave it out")
    if (space is None) == (block is None) or (block is None) != (shape is None):
        raise NasError("profile takes a SPACE, or --block and --shape of one operator; give the one or the other")
    if networks is not None:
        others = [n for n, given in (("--retry", retry), ("--spatial", spatial), ("--scheduler", scheduler)) if given]
        _networks(space, device, table, networks, bool(lowering), others, as_json)
        return
    if scheduler is not None and space is None:
        raise NasError("--scheduler measures a whole SPACE; measure an operator without it")
    if block is not None and shape is not None:
        summary = profile_operator(block, shape, device, table, retry=retry, lowerings=lowering or ())
    else:
        summary = profile_space(
            str(space), device, table, retry=retry, scheduler=scheduler, lowerings=lowering or (), spatial=spatial
        )
    emit(summary) if as_json else tell("\n".join(_profiled(summary)))


def _profiled(summary: dict[str, Any]) -> list[str]:
    """What a profile gave, for people."""
    from nas.run.costs import render_parts

    costs = f"; {summary['latency_ms']:.3f} ms, {summary['peak_mb']:.1f} MB" if summary.get("latency_ms") else ""
    said = (
        f"{summary['table']}: {summary['rows']} rows ({summary['source']}), {summary['new']} of them new, "
        f"{summary['not_ok']} without a number{costs}"
    )
    return [said, render_parts(summary["spatial"], summary["backbone_ms"])] if summary.get("spatial") else [said]


def _networks(
    space: str | None, device: str, table: Path, count: int, lowered: bool, others: list[str], as_json: bool
) -> None:
    """Measure whole networks, and say how far sums are off."""
    from nas.run.costs import audit_space

    if space is None:
        raise NasError("--networks measures networks of a SPACE; name one, or leave it out")
    if lowered:
        raise NasError("--networks lowers whole networks in the device's own way; leave --lowering out")
    for name in others:
        raise NasError(f"--networks measures a space's rows and whole networks here, anew; leave {name} out")
    audited = audit_space(space, device, table, count)
    failed = audited["additivity"].get("failed", [])
    emit(audited) if as_json else tell("\n".join([audited["message"], *(f"left out: {f}" for f in failed)]))


def _trace(
    space: str | None,
    device: str,
    out: Path | None,
    arrangement: Path | None,
    table: Path,
    others: list[str],
    as_json: bool,
) -> None:
    """Write one network's trace, and say where its time goes."""
    if out is None:
        raise NasError("--arrangement names the network of --trace; give both, or leave it out")
    if space is None:
        raise NasError("--trace evaluates one network of a SPACE; name one")
    if others:
        raise NasError(f"--trace evaluates one network of a SPACE; leave {', '.join(others)} out")
    from device_profiler.device import Device
    from device_profiler.profile import CACHE
    from device_profiler.trace import trace_network
    from search_spaces.arrangement import Arrangement

    chosen = None if arrangement is None else Arrangement.load(arrangement)
    told = trace_network(space, Device.load(device), out, arrangement=chosen, cache=table / CACHE)
    longest = ", ".join(f"{name} {ms} ms" for name, ms in told["slowest"].items())
    emit(told) if as_json else tell(
        f"{told['trace']}: {told['operations']} operations, {told['ms']} ms; open it in ui.perfetto.dev; "
        f"longest: {longest}"
    )


@app.command()
def worker(
    scheduler: Annotated[str, typer.Argument(help="Address that dask scheduler printed, e.g. tcp://host:8786.")],
    device: Annotated[str, typer.Option(help="The device that this process owns: a name, or a YAML.")] = "host_cpu",
    cache: Annotated[Path, typer.Option(help="Folder of lowered files.")] = Path("tables/.cache"),
    trusted_network: Annotated[
        bool,
        typer.Option("--trusted-network", help="Listen beyond this machine without TLS; whoever connects runs code."),
    ] = False,
) -> None:
    """Own one device of a fleet and measure what nas profile --scheduler asks for, until stopped."""
    from device_profiler.fleet import serve

    ready = lambda name: tell(f"{name}: ready for {scheduler}; stop it with Ctrl-C")  # noqa: E731
    serve(scheduler, device, cache, ready, trusted_network=trusted_network)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def table(context: typer.Context) -> None:
    """Tables: list, show, validate, coverage, predict and more (nas table --help)."""
    from latency_tables.cli import main as table_main

    raise typer.Exit(table_main(context.args, prog="nas table"))
