"""More workers on this machine: processes that search the same study beside this one, and end with it."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from device_profiler.child import module_path, python_module
from nas.console import say
from nas.errors import NasError
from nas.files import held

GRACE = 20.0  # seconds that helpers get to end by themselves
STORAGE = "NAS_STORAGE"  # environment variable of a database's URL: a command line would show its password
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


class Helpers:
    """Further processes of ``nas search``, as a context; one that dies is told of, and its work is done by the others.

    Args:
        arguments: of ``nas``; each helper gets ``--helper-of`` and this process's number besides.
        count: of helpers. storage: URL of the database, if the study is in one.
    """

    def __init__(self, arguments: Sequence[str], count: int, storage: str | None) -> None:
        self._command = python_module("nas.cli", *arguments, "--helper-of", str(os.getpid()))
        secret = {STORAGE: storage} if storage else {}
        self._environment = {**ONE_THREAD, **os.environ, **secret, "PYTHONPATH": module_path()}
        self._count = count
        self._logs: list[IO[bytes]] = []
        self._started: list[subprocess.Popen[bytes]] = []
        self._told: set[int] = set()

    def __enter__(self) -> Helpers:
        for _ in range(self._count):
            log = tempfile.TemporaryFile()  # noqa: SIM115 - closed on leaving
            self._logs.append(log)
            self._started.append(subprocess.Popen(self._command, env=self._environment, stdout=log, stderr=log))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Stop them: when the search is done there is nothing left that they could lose."""
        if kind is None:
            self.check()
        for process in self._started:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        for process in self._started:
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for log in self._logs:
            log.close()

    def check(self) -> None:
        """Say which helpers have died since the last time."""
        for number, process in enumerate(self._started, start=2):
            code = process.poll()
            if code in (None, 0) or number in self._told:
                continue
            self._told.add(number)
            if code is not None and code < 0:
                why = f"was killed ({signal.Signals(-code).name})"
            else:
                why = f"ended: {self._last_words(number)}"
            say(f"search     worker {number} of {self._count + 1} {why}; the others do its work")

    def _last_words(self, number: int) -> str:
        log = self._logs[number - 2]
        log.seek(0)
        said = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        return said[-1].removeprefix("nas: ") if said else f"exit code {self._started[number - 2].returncode}"


def helping(parent: int) -> None:
    """Called by a helper before each trial: it ends with the process that started it."""
    if os.getppid() != parent:
        raise NasError("the search that started this worker is gone")


def check_workers(workers: int) -> None:
    """Refuse a number of workers that is none."""
    if workers < 1:
        raise NasError(f"--workers must be 1 or more, but is {workers}; 1 searches in this process alone")


@contextmanager
def one_thread(workers: int) -> Iterator[None]:
    """While several workers share this machine, this one computes with one thread, as the others do."""
    import torch

    before = torch.get_num_threads()
    if workers > 1:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def one_writer(run: Path) -> Iterator[None]:
    """Searches that joined in one run folder end together; they write its files one after another."""
    with held(run / "search.lock", wait=True):
        yield
