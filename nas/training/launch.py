"""Several processes of one command on this machine: ``nas train --processes N``, as torchrun would start them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import IO

from device_profiler.child import module_path, python_module
from nas.errors import NasError
from nas.training.distributed import LAUNCHED, PEER_LOST, REMEDY

GRACE = 20.0  # seconds that the others get to end by themselves
SAID = 5.0  # seconds that the first one gets to say what another one said before it ended


def launch(arguments: Sequence[str], processes: int) -> None:
    """Run ``nas`` with these arguments in so many processes, which find each other by torchrun's variables.

    The first one keeps the terminal; what the others say is shown if they end it.

    Raises:
        NasError: in one line, if any process fails or is killed; the others are stopped.
    """
    if processes < 2:
        raise NasError(f"--processes must be 2 or more, but is {processes}; leave it out for one")
    with ExitStack() as stack:
        logs = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(processes)]
        port = _port()
        started = [_start(arguments, rank, processes, port, log) for rank, log in enumerate(logs)]
        try:
            culprit = _wait(started)
        except KeyboardInterrupt:  # the terminal told them all
            _stop(started, signal.SIGINT)
            raise
        finally:
            _stop(started, signal.SIGTERM)
        if culprit is None:
            return
        code = started[culprit].returncode
        logs[culprit].seek(0)
        said = [line for line in logs[culprit].read().decode(errors="replace").splitlines() if line.strip()]
    if code < 0:
        name = signal.Signals(-code).name
        raise NasError(f"process {culprit} of {processes} was killed ({name}); {REMEDY}")
    if culprit == 0:  # it has said why
        raise SystemExit(code)
    last = said[-1].removeprefix("nas: ") if said else f"exit code {code}"
    raise NasError(f"process {culprit} of {processes}: {last}")


def _start(arguments: Sequence[str], rank: int, size: int, port: int, log: IO[bytes]) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        LAUNCHED: "1",
        "PYTHONPATH": module_path(),
    }
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // size)))
    shown = None if rank == 0 else log
    return subprocess.Popen(python_module("nas.cli", *arguments), env=environment, stdout=shown, stderr=shown)


def _wait(started: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """The process that ended it, or None when all are done.

    What ends all of them alike, such as a discriminator that collapsed, is the first one's to say, with its exit code.
    """
    culprit: int | None = None
    since = 0.0
    while True:
        codes = [process.poll() for process in started]
        failed = [rank for rank, code in enumerate(codes) if code not in (None, 0)]
        own = [rank for rank in failed if codes[rank] != PEER_LOST]
        if failed and (culprit is None or own and codes[culprit] == PEER_LOST):
            culprit, since = (own or failed)[0], time.monotonic()
        if culprit is not None:
            code, waited = codes[culprit] or 0, time.monotonic() - since
            if code == PEER_LOST:
                if waited > GRACE:
                    return culprit
            elif codes[0] == code:
                return 0
            elif codes[0] is not None or code < 0 or waited > SAID:
                return culprit
        elif all(code == 0 for code in codes):
            return None
        time.sleep(0.1)


def _stop(started: Sequence[subprocess.Popen[bytes]], how: int) -> None:
    for process in started:
        if process.poll() is None:
            process.send_signal(how)
    for process in started:
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
