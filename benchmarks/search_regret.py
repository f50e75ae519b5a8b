"""How near the true front does each sampler get, and how soon? On a part of `tiny` that was scored whole, once.

The truth (loss of every arrangement on a trained supernet, cost from the table measured beside it) is kept in
benchmarks/data/subspace_truth.csv with its provenance; --enumerate RUN makes it anew from a run folder. Each sampler
then searches the same problem with the truth as its score. Hypervolume is over (loss, latency) within the budget,
against the reference point of the budget's latency and the empty arrangement's loss, as a share of the true front's.
Runs that do not get there are censored at the cap. Prints a table and one JSON line; exit code 1 if the default
sampler needs more than a third of what NSGA-II needs for 95%.

    python benchmarks/search_regret.py [--seeds 10] [--cap 120]
    python benchmarks/search_regret.py --enumerate runs/tiny
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna

from latency_tables.budget import Budget
from latency_tables.cost import CostModel
from latency_tables.plan import Plan as TablePlan
from latency_tables.table import Table
from nas.config import SearchConfig
from nas.search.problem import Problem
from nas.search.samplers import SAMPLERS
from nas.search.study import search
from search_spaces.arrangement import Arrangement
from search_spaces.plan import Plan
from search_spaces.space import Space

HERE = Path(__file__).parent / "data"
SPACE, TRUTH, TABLE = HERE / "subspace.yaml", HERE / "subspace_truth.csv", HERE / "subspace_table.csv"
RATIO = 1.3  # budget: this many times the bare backbone
LEVELS = (0.95, 0.99)


@dataclass(frozen=True)
class Scored:
    loss: float
    stderr: float = 0.0
    velocity_loss: float = 0.0
    motion_loss: float = 0.0


def enumerate_truth(run: Path) -> None:
    """Score every arrangement of the sub-space on the run's supernet; some minutes."""
    from nas.config import load
    from nas.run import commit, load_table, open_quality

    config = load(run)
    quality, steps = open_quality(config, run)
    space = Space.load(SPACE)
    options = [space.options(position) for position in space.positions]
    names = [position.name for position in space.positions]
    whole = Space.load(config.space)
    total = int(np.prod([len(o) for o in options]))
    lines = [f"# space {config.space}, step {steps}, seed {config.seed}, commit {commit()}", "choice,loss"]
    for done, choice in enumerate(itertools.product(*(range(len(o)) for o in options))):
        layers = {name: options[p][i] for p, (name, i) in enumerate(zip(names, choice, strict=True))}
        score = quality.score(whole.arrange(layers))
        lines.append(f"{''.join(map(str, choice))},{score.loss:.6f}")
        if done % 200 == 0:
            print(f"{done}/{total}", file=sys.stderr)
    TRUTH.write_text("\n".join(lines) + "\n")
    from device_profiler.device import Device

    load_table(Device.load(config.device), run / "table").save(TABLE, replace=True)


def load_problem() -> tuple[Problem, dict[tuple[int, ...], float]]:
    space = Space.load(SPACE)
    costs = CostModel(TablePlan.from_json(Plan.load(space).to_json()), Table.load(TABLE))
    budget = Budget(latency_ms=RATIO * costs.backbone_latency_ms)
    truth = {}
    for line in TRUTH.read_text().splitlines()[2:]:
        choice, loss = line.split(",")
        truth[tuple(int(c) for c in choice)] = float(loss)
    return Problem(space, costs, budget), truth


def hypervolume(points: Sequence[tuple[float, float]], reference: tuple[float, float]) -> float:
    """Area between the front of (latency, loss) points and the reference point; both are minimised."""
    area, lowest = 0.0, reference[1]
    inside = sorted(p for p in points if p[0] < reference[0] and p[1] < reference[1])
    for latency, loss in inside:
        if loss < lowest:
            area += (reference[0] - latency) * (lowest - loss)
            lowest = loss
    return area


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--enumerate", type=Path, metavar="RUN", help="make the truth anew from a run folder")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--cap", type=int, default=120, help="evaluations at which a run is censored")
    args = parser.parse_args()
    if args.enumerate:
        enumerate_truth(args.enumerate)
        return 0
    if not TRUTH.exists():
        print(f"{TRUTH} is not there; make it with --enumerate RUN", file=sys.stderr)
        return 2
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    problem, truth = load_problem()
    keys = np.array(list(truth))
    latency = problem.cost(keys).latency_ms
    fits = problem.feasible(keys)
    losses = np.array(list(truth.values()))
    reference = (float(problem.budget.latency_ms or 0), truth[(0,) * len(problem.positions)])
    best = hypervolume(list(zip(latency[fits], losses[fits], strict=True)), reference)
    print(
        f"{len(truth)} arrangements scored, {fits.sum()} within {reference[0]:.1f} ms, "
        f"best loss {losses[fits].min():.4f}"
    )

    def score(arrangement: Arrangement) -> Scored:
        return Scored(truth[tuple(int(i) for i in problem.indices_of(arrangement))])

    reached: dict[str, dict[float, list[int]]] = {}
    regret: dict[str, list[float]] = {}
    for name in SAMPLERS:
        reached[name], regret[name] = {level: [] for level in LEVELS}, []
        for seed in range(args.seeds):
            with tempfile.TemporaryDirectory() as folder:
                found = search(
                    problem,
                    score,
                    Path(folder) / "study.journal",
                    identity={},
                    trials=args.cap,
                    sampler=name,
                    seed=seed,
                )
            points: list[tuple[float, float]] = []
            needed = dict.fromkeys(LEVELS, args.cap)
            for count, e in enumerate(found, start=1):
                if e.feasible:
                    points.append((e.latency_ms, e.loss))
                share = hypervolume(points, reference) / best
                for level in LEVELS:
                    if share >= level:
                        needed[level] = min(needed[level], count)
            for level in LEVELS:
                reached[name][level].append(needed[level])
            regret[name].append(min(e.loss for e in found if e.feasible) - float(losses[fits].min()))
        print(f"{name}: done", file=sys.stderr)
    print(
        f"{'sampler':<10} {'to 95%':>8} {'to 99%':>8} {'found best':>11}   "
        f"(medians of {args.seeds} seeds, cap {args.cap})"
    )
    medians = {}
    for name in SAMPLERS:
        medians[name] = {level: statistics.median(reached[name][level]) for level in LEVELS}
        exact = sum(r < 1e-9 for r in regret[name])
        shown = [f"{v:.0f}" if v < args.cap else f">{args.cap}" for v in medians[name].values()]
        print(f"{name:<10} {shown[0]:>8} {shown[1]:>8} {exact:>7}/{args.seeds}")
    default = SearchConfig().sampler
    result = {
        "default_sampler": default,
        "default_evaluations_95": medians[default][0.95],
        "nsga2_evaluations_95": medians["nsga2"][0.95],
        "default_evaluations_99": medians[default][0.99],
        "nsga2_evaluations_99": medians["nsga2"][0.99],
        "seeds": args.seeds,
        "cap": args.cap,
    }
    print(json.dumps(result))
    return 0 if medians[default][0.95] <= medians["nsga2"][0.95] / 3 else 1


if __name__ == "__main__":
    raise SystemExit(main())
