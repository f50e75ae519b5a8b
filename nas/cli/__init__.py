"""The `nas` command. Each command is a few lines: parse, call one function, print. Heavy imports wait until then."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import typer

from device_profiler.threads import share_cores
from nas.cli import costs, decoder, models, search, train
from nas.cli.options import (
    DONE,
    FAULT,
    NO,
    STOPPED,
    WRONG_USE,
    app,
)
from nas.errors import AnswerIsNo, NasError, explain

#: Importing the rooms among them adds their commands.
__all__ = ["app", "costs", "decoder", "explain", "main", "models", "search", "train"]

# What typer is built on is click, under a name that depends on typer's version.
USAGE_ERROR: Any = typer.BadParameter.__mro__[2]
NO_ARGUMENTS: Any = getattr(import_module(USAGE_ERROR.__module__), "NoArgsIsHelpError", ())
LEFT: Any = import_module(USAGE_ERROR.__module__.replace("exceptions", "utils")).PacifyFlushWrapper  # nobody reads on


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point: one clear line and exit code 2 for wrong use or bad input; a traceback only with --debug."""
    share_cores()
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    if debug:
        arguments.remove("--debug")
    try:
        code = _run(arguments)
    except Exception as error:  # the one place where exceptions become sentences
        from latency_tables.terminal import fault, warn

        if debug:
            warn("".join(traceback.format_exception(error)).rstrip())
        sentence = explain(error)
        warn(f"nas: {fault(error) if sentence is None else sentence}")
        code = FAULT if sentence is None else NO if isinstance(error, AnswerIsNo) else WRONG_USE
    try:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except BrokenPipeError:
        from latency_tables.terminal import settle

        settle()
    raise SystemExit(code)


def _run(arguments: list[str]) -> int:
    """Run the command and give its exit code; exceptions of its own pass."""
    if any("\0" in word for word in arguments):
        raise NasError("an argument holds a NUL character, which no file, path or text has; leave it out")
    try:
        code = app(args=arguments, prog_name="nas", standalone_mode=False) or DONE
    except USAGE_ERROR as error:
        if not arguments or isinstance(error, NO_ARGUMENTS):
            error.show()
            return WRONG_USE
        of = f"; see {error.ctx.command_path} --help" if error.ctx is not None else ""
        raise NasError(" ".join(error.format_message().split()).rstrip(".") + of) from None
    except (KeyboardInterrupt, typer.Abort) as stop:
        if isinstance(stop.__cause__, EOFError):  # of a file that ends too early; typer takes it for a closed terminal
            raise stop.__cause__ from None
        code = STOPPED
    except SystemExit as stop:  # typer's own answer to an interrupt, or to a reader of the help who left
        code = DONE if isinstance(sys.stdout, LEFT) else int(stop.code or DONE)
    if code == STOPPED:
        from latency_tables.terminal import warn

        warn("nas: stopped; run the same command to go on from here")
    return int(code)
