"""The table commands, without torch: ``python -m latency_tables``, and ``nas table`` in the whole toolkit."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, NoReturn

from latency_tables.budget import Budget
from latency_tables.cost import CostModel
from latency_tables.coverage import Coverage, coverage
from latency_tables.diff import Diff, diff, markdown, plain
from latency_tables.errors import TableError
from latency_tables.lookup import DEFAULT, find_table, known_tables, load_table
from latency_tables.overview import overview, render
from latency_tables.predict import Prediction, VideoTime, parse_layers, predict, video_time, with_decoder
from latency_tables.record import Record
from latency_tables.table import Table, seal
from latency_tables.terminal import tell, warn
from latency_tables.transfer import transfer
from latency_tables.validate import Finding, validate
from latency_tables.versions import committed, previous
from search_spaces.arrangement import Arrangement
from search_spaces.errors import SpaceError
from search_spaces.plan import Plan, list_plans

DONE, NO, WRONG_USE = 0, 1, 2

Run = Callable[[argparse.Namespace], int]
Command = Callable[[str, Run, str], argparse.ArgumentParser]  # name, what it does, summary


def main(argv: Sequence[str] | None = None, prog: str = "latency_tables") -> int:
    """Run one command and give its exit code: 0 done, 1 the answer is no, 2 wrong use or bad input."""
    words = sys.argv[1:] if argv is None else argv
    empty = next((word[:-3] for word in words if word.startswith("--") and word.endswith("=--")), None)
    if empty is not None:  # argparse makes an empty list of it, whatever the option takes
        warn(f"nas: argument {empty}: -- is no value; see {prog} --help")
        return WRONG_USE
    try:
        arguments = _parser(prog).parse_args(words)
    except SystemExit as stop:  # argparse has said what is wrong, or printed the help
        return WRONG_USE if stop.code else DONE
    try:
        return int(arguments.run(arguments))
    except (TableError, SpaceError) as error:
        warn(f"nas: {error}")
    except OSError as error:
        warn(f"nas: {error.filename or 'file'}: {(error.strerror or str(error)).lower()}")
    return WRONG_USE


class _Parser(argparse.ArgumentParser):
    """Wrong use is one line, as everywhere."""

    def error(self, message: str) -> NoReturn:
        warn(f"nas: {message}; see {self.prog} --help")
        raise SystemExit(WRONG_USE)


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = _Parser(prog=prog, description="Tables of what workloads cost on devices.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    shared = _shared()

    def command(name: str, run: Run, summary: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, parents=[shared], help=summary, description=summary)
        added.set_defaults(run=run)
        return added

    _add_questions(command)
    _add_comparisons(command)
    _add_makers(command)
    return parser


def _add_questions(command: Command) -> None:
    """What is in the tables, and what it says of a space."""
    command("list", _list, "the tables of --dir and those that ship with the package")
    show = command("show", _show, "the rows of a table")
    show.add_argument("table", help="path, device, or device/runtime")
    show.add_argument("--match", default="", help="only workloads whose key contains this")
    check = command("validate", _validate, "check tables; exit code 1 on an error")
    check.add_argument("tables", nargs="*", help="paths, devices, or device/runtime (default: all)")
    cover = command("coverage", _coverage, "which workloads of a space are missing; exit code 1 if any")
    cover.add_argument("space", help="a shipped space's name, a plan JSON, or all: every shipped space begun there")
    cover.add_argument("tables", nargs="*", help="paths, devices, or device/runtime (default: all)")
    ask = command("predict", _predict, "what an arrangement costs; exit code 1 if it breaks a limit")
    ask.add_argument("space", help="a shipped space's name, or a plan JSON")
    ask.add_argument("--device", required=True, help="path, device, or device/runtime of the table")
    ask.add_argument("--arrangement", type=Path, help="an arrangement's YAML (default: the space's baseline)")
    ask.add_argument("--layers", action="append", default=[], metavar="POSITION=LABEL + LABEL")
    _add_costing(ask)
    ask.add_argument("--steps", type=int, help="evaluations of a whole video, for its time in the network")
    ask.add_argument("--guidance", action="store_true", help="each step evaluates the network twice")
    ask.add_argument("--decoder", type=Path, help="folder of a searched decoder, in place of the space's")
    whole = command("costs", _costs, "cheapest, dearest, distribution of a space; exit code 1 if no arrangement fits")
    whole.add_argument("space", help="a shipped space's name, or a plan JSON")
    whole.add_argument("--device", required=True, help="path, device, or device/runtime of the table")
    _add_costing(whole)


def _add_comparisons(command: Command) -> None:
    """Two tables, or two versions of one."""
    compare = command("diff", _diff, "what changed between two tables; exit code 1 on a regression")
    compare.add_argument("before")
    compare.add_argument("after")
    compare.add_argument("--threshold", type=float, default=0.03, help="smallest slowdown that counts (0.03)")
    compare.add_argument("--allow-removed", action="store_true", help="rows that disappeared are no regression")
    compare.add_argument("--markdown", action="store_true", help="as a pull-request comment")
    compare.add_argument("--html", type=Path, metavar="FILE", help="also write a page with pictures")
    compare.add_argument("--overwrite", action="store_true", help="replace whatever --html names")
    page = command("report", _report, "a table as one page with pictures, and what changed since its last version")
    page.add_argument("table", help="path, device, or device/runtime")
    page.add_argument("beside", nargs="?", help="another device's table, side by side")
    page.add_argument("--since", help="an earlier version: a table, or a git revision (default: the last other one)")
    page.add_argument("--threshold", type=float, default=0.03, help="smallest slowdown that counts (0.03)")
    page.add_argument("--out", type=Path, help="path of the page (default: DEVICE_RUNTIME.html)")
    page.add_argument("--overwrite", action="store_true", help="whatever is there may be replaced")


def _add_makers(command: Command) -> None:
    """What makes a table of tables."""
    move = command("transfer", _transfer, "predict the rows that a hardly measured device lacks from another's table")
    move.add_argument("source", help="a complete table: path, device, or device/runtime")
    move.add_argument("target", help="a table with a few measured rows")
    move.add_argument("--out", type=Path, required=True, help="path of the CSV to write")
    move.add_argument("--next", type=int, default=3, help="how many rows to name for measuring next (3)")
    join = command("merge", _merge, "one table of two, measured on the same device")
    join.add_argument("ours")
    join.add_argument("theirs")
    join.add_argument("--out", type=Path, required=True, help="path of the merged CSV")
    join.add_argument("--prefer", default="better", help="on a conflict: better, ours, theirs or error")
    close = command("seal", _seal, "accept a table that was edited by hand: check it, write its checksum")
    close.add_argument("table", type=Path)


def _shared() -> _Parser:
    """What every command takes."""
    shared = _Parser(add_help=False)
    shared.add_argument("--dir", type=Path, default=DEFAULT, help="folder of tables (default: ./tables)")
    shared.add_argument("--json", action="store_true", help="machine-readable output")
    return shared


def _add_costing(parser: argparse.ArgumentParser) -> None:
    """What every command that costs arrangements takes."""
    parser.add_argument("--latency-ms", type=float, help="limit of one evaluation")
    parser.add_argument("--memory-mb", type=float, help="limit of the peak")
    parser.add_argument("--parameters-min", type=float, help="least parameters, backbone included, e.g. 550e6")
    parser.add_argument("--parameters-max", type=float, help="most parameters, backbone included")
    parser.add_argument("--allow-mixed", action="store_true", help="measured and estimated rows together")
    parser.add_argument("--bare", action="store_true", help="leave the table's correction out")


def _costing(arguments: argparse.Namespace) -> tuple[CostModel, Budget]:
    plan = Plan.load(arguments.space)
    table = load_table(arguments.device, arguments.dir)
    model = CostModel(plan, table, allow_mixed=arguments.allow_mixed, correct=False if arguments.bare else None)
    return model, Budget(
        latency_ms=arguments.latency_ms,
        memory_mb=arguments.memory_mb,
        parameters_min=arguments.parameters_min,
        parameters_max=arguments.parameters_max,
    )


# Commands ---------------------------------------------------------------------------------------------


def _list(arguments: argparse.Namespace) -> int:
    found = [_summary(name, Table.load(path), path) for name, path in known_tables(arguments.dir).items()]
    if arguments.json:
        return _emit(found)
    for entry in found:
        tell(f"{entry['name']:<40} {entry['rows']:>4} rows, {entry['source']:<10} {entry['precision']} {entry['chip']}")
    if not found:
        tell(f"no tables in {arguments.dir} and none shipped; measure one with nas profile")
    return DONE


def _show(arguments: argparse.Namespace) -> int:
    table = load_table(arguments.table, arguments.dir)
    rows = [record for record in table if arguments.match in record.key]
    if arguments.json:
        return _emit({"header": table.header.to_mapping(), "rows": [_plain(record) for record in rows]})
    header = table.header
    tell(f"{header.device} / {header.runtime} {header.runtime_version}, {header.chip}, {header.precision}")
    tell(f"{table.source}{'; ' + header.notes if header.notes else ''}")
    tell(f"{'ms':>10} {'p90':>10} {'spread':>7} {'weights':>9} {'peak MB':>9}  workload")
    for record in rows:
        tell(_row(record))
    return DONE


def _validate(arguments: argparse.Namespace) -> int:
    named = arguments.tables or list(known_tables(arguments.dir))
    if not named:
        raise TableError(f"no tables in {arguments.dir}; measure one with nas profile, or name one")
    found: dict[str, list[Finding]] = {str(name): validate(find_table(name, arguments.dir)) for name in named}
    bad = any(finding.level == "error" for findings in found.values() for finding in findings)
    if arguments.json:
        _emit({name: [_plain(finding) for finding in findings] for name, findings in found.items()})
        return NO if bad else DONE
    for name, findings in found.items():
        errors = sum(finding.level == "error" for finding in findings)
        tell(f"{name}: {errors} errors, {len(findings) - errors} warnings")
        for finding in findings:
            tell(f"  {finding.level}: {finding.key + ': ' if finding.key else ''}{finding.message}")
    return NO if bad else DONE


def _coverage(arguments: argparse.Namespace) -> int:
    every = arguments.space == "all"
    plans = [Plan.load(name) for name in (list_plans() if every else [arguments.space])]
    named = arguments.tables or list(known_tables(arguments.dir))
    if not named:
        raise TableError(f"no tables in {arguments.dir}; measure one with nas profile")
    found: list[Coverage] = []
    for name in named:
        table = load_table(name, arguments.dir)
        compared = [coverage(plan, table) for plan in plans]
        found += [entry for entry in compared if entry.begun or not every]
    complete = all(entry.complete for entry in found)
    if arguments.json:
        _emit([_plain(entry) for entry in found])
        return DONE if complete else NO
    for entry in found:
        total = len(entry.ok) + len(entry.failed) + len(entry.missing)
        tell(f"{entry.space} on {entry.device}/{entry.runtime} ({entry.source}): {len(entry.ok)} of {total} known")
        for key, reason in entry.failed.items():
            tell(f"  {key}: {reason}")
        for key in entry.missing:
            tell(f"  missing {key}")
        if entry.missing:
            tell(f"  measure them with: {entry.command}")
    return DONE if complete else NO


def _predict(arguments: argparse.Namespace) -> int:
    model, budget = _costing(arguments)
    plan = model.plan
    chosen = plan.baseline if arguments.arrangement is None else Arrangement.load(arguments.arrangement)
    if chosen.space != plan.space:
        raise TableError(
            f"{arguments.arrangement} is an arrangement of {chosen.space}, not of {plan.space}; name {chosen.space}"
        )
    layers = chosen.labels() | parse_layers(arguments.layers)
    found = predict(model, layers, budget if budget.given else None)
    video = None
    if arguments.decoder is not None and arguments.steps is None:
        raise TableError("--decoder is part of a whole video's time; say how many --steps the video takes")
    if arguments.steps is not None:
        table = load_table(arguments.device, arguments.dir)
        video = video_time(model, table, found.latency_ms, arguments.steps, arguments.guidance)
        if arguments.decoder is not None:
            video = with_decoder(video, model, table, arguments.decoder)
    if arguments.json:
        told = None if video is None else {**_plain(video), "total_ms": video.total_ms}
        _emit({**_plain(found), "video": told})
        return NO if found.fits is False else DONE
    tell(_predicted(found))
    if video is not None:
        tell(_timed(video))
    return NO if found.fits is False else DONE


def _costs(arguments: argparse.Namespace) -> int:
    found = overview(*_costing(arguments))
    if arguments.json:
        _emit(_plain(found))
    else:
        tell(render(found))
    return DONE if found.infeasible is None else NO


def _diff(arguments: argparse.Namespace) -> int:
    _check_threshold(arguments.threshold)
    before, after = (load_table(name, arguments.dir) for name in (arguments.before, arguments.after))
    found: Diff = diff(before, after, arguments.threshold, arguments.allow_removed)
    if arguments.html is not None:
        from latency_tables.report.diff_page import write_diff_page

        write_diff_page(
            arguments.html, before, after, arguments.threshold, arguments.allow_removed, arguments.overwrite
        )
    if arguments.json:
        _emit(_plain(found))
    else:
        tell(markdown(found) if arguments.markdown else plain(found), end="")
    return NO if found.regressions else DONE


def _report(arguments: argparse.Namespace) -> int:
    from latency_tables.report.table_page import write_table_page

    _check_threshold(arguments.threshold)
    path = find_table(arguments.table, arguments.dir)
    table = Table.load(path)
    beside = None if arguments.beside is None else load_table(arguments.beside, arguments.dir)
    out = arguments.out or Path(f"{table.header.device}_{table.header.runtime}.html")
    since = _since(arguments.since, path, arguments.dir)
    page = write_table_page(out, table, since, beside, arguments.threshold, arguments.overwrite)
    if arguments.json:
        return _emit({"page": str(page), "since": since and since[0]})
    tell(f"{page}: {len(table)} rows{f', changes since {since[0]}' if since else ''}")
    return DONE


def _since(named: str | None, path: Path, folder: Path) -> tuple[str, Table] | None:
    """The version to compare with: the named table or revision, or what git remembers."""
    if named is None:
        return previous(path)
    if Path(named).suffix == ".csv" or named in known_tables(folder):
        return named, load_table(named, folder)
    return named, committed(path, named)


def _check_threshold(value: float) -> None:
    if not value >= 0:
        raise TableError(f"--threshold must be 0 or more, but is {value}")


def _transfer(arguments: argparse.Namespace) -> int:
    source, target = (load_table(name, arguments.dir) for name in (arguments.source, arguments.target))
    if arguments.next < 0:
        raise TableError(f"--next must be 0 or more, but is {arguments.next}")
    found = transfer(source, target, arguments.next)
    if arguments.out.exists() and not _is_there(found.table, arguments.out):
        raise TableError(f"{arguments.out} is there already; give another --out")
    path = found.table.save(arguments.out)
    if arguments.json:
        return _emit({"table": str(path), "predicted": found.predicted, "width": found.width, "next": found.next})
    tell(f"{path}: {len(found.predicted)} rows estimated, 90% intervals of +{found.width:.0%} on average")
    tell("they are no measurements: costs are refused without --allow-mixed")
    for key in found.next:
        tell(f"measure next: {key}")
    return DONE


def _merge(arguments: argparse.Namespace) -> int:
    ours, theirs = (load_table(name, arguments.dir) for name in (arguments.ours, arguments.theirs))
    merged = ours.merge(theirs, arguments.prefer)
    if (
        arguments.out.exists()
        and arguments.out.resolve()
        not in (find_table(name, arguments.dir).resolve() for name in (arguments.ours, arguments.theirs))
        and not _is_there(merged, arguments.out)
    ):
        raise TableError(f"{arguments.out} is there already and is neither of the two; give another --out")
    path = merged.save(arguments.out, replace=True)
    if arguments.json:
        return _emit({"table": str(path), "rows": len(merged)})
    tell(f"{path}: {len(merged)} rows")
    return DONE


def _is_there(table: Table, path: Path) -> bool:
    """Whether a file holds this very table: left by the same command, which may have been killed before its end."""
    try:
        return Table.load(path).to_csv() == table.to_csv()
    except TableError:
        return False


def _seal(arguments: argparse.Namespace) -> int:
    table = seal(arguments.table)
    if arguments.json:
        return _emit({"table": str(arguments.table), "rows": len(table)})
    tell(f"{arguments.table}: sealed, {len(table)} rows")
    return DONE


# Printing ---------------------------------------------------------------------------------------------


def _emit(data: Any) -> int:
    tell(json.dumps(data, indent=2, default=_plain))
    return DONE


def _plain(value: Any) -> Any:
    """Dataclasses as dictionaries, arrays as lists."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _summary(name: str, table: Table, path: Path) -> dict[str, Any]:
    header = table.header
    return {
        "name": name,
        "path": str(path),
        "rows": len(table),
        "source": table.source,
        "precision": header.precision,
        "chip": header.chip,
        "updated": header.updated,
    }


def _row(record: Record) -> str:
    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    told = "" if record.ok else f"  [{record.status}: {record.reason}]"
    form = f"  {record.lowering}/{record.method}"
    return (
        f"{number(record.latency_ms_median, '.3f'):>10} {number(record.latency_ms_p90, '.3f'):>10} "
        f"{number(record.latency_iqr_ratio, '.1%'):>7} {number(record.weights_mb, '.2f'):>9} "
        f"{number(record.activation_peak_mb, '.2f'):>9}  {record.key}{form}{told}"
    )


def _timed(video: VideoTime) -> str:
    def seconds(value: float | None) -> str:
        return "unknown" if value is None else f"{value / 1000:.2f} s"

    total = seconds(video.total_ms) if not video.missing else f"over {seconds(video.network_ms)}"
    line = (
        f"a video   {total}: text encoder {seconds(video.text_encoder_ms)}, {video.evaluations} evaluations "
        f"{seconds(video.network_ms)}, decoder {seconds(video.decoder_ms)}"
    )
    if video.missing:
        line += f" (no row of {', '.join(video.missing)}; measure it with nas profile)"
    if video.unlike:
        line += f"; in it {', '.join(video.unlike)}"
    return line


def _predicted(found: Prediction) -> str:
    lines = [
        f"{found.space} on {found.device}/{found.runtime}, {found.source}",
        f"latency   {found.latency_ms:.2f} ms, {found.latency_low_ms:.2f} to {found.latency_high_ms:.2f}",
        f"peak      {found.peak_mb:.1f} MB ({found.weights_mb:.1f} of weights, {found.activation_peak_mb:.1f} alive)",
        f"size      {found.parameters:,} parameters",
        found.audit,
        "",
        f"{'position':<12} {'ms':>9} {'weights MB':>11} {'point MB':>9}  layers",
    ]
    for row in found.breakdown:
        mark = "  <- the peak" if row["is_peak"] else ""
        lines.append(
            f"{row['position']:<12} {row['latency_ms']:9.3f} {row['weights_mb']:11.3f} {row['point_peak_mb']:9.2f}  "
            f"{' + '.join(row['layers']) or '-'}{mark}"
        )
    if found.fits is not None:
        verdict = (
            "fits the budget"
            if found.fits
            else "breaks the budget: "
            + ", ".join(f"{name} by {share:.1%}" for name, share in found.violations.items() if share > 0)
        )
        lines += ["", verdict]
    if found.infeasible is not None:
        lines.append(found.infeasible.message)
    return "\n".join(lines)
