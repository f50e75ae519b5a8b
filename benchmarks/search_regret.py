"""How near the true front does each sampler get, and how soon? On a part of `tiny` that was scored whole, once.

The truth (loss of every arrangement on a trained supernet, cost from the table measured beside it) is kept in
benchmarks/data/subspace_truth.csv, clip by clip, with its provenance; --enumerate RUN makes it anew from a run folder.
Each sampler then searches the same problem with the truth as its score. Hypervolume is over (loss, latency) within the
budget, against the reference point of the budget's latency and the empty arrangement's loss, as a share of the true
front's. Runs that do not get there are censored at the cap.

Twice: with the truth as it is, and with a random term for every pair of choices at neighbouring positions, half as
large as the truth's own spread, so that a sum over positions is wrong. Then the default sampler under five random
budgets: does it find the exact best within 200 evaluations?

Every sampler begins with the same hand-made designs, which NSGA-II breeds from as members of its first generation, and
what it proposes is repaired from the same feasible starts. Baselines are Optuna's samplers and random search, each at
the best of several settings on this very problem (NSGA-II's population, the random trials that TPE and GP begin with).
GP takes a second or more a proposal, and is run where it is named. Prints tables and one JSON line; exit code 1 if
the default needs more than a third of what the best baseline needs for 95%, misses a best, or does not improve on its
seeds.

    python benchmarks/search_regret.py [--seeds 10] [--cap 120] [--samplers surrogate nsga2 gp ...]
    python benchmarks/search_regret.py --enumerate runs/tiny
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.samplers import BaseSampler

from latency_tables.budget import Budget
from latency_tables.cost import CostModel
from latency_tables.table import Table
from nas.config import SearchConfig
from nas.search import samplers as ours
from nas.search.problem import Problem
from nas.search.samplers import SAMPLERS, FeasibleSampler
from nas.search.studies import Evaluation
from nas.search.study import search
from search_spaces.arrangement import Arrangement
from search_spaces.planning import load_plan
from search_spaces.space import Space

HERE = Path(__file__).parent / "data"
SPACE, TRUTH, TABLE = HERE / "subspace.yaml", HERE / "subspace_truth.csv", HERE / "subspace_table.csv"
RATIO = 1.3  # budget: this many times the bare backbone
LEVELS = (0.95, 0.99)
INTERACTION = 0.5  # size of the pairwise terms, over the spread of the truth
BUDGETS, EVALUATIONS = 5, 200
OURS = ("surrogate", "value")


def _gp(startup: int) -> Callable[[Problem, int], BaseSampler]:
    def make(problem: Problem, seed: int) -> BaseSampler:
        inner = optuna.samplers.GPSampler(seed=seed, n_startup_trials=startup)
        return FeasibleSampler(inner, problem, seed, proposals=2)

    return make


# Baseline -> settings -> sampler; the best of them stands for it.
SETTINGS: dict[str, dict[str, Callable[[Problem, int], BaseSampler]]] = {
    "nsga2": {f"population {n}": partial(ours.nsga2, population=n) for n in (6, 10, 20)},
    "tpe": {f"{n} random first": partial(ours.tpe, startup=n) for n in (5, 10, 20)},
    "gp": {f"{n} random first": _gp(n) for n in (5, 10)},
    "random": {"": SAMPLERS["random"]},
}


@dataclass(frozen=True)
class Scored:
    loss: float
    stderr: float = 0.0
    parts: Mapping[str, float] = field(default_factory=dict)


def enumerate_truth(run: Path) -> None:
    """Score every arrangement of the sub-space on the run's supernet; some minutes."""
    from nas.config import load
    from nas.ranking.scores import open_quality
    from nas.run.folder import commit
    from nas.run.job import load_table

    config = load(run)
    quality, steps = open_quality(config, run)
    space = Space.load(SPACE)
    options = [space.options(position) for position in space.positions]
    names = [position.name for position in space.positions]
    whole = Space.load(config.space)
    total = int(np.prod([len(o) for o in options]))
    lines = [f"# space {config.space}, step {steps}, seed {config.seed}, commit {commit()}", "choice,loss,loss_by_clip"]
    for done, choice in enumerate(itertools.product(*(range(len(o)) for o in options))):
        layers = {name: options[p][i] for p, (name, i) in enumerate(zip(names, choice, strict=True))}
        score = quality.score(whole.arrange(layers))
        lines.append(f"{''.join(map(str, choice))},{score.loss:.6f},{' '.join(f'{x:.6f}' for x in score.samples)}")
        if done % 200 == 0:
            print(f"{done}/{total}", file=sys.stderr)
    TRUTH.write_text("\n".join(lines) + "\n")
    from device_profiler.device import Device

    load_table(Device.load(config.device), run / "table").save(TABLE, replace=True)


def load_problem() -> tuple[Problem, dict[tuple[int, ...], float]]:
    space = Space.load(SPACE)
    costs = CostModel(load_plan(space), Table.load(TABLE))
    budget = Budget(latency_ms=RATIO * costs.backbone_latency_ms)
    truth = {}
    for line in TRUTH.read_text().splitlines()[2:]:
        choice, loss, _ = line.split(",")
        truth[tuple(int(c) for c in choice)] = float(loss)
    return Problem(space, costs, budget), truth


def load_samples() -> dict[tuple[int, ...], NDArray[np.float64]]:
    """Choice -> its loss on each clip."""
    rows = (line.split(",") for line in TRUTH.read_text().splitlines()[2:])
    return {tuple(map(int, choice)): np.array(by_clip.split(), dtype=float) for choice, _, by_clip in rows}


def hypervolume(points: Sequence[tuple[float, float]], reference: tuple[float, float]) -> float:
    """Area between the front of (latency, loss) points and the reference point; both are minimised."""
    area, lowest = 0.0, reference[1]
    inside = sorted(p for p in points if p[0] < reference[0] and p[1] < reference[1])
    for latency, loss in inside:
        if loss < lowest:
            area += (reference[0] - latency) * (lowest - loss)
            lowest = loss
    return area


@dataclass(frozen=True)
class Truth:
    """A problem whose every loss is known."""

    problem: Problem
    losses: dict[tuple[int, ...], float]

    def score(self, arrangement: Arrangement) -> Scored:
        return Scored(self.losses[tuple(int(i) for i in self.problem.indices_of(arrangement))])

    def within(self, budget: Budget) -> Truth:
        return Truth(replace(self.problem, budget=budget), self.losses)

    @property
    def reference(self) -> tuple[float, float]:
        return float(self.problem.budget.latency_ms or 0), self.losses[(0,) * len(self.problem.positions)]

    @property
    def feasible(self) -> list[tuple[float, float]]:
        """(latency, loss) of all that the budget allows."""
        keys = np.array(list(self.losses))
        fits = self.problem.feasible(keys)
        values = np.array(list(self.losses.values()))
        return list(zip(self.problem.cost(keys).latency_ms[fits].tolist(), values[fits].tolist(), strict=True))

    def interacting(self, seed: int = 0) -> Truth:
        """The same with a random term for each pair of choices at neighbouring positions."""
        rng = np.random.default_rng(seed)
        options = self.problem.num_options
        terms = [rng.standard_normal((options[p], options[p + 1])) for p in range(len(options) - 1)]
        added = {key: sum(float(t[key[p], key[p + 1]]) for p, t in enumerate(terms)) for key in self.losses}
        size = INTERACTION * np.std(list(self.losses.values())) / np.std(list(added.values()))
        return Truth(self.problem, {key: loss + float(size) * added[key] for key, loss in self.losses.items()})


def run(truth: Truth, sampler: str, seed: int, trials: int) -> list[Evaluation]:
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder) / "study.journal"
        return search(truth.problem, truth.score, where, identity={}, trials=trials, sampler=sampler, seed=seed)


def contest(truth: Truth, samplers: Sequence[str], seeds: int, cap: int) -> dict[str, dict[str, Any]]:
    """Every sampler's row; a baseline's is that of the setting that needs fewest evaluations to 95%, then to 99%."""
    answer: dict[str, dict[str, Any]] = {}
    for name in samplers:
        rows: list[dict[str, Any]] = []
        for setting, make in SETTINGS.get(name, {"": SAMPLERS[name]}).items():
            with _in_place_of(name, make):
                label = f"{name}, {setting}" if setting else name
                rows.append({**race(truth, [name], seeds, cap, label)[name], "setting": setting})
        answer[name] = min(rows, key=lambda row: (row["to_95"], row["to_99"]))
    return answer


@contextmanager
def _in_place_of(name: str, make: Callable[[Problem, int], BaseSampler]) -> Iterator[None]:
    """A sampler's name stands for another setting of it meanwhile."""
    before = SAMPLERS[name]
    SAMPLERS[name] = make
    try:
        yield
    finally:
        SAMPLERS[name] = before


def race(
    truth: Truth, samplers: Sequence[str], seeds: int, cap: int, label: str | None = None
) -> dict[str, dict[str, float]]:
    """Evaluations to each level by sampler, medians over seeds; how often the best was found; gain on the seeds."""
    best = hypervolume(truth.feasible, truth.reference)
    lowest = min(loss for _, loss in truth.feasible)
    answer: dict[str, dict[str, float]] = {}
    for name in samplers:
        reached: dict[float, list[int]] = {level: [] for level in LEVELS}
        exact, gains, seconds = 0, [], time.perf_counter()
        for seed in range(seeds):
            found = run(truth, name, seed, cap)
            points: list[tuple[float, float]] = []
            needed = dict.fromkeys(LEVELS, cap)
            for count, e in enumerate(found, start=1):
                if e.feasible:
                    points.append((e.latency_ms, e.loss))
                share = hypervolume(points, truth.reference) / best
                for level in LEVELS:
                    if share >= level:
                        needed[level] = min(needed[level], count)
            for level in LEVELS:
                reached[level].append(needed[level])
            final = min(e.loss for e in found if e.feasible)
            first = min(e.loss for e in found if e.feasible and e.is_reference)
            exact += final - lowest < 1e-9
            gains.append((first - final) / max(first - lowest, 1e-12))
        answer[name] = {
            "to_95": statistics.median(reached[0.95]),
            "to_99": statistics.median(reached[0.99]),
            "found_best": exact,
            "gain_on_seeds": round(statistics.median(gains), 4),
            "ms_a_trial": round(1000 * (time.perf_counter() - seconds) / (seeds * cap), 1),
        }
        shown = [f"{v:.0f}" if v < cap else f">{cap}" for v in (answer[name]["to_95"], answer[name]["to_99"])]
        print(
            f"{label or name:<22} {shown[0]:>8} {shown[1]:>8} {exact:>8}/{seeds} "
            f"{answer[name]['gain_on_seeds']:>14.0%} {answer[name]['ms_a_trial']:>10.0f}",
            flush=True,
        )
    return answer


def random_budgets(truth: Truth, default: str) -> int:
    """Under how many of five random budgets the default finds the exact best."""
    rng = np.random.default_rng(7)
    latencies = truth.problem.cost(np.array(list(truth.losses))).latency_ms
    found = 0
    for seed in range(BUDGETS):
        limit = float(rng.uniform(np.quantile(latencies, 0.05), latencies.max()))
        held = truth.within(Budget(latency_ms=limit))
        lowest = min(loss for _, loss in held.feasible)
        evaluations = run(held, default, seed, EVALUATIONS)
        count = next((n for n, e in enumerate(evaluations, 1) if e.feasible and e.loss - lowest < 1e-9), None)
        found += count is not None
        told = f"after {count} evaluations" if count else f"not within {EVALUATIONS}"
        print(f"  {limit:6.1f} ms, {len(held.feasible)} arrangements: best {lowest:.4f} found {told}", flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--enumerate", type=Path, metavar="RUN", help="make the truth anew from a run folder")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--cap", type=int, default=120, help="evaluations at which a run is censored")
    parser.add_argument(
        "--samplers", nargs="+", choices=sorted(SAMPLERS), default=[name for name in SAMPLERS if name != "gp"]
    )
    args = parser.parse_args()
    if args.enumerate:
        enumerate_truth(args.enumerate)
        return 0
    if not TRUTH.exists():
        print(f"{TRUTH} is not there; make it with --enumerate RUN", file=sys.stderr)
        return 2
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    default = SearchConfig().sampler
    truth = Truth(*load_problem())
    head = f"{'sampler':<22} {'to 95%':>8} {'to 99%':>8} {'best':>11} {'gain on seeds':>14} {'ms/trial':>10}"
    answers = {}
    for name, one in {"as it is": truth, "interacting": truth.interacting()}.items():
        losses = [loss for _, loss in one.feasible]
        print(
            f"{name}: {len(one.losses)} scored, {len(losses)} within {one.reference[0]:.1f} ms, best {min(losses):.4f}"
        )
        print(f"{head}   (medians of {args.seeds} seeds, cap {args.cap})")
        answers[name] = contest(one, args.samplers, args.seeds, args.cap)
    print(f"{default} under {BUDGETS} random budgets")
    bests = random_budgets(truth, default)
    plain, hard = answers["as it is"], answers["interacting"]
    ours_now = {name: answer.get(default, {}).get("to_95") for name, answer in answers.items()}
    best = {name: best_baseline(answer) for name, answer in answers.items()}
    result: dict[str, Any] = {"default_sampler": default, "default_evaluations_95": ours_now["as it is"]}
    for name, ending in (("as it is", ""), ("interacting", "_interacting")):
        baseline, needed = best[name]
        result[f"best_baseline{ending}"] = baseline
        result[f"best_baseline_evaluations_95{ending}"] = needed
        if ours_now[name] and needed:
            ratio = result[f"ratio{ending}"] = round(ours_now[name] / needed, 3)
            print(f"{name}: {default} needs {ours_now[name]:g} to 95%, {baseline} {needed:g}: {ratio:.2f}")
    result |= {
        "default_evaluations_95_interacting": ours_now["interacting"],
        "random_budgets_found": bests,
        "samplers": plain,
        "interacting": hard,
        "seeds": args.seeds,
        "cap": args.cap,
    }
    print(json.dumps(result))
    if default not in args.samplers or best["as it is"][1] is None:
        return 0
    quick = result["ratio"] <= 1 / 3
    return 0 if quick and bests == BUDGETS and hard[default]["gain_on_seeds"] > 0 else 1


def best_baseline(answer: dict[str, dict[str, Any]]) -> tuple[str, float | None]:
    """The baseline that needs fewest evaluations to 95%, with its setting."""
    rows = {name: row for name, row in answer.items() if name not in OURS}
    if not rows:
        return "", None
    name = min(rows, key=lambda one: rows[one]["to_95"])
    setting = rows[name]["setting"]
    return (f"{name}, {setting}" if setting else name), rows[name]["to_95"]


if __name__ == "__main__":
    raise SystemExit(main())
