"""Memory on an attached iPhone while a workload loops, through pymobiledevice3 as a program of its own.

pymobiledevice3 is GPL-3.0, so it is never imported: ``pymobiledevice3 developer dvt sysmon process monitor threshold``
writes the physical footprint of every process to a file, twice a second, and that file is read here. The app's own
footprint is what iOS bills it for. Memory of the Neural Engine shows up in other processes, so the sum over all
processes is watched beside it.

The rule: a column is the most seen while the workload loops, minus the median while it is loaded and idle. What exists
only for less than half a second can be missed, so the figure is a lower bound.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from device_profiler.errors import one_line

PROGRAM = "pymobiledevice3"
INSTALL = "install the extra 'iphone' (pymobiledevice3) to measure memory on the phone"


@dataclass(frozen=True)
class Snapshot:
    """All processes at one moment: footprints in MB of the app (None where it is not running) and of everything."""

    app_mb: float | None
    system_mb: float


@dataclass(frozen=True)
class Growth:
    """By how much the app's footprint and the whole system's grew, in MB; None is unknown, ``reason`` says why."""

    app_mb: float | None = None
    system_mb: float | None = None
    reason: str = ""


class MemoryWatch:
    """The monitor program of one phone, started at the first question and running until ``close``.

    Args:
        udid: of the phone.
        app: the process name of the app that holds the models, in any case.
        idle, looping: snapshots wanted of each state; ``timeout_s`` bounds the wait for either.
    """

    def __init__(self, udid: str, app: str, *, idle: int = 3, looping: int = 8, timeout_s: float = 30.0) -> None:
        self.udid, self.app = udid, app.lower()
        self.idle, self.looping, self.timeout_s = idle, looping, timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None
        self._read = 0
        self._rest = b""
        self._open: dict[int, tuple[str, float]] = {}
        self._gave_up = ""

    @staticmethod
    def available() -> bool:
        """Whether the program is installed."""
        return _program() is not None

    def growth(self, once: Callable[[], object]) -> Growth:
        """Loaded and idle now; then ``once`` (one prediction) over and over: what each needed.

        Never fails for the monitor's sake: the columns are then unknown. What ``once`` raises comes through.
        """
        if not self._gave_up and not self._start():
            self._gave_up = self._failure()
        if self._gave_up:
            return Growth(reason=self._gave_up)
        quiet = self._collect(self.idle, lambda: time.sleep(0.05))
        busy = self._collect(self.looping, once)
        if not quiet or not busy:
            return Growth(reason=self._failure())
        apps = [shot.app_mb for shot in quiet], [shot.app_mb for shot in busy]
        known = [[mb for mb in found if mb is not None] for found in apps]
        app = max(known[1]) - median(known[0]) if all(known) else None
        system = max(shot.system_mb for shot in busy) - median(shot.system_mb for shot in quiet)
        reason = "" if app is not None else f"memory of the app not measured: no process named {self.app!r}"
        return Growth(None if app is None else max(0.0, app), max(0.0, system), reason)

    def _collect(self, count: int, meanwhile: Callable[[], object]) -> list[Snapshot]:
        """The next ``count`` whole snapshots that begin from now on, something going on meanwhile."""
        self._new()
        self._open.clear()
        found: list[Snapshot] = []
        deadline = time.monotonic() + self.timeout_s
        while len(found) <= count and time.monotonic() < deadline and self._running():
            meanwhile()
            found.extend(self._new())
        return found[1:]  # the first one had begun before

    def _new(self) -> list[Snapshot]:
        """Snapshots completed since the last call. A process that comes again begins the next one."""
        assert self._folder is not None
        path = self._folder / "processes.jsonl"
        if not path.exists():
            return []
        with path.open("rb") as file:
            file.seek(self._read)
            fresh = file.read()
        self._read += len(fresh)
        *lines, self._rest = (self._rest + fresh).split(b"\n")
        found = []
        for line in lines:
            try:
                entry = json.loads(line)
                pid, name, footprint = int(entry["pid"]), str(entry["name"]), float(entry["physFootprint"] or 0) / 1e6
            except (ValueError, KeyError, TypeError):
                continue
            if pid in self._open:
                found.append(self._snapshot())
                self._open.clear()
            self._open[pid] = (name, footprint)
        return found

    def _snapshot(self) -> Snapshot:
        apps = [mb for name, mb in self._open.values() if name.lower() == self.app]
        return Snapshot(max(apps) if apps else None, sum(mb for _, mb in self._open.values()))

    def _start(self) -> bool:
        if self._running():
            return True
        self.close()
        self._folder = Path(tempfile.mkdtemp(prefix="phone-memory-"))
        command = [_program() or PROGRAM, "developer", "dvt", "sysmon", "process", "monitor", "threshold", "0"]
        keys = [part for key in ("pid", "name", "physFootprint") for part in ("-k", key)]
        output = ["-o", str(self._folder / "processes.jsonl")]
        with (self._folder / "said.txt").open("wb") as said:
            try:
                self._process = subprocess.Popen(
                    [*command, *keys, *output, "--udid", self.udid],
                    stdin=subprocess.DEVNULL,
                    stdout=said,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError:
                return False
        deadline = time.monotonic() + self.timeout_s
        while time.monotonic() < deadline and self._running():
            if (self._folder / "processes.jsonl").exists() and self._new():
                return True
            time.sleep(0.05)
        return False

    def _running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _failure(self) -> str:
        said = ""
        if self._folder is not None and (self._folder / "said.txt").exists():
            lines = (self._folder / "said.txt").read_text(errors="replace").strip().splitlines()
            said = one_line(lines[-1].removeprefix("ERROR:").strip(), 120) if lines else ""
        return f"memory not measured: {PROGRAM} gave no snapshots{': ' + said if said else ''}"

    def close(self) -> None:
        """End the program and remove its file; it can be asked again."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        if self._process is not None:
            self._process.wait()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._process = self._folder = None
        self._read, self._rest = 0, b""
        self._open.clear()


def _program() -> str | None:
    """On the PATH or beside this Python: a virtual environment is often run without being activated."""
    return shutil.which(PROGRAM) or shutil.which(PROGRAM, path=str(Path(sys.executable).parent))
