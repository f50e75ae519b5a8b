"""How a study grows: kilobytes a trial in its journal, and seconds to open thousands of trials, on `snapgen_v`.

A random search of a known quality fills a journal; then it is opened as `nas search` opens it, everything read and
sorted, in a process of its own. Prints a table and one JSON line; exit code 1 if a trial takes 4 kB or more, or 5,000
take 3 s or more to open.

    python benchmarks/growth_studies.py [--trials 5000]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import optuna

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from search_overhead import make_problem
from search_problems import KnownQuality

from device_profiler import host
from nas.search.storage import open_storage
from nas.search.studies import evaluations, open_study
from nas.search.study import search

TARGET_KB, TARGET_S, STEPS = 4.0, 3.0, 5


def opened(journal: Path) -> dict[str, float]:
    """Seconds, processor seconds, evaluations and most MB of memory of a process that opens the study."""
    words = [sys.executable, __file__, "--open", str(journal)]
    answer = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    found: dict[str, float] = json.loads(answer.splitlines()[-1])
    return found


def open_here(journal: Path) -> None:
    problem = make_problem("snapgen_v")
    begun, worked = time.perf_counter(), time.process_time()
    study = open_study(journal, {}, problem, storage=open_storage(journal))
    found = evaluations(study, problem)
    told = {"seconds": time.perf_counter() - begun, "processor": time.process_time() - worked}
    print(json.dumps({**told, "evaluations": len(found), "mb": host.most_resident_mb()}))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=5000)
    parser.add_argument("--open", type=Path, metavar="JOURNAL", help="open this one and say how long it took")
    args = parser.parse_args()
    if args.open:
        open_here(args.open)
        return 0
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    problem = make_problem("snapgen_v")
    print(f"{'trials':>7} {'kB a trial':>11} {'open, s':>8} {'processor, s':>13} {'memory, MB':>11}")
    with tempfile.TemporaryDirectory(dir=os.environ.get("NAS_BENCH_DIR")) as folder:
        journal = Path(folder) / "study.journal"
        for step in range(1, STEPS + 1):
            trials = args.trials * step // STEPS
            search(problem, KnownQuality(problem), journal, identity={}, trials=trials, sampler="random", seed=0)
            told = opened(journal)
            kb = journal.stat().st_size / told["evaluations"] / 1e3
            print(
                f"{told['evaluations']:>7} {kb:>11.2f} {told['seconds']:>8.2f} {told['processor']:>13.2f} "
                f"{told['mb']:>11.0f}",
                flush=True,
            )
    figures = {
        "trial_kb": round(kb, 2),
        f"open_{args.trials}_s": round(told["seconds"], 2),
        f"open_{args.trials}_processor_s": round(told["processor"], 2),
        "memory_mb": round(told["mb"]),
    }
    print(json.dumps(figures))
    return 0 if kb < TARGET_KB and told["seconds"] < TARGET_S else 1


if __name__ == "__main__":
    raise SystemExit(main())
