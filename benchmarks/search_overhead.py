"""What a search costs beside its evaluations: milliseconds a trial, against bare Optuna on the same kind of storage.

Bare Optuna is `study.optimize` of an objective that suggests one integer a position (with labels it would write some
hundred kB a trial on `snapgen_v`) and returns loss and latency: no limits, no costs kept, no leases, nothing that
survives a kill. It runs with NSGA-II at the same population size, in
blocks interleaved with the search's own, so that the machine's load falls on both. Evaluations are a known quality of
microseconds, and are taken off. The spaces are `tiny` and
`snapgen_v`, with the shipped tables. Needs a PostgreSQL server's programs
for the second storage; without them it measures the journal file alone, and says so.

Prints a table and one JSON line: `overhead_ratio` is the largest ratio of all storages, samplers and lengths, of the
means up to the length; exit code 1 if it is over 1.5. The default sampler, which Optuna has not, is measured against
the same bare NSGA-II as nsga2 is.

    python benchmarks/search_overhead.py [--trials 1000 5000] [--samplers nsga2 surrogate] [--spaces tiny]
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import optuna

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from postgres_server import Server, usable
from search_problems import KnownQuality, Scored

from latency_tables.budget import Budget
from latency_tables.cost import CostModel
from latency_tables.table import Table, table_path
from nas.config import SearchConfig
from nas.search.problem import Problem
from nas.search.samplers import POPULATION
from nas.search.study import search
from search_spaces.arrangement import Arrangement
from search_spaces.plan import Plan
from search_spaces.space import Space

TABLES = Path(__file__).parents[1] / "latency_tables" / "tables"
SPACES = {"tiny": ("amd_epyc_zen5", "onnxruntime"), "snapgen_v": ("iphone16_pro_max_roofline", "roofline")}
RATIO = 1.5  # budget: this many times the bare backbone
TARGET = 1.5
BLOCK = 100  # trials of one, then of the other


def make_problem(space: str) -> Problem:
    table = Table.load(table_path(TABLES, *SPACES[space]))
    costs = CostModel(Plan.load(space), table)
    return Problem(Space.load(space), costs, Budget(latency_ms=RATIO * costs.backbone_latency_ms))


class Clock:
    """A score that knows how long it took in all."""

    def __init__(self, problem: Problem) -> None:
        self._quality = KnownQuality(problem)
        self.seconds = 0.0

    def __call__(self, arrangement: Arrangement) -> Scored:
        begun = time.perf_counter()
        found = self._quality(arrangement)
        self.seconds += time.perf_counter() - begun
        return found


class Bare:
    """Optuna alone: NSGA-II of the same population on the same kind of storage; ``run`` adds trials."""

    def __init__(self, problem: Problem, where: Path | str, sampler: optuna.samplers.BaseSampler) -> None:
        self._problem, self._clock = problem, Clock(problem)
        storage: optuna.storages.BaseStorage = (
            optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(where)))
            if isinstance(where, Path)
            else optuna.storages.RDBStorage(where)
        )
        self._study = optuna.create_study(storage=storage, directions=["minimize"] * 2, sampler=sampler)
        self._choices = dict(problem.distributions)

    def run(self, trials: int) -> float:
        """Seconds outside the evaluations."""
        begun, before = time.perf_counter(), self._clock.seconds
        self._study.optimize(self._objective, n_trials=trials)
        return time.perf_counter() - begun - (self._clock.seconds - before)

    def _objective(self, trial: optuna.Trial) -> tuple[float, float]:
        params = {name: trial.suggest_int(name, d.low, d.high) for name, d in self._choices.items()}
        choice = self._problem.indices(params)
        loss = self._clock(self._problem.arrangement(choice)).loss
        return loss, float(self._problem.cost(choice).latency_ms[0])


def measure(problem: Problem, sampler: str, ours: Path | str, bare: Bare, trials: int, mark: str) -> np.ndarray:
    """Seconds a trial outside evaluations, shape (blocks, 2): the search's, and bare Optuna's of the same block."""
    clock, rows = Clock(problem), []
    begun, scored, done = time.perf_counter(), 0.0, 0

    def turn() -> None:
        """Called before each trial of the search: after each block of its own, bare Optuna has one."""
        nonlocal begun, scored, done
        done += 1
        if (done - 1) % BLOCK or done == 1:
            return
        mine = time.perf_counter() - begun - (clock.seconds - scored)
        rows.append((mine / BLOCK, bare.run(BLOCK) / BLOCK))
        print(f"\r{mark}: {len(rows) * BLOCK}/{trials}", end="", file=sys.stderr, flush=True)
        begun, scored = time.perf_counter(), clock.seconds

    search(problem, clock, ours, identity={}, trials=trials + BLOCK, sampler=sampler, seed=0, check=turn)
    print(file=sys.stderr)
    return np.array(rows[: trials // BLOCK])


@contextlib.contextmanager
def storages(names: list[str]) -> Iterator[dict[str, list[Path | str]]]:
    """Name -> places for studies, each used once."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=os.environ.get("NAS_BENCH_DIR"))))
        found: dict[str, list[Path | str]] = {}
        for name in names:
            if name == "journal":
                found[name] = [folder / f"{i}.journal" for i in range(20)]
            elif usable():
                print(f"postgres: left out, {usable()}", file=sys.stderr)
            else:
                server = stack.enter_context(Server())
                found[name] = [server.database(f"bench{i}") for i in range(20)]
        yield found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[1000, 5000])
    parser.add_argument("--storages", nargs="+", choices=("journal", "postgres"), default=["journal", "postgres"])
    parser.add_argument("--samplers", nargs="+", default=["nsga2", SearchConfig().sampler])
    parser.add_argument("--spaces", nargs="+", choices=SPACES, default=list(SPACES))
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    most = max(args.trials)
    result: dict[str, object] = {}
    ratios: list[float] = []
    print(
        "ms a trial outside evaluations, mean of all trials up to the length and of its last tenth; bare Optuna in\n"
        "interleaved blocks. Storage times are the disk's: on a shared machine read the ratios, not the milliseconds.\n"
        f"{'space':<10} {'storage':<10} {'sampler':<10} {'trials':>7} {'search':>8} {'bare':>8} {'ratio':>6}   "
        f"{'last: search':>12} {'bare':>8} {'ratio':>6}"
    )
    with storages(args.storages) as places:
        for space, (storage, free), sampler in itertools.product(args.spaces, places.items(), args.samplers):
            problem = make_problem(space)
            bare = Bare(problem, free.pop(), optuna.samplers.NSGAIISampler(population_size=POPULATION, seed=0))
            rows = 1e3 * measure(problem, sampler, free.pop(), bare, most, f"{space} {storage} {sampler}")
            for trials in args.trials:
                mine, other = rows[: trials // BLOCK].mean(0)
                tail = rows[: trials // BLOCK][-max(1, trials // BLOCK // 10) :].mean(0)
                print(
                    f"{space:<10} {storage:<10} {sampler:<10} {trials:>7} {mine:>8.2f} {other:>8.2f} "
                    f"{mine / other:>6.2f}   {tail[0]:>12.2f} {tail[1]:>8.2f} {tail[0] / tail[1]:>6.2f}",
                    flush=True,
                )
                name = f"{space}_{storage}_{sampler}_{trials}"
                result |= {f"{name}_ms": round(float(mine), 2), f"{name}_bare_ms": round(float(other), 2)}
                result[f"{name}_ratio"] = round(float(mine / other), 3)
                ratios.append(float(mine / other))
    worst = max(ratios, default=float("nan"))
    print(json.dumps({"overhead_ratio": round(worst, 3), "storages": list(places), **result}))
    return 0 if worst <= TARGET else 1


if __name__ == "__main__":
    raise SystemExit(main())
