"""What a person sees while work goes on: a live bar on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from latency_tables.terminal import plain, warn

LOG_EVERY = 10.0  # seconds between lines when nobody watches a terminal


class Report(Protocol):
    """Called with the steps done, the steps wanted and a short note of the latest one."""

    def __call__(self, done: int, wanted: int, note: str = "") -> None: ...


def say(message: str) -> None:
    """One line for the person; standard error, so that --json output stays clean."""
    warn(message)


@contextmanager
def progress(title: str) -> Iterator[Report]:
    """A progress report under ``title``.

    On a terminal a bar with the time left; elsewhere a line at once, then every ``LOG_EVERY`` seconds, and at the end.
    """
    if sys.stderr.isatty():
        with _bar(title) as report:
            yield report
    else:
        yield _Lines(title)


@contextmanager
def _bar(title: str) -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<10}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="dim", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None, note="")

        def report(done: int, wanted: int, note: str = "") -> None:
            bar.update(task, completed=done, total=wanted, note=plain(note))

        yield report


class _Lines:
    def __init__(self, title: str) -> None:
        self._title = title
        self._start = time.monotonic()
        self._last = -LOG_EVERY

    def __call__(self, done: int, wanted: int, note: str = "") -> None:
        now = time.monotonic()
        if done < wanted and now - self._last < LOG_EVERY:
            return
        self._last = now
        spent = now - self._start
        left = f", {spent / done * (wanted - done):.0f} s left" if 0 < done < wanted else ""
        say(f"{self._title:<10} {done}/{wanted} in {spent:.0f} s{left}{'  ' + note if note else ''}")
