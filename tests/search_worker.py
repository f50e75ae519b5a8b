"""One worker of a search, a process that can be killed: ``python search_worker.py WHERE TRIALS SECONDS LOG [LEASE]``.

Scores as ``KnownQuality`` does, after SECONDS of sleep; each evaluation writes a line to LOG when it begins and when
it ends: ``begin|end KEY PID``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from search_problems import KnownQuality, Scored, tiny_problem

from latency_tables.budget import Budget
from nas.search.study import search
from search_spaces.arrangement import Arrangement

LIMITS = Budget(latency_ms=130.0, memory_mb=27.0)
IDENTITY = {"space": "tiny", "table": "made up"}


def storage_of(text: str) -> Path | str:
    return text if "://" in text else Path(text)


def main() -> None:
    where, trials, seconds, log = storage_of(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
    lease = float(sys.argv[5]) if len(sys.argv) > 5 else 60.0
    problem = tiny_problem(LIMITS)
    quality = KnownQuality(problem)

    def write(event: str, key: str) -> None:
        with open(log, "a") as lines:
            lines.write(f"{event} {key} {os.getpid()}\n")

    def score(arrangement: Arrangement) -> Scored:
        write("begin", arrangement.key)
        time.sleep(seconds)
        found = quality(arrangement)
        write("end", arrangement.key)
        return found

    search(problem, score, where, identity=IDENTITY, trials=trials, sampler="nsga2", seed=0, lease=lease)


def start(where: Path | str, trials: int, seconds: float, log: Path, lease: float = 60.0) -> subprocess.Popen[bytes]:
    """Start a worker; what it says goes to a file beside the log."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(where), str(trials), str(seconds), str(log), str(lease)]
    with log.with_suffix(".said").open("ab") as said:
        return subprocess.Popen(command, env=environment, stdout=said, stderr=said)


def events(log: Path) -> Counter[tuple[str, str]]:
    """(begin or end, key) -> how often."""
    lines = log.read_text().splitlines() if log.exists() else []
    return Counter((line.split()[0], line.split()[1]) for line in lines)


if __name__ == "__main__":
    main()
