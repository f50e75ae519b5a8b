"""How much faster do more workers search, and what does killing them lose? On PostgreSQL and on a journal file.

An evaluation is real work: forward passes of a small convolutional network in torch, one thread a worker. Runs of 1, 2
and 4 workers are interleaved over some rounds; the rate of each is the best of its rounds, since other load on the
machine only ever slows. Then two workers search while 20 kills (-9) hit them at random moments, each victim replaced:
`lost` counts arrangements that were begun and never finished and search trials that are missing, `duplicates` those
that were finished twice or begun twice although nobody who ran them was killed.

Prints a table and one JSON line; exit code 1 if anything is lost or doubled, or if two workers are less than 1.6 times
as fast as one where there are two cores or more. Without a PostgreSQL server's programs that half is left out.

    python benchmarks/workers.py [--rounds 3] [--trials 60] [--kills 20] [--storages journal postgres]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from postgres_server import Server, usable
from search_problems import KnownQuality, Scored, tiny_problem

from latency_tables.budget import Budget
from nas.search.studies import Evaluation
from nas.search.study import search
from search_spaces.arrangement import Arrangement

WORKERS = (1, 2, 4)
SPEEDUP = 1.6
LIMITS = Budget(latency_ms=130.0, memory_mb=27.0)
WORK = 0.25  # seconds of one thread an evaluation should take


def serve(where: Path | str, trials: int, passes: int, folder: Path) -> None:
    """One worker: torch's forward passes as evaluations, each noted when it begins and ends."""
    problem = tiny_problem(LIMITS)
    work, quality = make_work(), KnownQuality(problem)

    def write(event: str, key: str) -> None:
        with (folder / "log").open("a") as lines:
            lines.write(f"{event} {key} {os.getpid()} {time.time():.3f}\n")

    def score(arrangement: Arrangement) -> Scored:
        write("begin", arrangement.key)
        work(passes)
        found = quality(arrangement)
        write("end", arrangement.key)
        return found

    (folder / f"ready.{os.getpid()}").touch()
    while not (folder / "go").exists():
        time.sleep(0.005)
    search(problem, score, where, identity={}, trials=trials, sampler="nsga2", seed=0, lease=10.0)


def make_work() -> Callable[[int], None]:
    """A function of the number of forward passes to do."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(32, 32, 3, padding=1) for _ in range(4)]
    network, x = torch.nn.Sequential(*layers).eval(), torch.randn(1, 32, 32, 32)

    def work(passes: int) -> None:
        with torch.no_grad():
            for _ in range(passes):
                network(x)

    return work


def passes_of(seconds: float) -> int:
    """How many forward passes take so long here, by the best of some tries."""
    work = make_work()
    work(5)
    best = float("inf")
    for _ in range(5):
        begun = time.perf_counter()
        work(10)
        best = min(best, (time.perf_counter() - begun) / 10)
    return max(1, round(seconds / best))


def start(where: Path | str, trials: int, passes: int, folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, __file__, "--serve", str(where), str(trials), str(passes), str(folder)]
    with (folder / "said").open("ab") as said:
        return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=said, stderr=said)


def events(folder: Path) -> list[tuple[str, str, int, float]]:
    """(begin or end, arrangement, process, time) in the order they were written."""
    path = folder / "log"
    rows = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return [(event, key, int(pid), float(at)) for event, key, pid, at in rows]


def rate(where: Path | str, workers: int, trials: int, passes: int, folder: Path) -> float:
    """Evaluations a second of so many workers, from the moment all are ready."""
    folder.mkdir()
    started = [start(where, trials, passes, folder) for _ in range(workers)]
    while len(list(folder.glob("ready.*"))) < workers:
        if any(process.poll() is not None for process in started):
            raise SystemExit((folder / "said").read_text())
        time.sleep(0.05)
    (folder / "go").touch()
    begun = time.time()
    codes = [process.wait() for process in started]
    if any(codes):
        raise SystemExit((folder / "said").read_text())
    ended = [at for event, _, _, at in events(folder) if event == "end"]
    return len(ended) / (max(ended) - begun)


def kill(where: Path | str, trials: int, passes: int, kills: int, folder: Path) -> dict[str, int]:
    """Two workers, killed again and again; what is lost and what is done twice in the end."""
    folder.mkdir()
    (folder / "go").touch()
    chance, killed = random.Random(0), set()
    workers = [start(where, trials, passes, folder) for _ in range(2)]
    while len(killed) < kills and any(process.poll() is None for process in workers):
        time.sleep(0.5 + 2.0 * chance.random())
        working = {pid for _, _, pid, _ in events(folder)}  # one that still imports has nothing to lose
        running = [process for process in workers if process.poll() is None and process.pid in working]
        if running:
            victim = chance.choice(running)
            victim.send_signal(signal.SIGKILL)
            victim.wait()
            killed.add(victim.pid)
            workers = [process for process in workers if process is not victim]
            workers.append(start(where, trials, passes, folder))
    for process in workers:
        process.wait()
    return {"kills": len(killed), **account(finish(where, trials), events(folder), killed, trials)}


def finish(where: Path | str, trials: int) -> list[Evaluation]:
    """The study as it stands; anything that were missing would be evaluated here, and then be counted as lost."""
    problem = tiny_problem(LIMITS)

    def missing(arrangement: Arrangement) -> Scored:
        raise SystemExit(f"{arrangement.key} was left to do")

    return search(problem, missing, where, identity={}, trials=trials, sampler="nsga2", seed=0)


def account(
    found: list[Evaluation], happened: list[tuple[str, str, int, float]], killed: set[int], trials: int
) -> dict[str, int]:
    began = defaultdict(list)
    for event, key, pid, _ in happened:
        if event == "begin":
            began[key].append(pid)
    searched = [e for e in found if not e.is_reference]
    lost = set(began) - {e.arrangement.key for e in found}
    twice = sum(pid not in killed for pids in began.values() for pid in pids[:-1])
    again = sum(len(pids) - 1 for pids in began.values())
    return {
        "lost": len(lost) + trials - len(searched),
        "duplicates": len(found) - len({e.choice for e in found}) + twice,
        "run_again": again,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--storages", nargs="+", choices=("journal", "postgres"), default=["journal", "postgres"])
    parser.add_argument("--serve", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        where, trials, passes, folder = args.serve
        serve(where if "://" in where else Path(where), int(trials), int(passes), Path(folder))
        return 0
    passes, cores = passes_of(WORK), os.cpu_count() or 1
    print(
        f"{cores} cores, load {os.getloadavg()[0]:.1f} when it began; an evaluation is {passes} forward passes, about "
        f"{WORK} s of a thread.\nBest of {args.rounds} interleaved rounds; other load on the machine slows the runs "
        "with more workers most."
    )
    result: dict[str, float | int] = {"cores": cores, "load": round(os.getloadavg()[0], 2)}
    print(f"{'storage':<10} {'workers':>8} {'evaluations/s':>14} {'speed-up':>9}   rounds")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = None
        if "postgres" in args.storages:
            if reason := usable():
                print(f"postgres: left out, {reason}")
            else:
                server = stack.enter_context(Server())
        for storage in args.storages:
            if storage == "postgres" and server is None:
                continue

            def place(name: str, server: Server | None = server, storage: str = storage) -> Path | str:
                if storage == "journal" or server is None:
                    return folder / f"{name}.journal"
                return server.database(name)

            rates: dict[int, list[float]] = {workers: [] for workers in WORKERS}
            for turn in range(args.rounds):
                for workers in WORKERS:
                    name = f"{storage}_{turn}_{workers}"
                    rates[workers].append(rate(place(name), workers, args.trials, passes, folder / name))
            best = {workers: max(found) for workers, found in rates.items()}
            for workers, value in best.items():
                rounds = " ".join(f"{found:.2f}" for found in rates[workers])
                print(f"{storage:<10} {workers:>8} {value:>14.2f} {value / best[1]:>8.2f}x   {rounds}", flush=True)
                result[f"{storage}_{workers}"] = round(value, 3)
                if workers > 1:
                    result[f"{storage}_speedup_{workers}"] = round(value / best[1], 3)
            if not args.kills:
                continue
            name = f"{storage}_kill"
            outcome = kill(place(name), 10 * args.kills, passes, args.kills, folder / name)
            print(
                f"{storage:<10} {outcome['kills']} kills: {outcome['lost']} lost, {outcome['duplicates']} duplicates, "
                f"{outcome['run_again']} evaluations run again",
                flush=True,
            )
            result |= {f"{storage}_{key}": value for key, value in outcome.items()}
    measured = [storage for storage in args.storages if f"{storage}_1" in result]
    for key in ("lost", "duplicates"):
        result[key] = sum(int(result[f"{storage}_{key}"]) for storage in measured if args.kills)
    result["speedup_2"] = min(result[f"{storage}_speedup_2"] for storage in measured)
    result["speedup_4"] = min(result[f"{storage}_speedup_4"] for storage in measured)
    print(json.dumps(result))
    fast = result["speedup_2"] >= SPEEDUP or cores < 2
    return 0 if fast and not result["lost"] and not result["duplicates"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
