"""Do intervals hold what they state, and is what a search chooses as good as it says?

Intervals: whole networks whose times are a bare sum, a scale, an offset or an overhead a layer away from it, with
noise that is normal or has heavy tails. A correction is fitted on 8, 10, 20 or 40 of them, and its 90% interval is
tried on 400 others; the share that it holds is averaged over simulations.

Choice: simulated searches score arrangements on 32 clips, take the front's best eight, score those again on 64, close
rivals on four times as many, and choose (`nas.search.front.choose`). The losses are those of 722 arrangements of
`tiny`, clip by clip, with clips drawn anew for each search; and a made-up front so dense that its members hardly
differ. Printed: how often the one chosen is truly behind the best of the eight by more than one standard error of 64
clips, and the same for the choice anchored to the lowest loss of the search's own scores.

Prints a table and one JSON line; exit code 1 if an interval holds less than 0.90 or more than 2% are behind.

    python benchmarks/calibration.py [--simulations 600] [--searches 1000]
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from search_regret import load_problem, load_samples

from latency_tables.correction import COVERAGE, fit_correction
from nas.search.front import Choice, choose, pareto_front
from nas.search.studies import Evaluation

Floats = NDArray[np.float64]

SIZES = (8, 10, 20, 40)
# (offset in ms, scale, ms a layer) of what is true; share of noise.
TRUTHS = ((0.0, 1.0, 0.0), (20.0, 1.02, 0.0), (0.0, 1.05, 2.0), (5.0, 0.98, 0.5), (0.0, 1.03, 0.0))
NOISES, NEW = (0.005, 0.02), 400
COARSE, FINE, CLOSER, RESCORED, EVALUATED = 32, 64, 4, 8, 100
TARGET_BEHIND = 0.02


def coverage(networks: int, simulations: int, seed: int = 0) -> float:
    """Share of new networks within the 90% interval of a correction fitted on so many."""
    rng = np.random.default_rng([seed, networks])
    held = []
    for number in range(simulations):
        offset, scale, layer = TRUTHS[number % len(TRUTHS)]
        noise = NOISES[number // len(TRUTHS) % 2]
        count = networks + NEW
        sums, layers = rng.uniform(50, 150, count), rng.integers(1, 12, count)
        luck = rng.standard_normal(count) if number // 2 % 2 else rng.standard_t(4, count) / math.sqrt(2)
        times = (offset + scale * sums + layer * layers) * (1 + noise * luck)
        fit = fit_correction(*(values[:networks].tolist() for values in (sums, times, layers)))
        predicted = fit.offset_ms + fit.scale * sums + fit.per_layer_ms * layers
        held.append(np.mean(np.abs(predicted / times - 1)[networks:] <= fit.interval))
    return float(np.mean(held))


@dataclass(frozen=True)
class Sampled:
    """What one search saw of some arrangements: latency (N,), true loss (N,), and losses by clip (N, clips)."""

    latency: Floats
    true: Floats
    coarse: Floats
    fine: Floats
    closer: Floats
    stderr: Callable[[int, int], float]  # of the difference of two on ``FINE`` clips, as it truly is


class Scored:
    """Searches of the part of `tiny` whose losses are known clip by clip; clips are drawn anew for each."""

    def __init__(self) -> None:
        problem, _ = load_problem()
        samples = load_samples()
        choices = np.array(list(samples))
        fits = problem.feasible(choices)
        self._by_clip = np.array(list(samples.values()))[fits]
        self._latency = problem.cost(choices[fits]).latency_ms

    def __call__(self, rng: np.random.Generator) -> Sampled:
        """Arrangements that a search came across: the better, the likelier."""
        true = self._by_clip.mean(1)
        met = np.argsort(true + rng.normal(0, 0.5 * true.std(), len(true)))[:EVALUATED]
        by_clip = self._by_clip[met]
        clips = by_clip.shape[1]
        drawn = [by_clip[:, rng.integers(0, clips, count)] for count in (COARSE, FINE, CLOSER * FINE)]

        def stderr(a: int, b: int) -> float:
            return float((by_clip[a] - by_clip[b]).std() / math.sqrt(FINE))

        return Sampled(self._latency[met], true[met], *drawn, stderr)


def dense(rng: np.random.Generator) -> Sampled:
    """A front of falling returns on which neighbours hardly differ; noise of each arrangement's own."""
    latency = np.sort(rng.uniform(0, 1, EVALUATED))
    true = np.exp(-2 * latency) + 0.3 * rng.exponential(0.3, EVALUATED)
    size = rng.uniform(0.05, 0.3)
    drawn = [true[:, None] + size * rng.standard_normal((EVALUATED, n)) for n in (COARSE, FINE, CLOSER * FINE)]
    return Sampled(latency, true, *drawn, lambda a, b: float(size * math.sqrt(2 / FINE)))


def choice_of(seen: Sampled) -> tuple[list[int], int, int]:
    """(the rescored ones, the chosen one, the one that an anchor at the search's own lowest score would choose)."""
    losses = seen.coarse.mean(1)
    found = [
        Evaluation(
            trial=i,
            choice=(i,),
            arrangement=_Named(str(i)),  # type: ignore[arg-type]
            origin="",
            loss=loss,
            loss_stderr=0.0,
            parts={},
            latency_ms=ms,
            peak_mb=0.0,
            weights_mb=0.0,
            parameters=0,
            feasible=True,
            objectives=(ms,),
        )
        for i, (loss, ms) in enumerate(zip(losses.tolist(), seen.latency.tolist(), strict=True))
    ]
    few = sorted(sorted(pareto_front(found), key=lambda e: e.loss)[:RESCORED], key=lambda e: e.latency_ms)

    def by(samples: Floats) -> Callable[[_Named, _Named], tuple[float, float]]:
        def difference(a: _Named, b: _Named) -> tuple[float, float]:
            apart = samples[int(a.key)] - samples[int(b.key)]
            return float(apart.mean()), float(apart.std(ddof=1) / math.sqrt(len(apart)))

        return difference

    chosen: Choice = choose(few, by(seen.fine), by(seen.closer))  # type: ignore[arg-type]
    anchor = min(few, key=lambda e: e.loss)
    told = [(e, *by(seen.fine)(e.arrangement, anchor.arrangement)) for e in few]  # type: ignore[arg-type]
    coarse = next(e for e, mean, stderr in told if e is anchor or mean <= stderr)
    return [e.trial for e in few], chosen.chosen.trial, coarse.trial


@dataclass(frozen=True)
class _Named:
    key: str


def behind(draw: Callable[[np.random.Generator], Sampled], searches: int, seed: int = 0) -> dict[str, float]:
    """How often the chosen one is truly more than one standard error behind the best, and by how many at worst."""
    found: dict[str, list[float]] = {"chosen": [], "coarse": []}
    for number in range(searches):
        seen = draw(np.random.default_rng([seed, number]))
        few, chosen, coarse = choice_of(seen)
        best = min(few, key=lambda i: seen.true[i])
        for name, one in (("chosen", chosen), ("coarse", coarse)):
            errors = 0.0 if one == best else float(seen.true[one] - seen.true[best]) / seen.stderr(one, best)
            found[name].append(errors)
    told = {f"{name}_behind": float(np.mean(np.array(errors) > 1)) for name, errors in found.items()}
    return {**told, "worst": max(found["chosen"]), "coarse_worst": max(found["coarse"])}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=600)
    parser.add_argument("--searches", type=int, default=1000)
    args = parser.parse_args()
    held = {size: coverage(size, args.simulations) for size in SIZES}
    print(
        f"{'networks':>8} {'held by the 90% interval':>26}   ({args.simulations} simulations, {NEW} new networks each)"
    )
    for size, share in held.items():
        print(f"{size:>8} {share:>26.3f}")
    told = {name: behind(draw, args.searches) for name, draw in {"scored": Scored(), "dense": dense}.items()}
    print(f"{'searches':<10} {'behind':>8} {'worst':>8} {'own anchor':>12} {'worst':>8}   (of {args.searches})")
    for name, row in told.items():
        print(
            f"{name:<10} {row['chosen_behind']:>8.1%} {row['worst']:>8.1f} {row['coarse_behind']:>12.1%} "
            f"{row['coarse_worst']:>8.1f}"
        )
    worst = max(row["chosen_behind"] for row in told.values())
    result = {f"coverage_{size}": round(share, 4) for size, share in held.items()}
    print(json.dumps({**result, "chosen_behind": worst, **told}))
    return 0 if min(held.values()) >= COVERAGE and worst < TARGET_BEHIND else 1


if __name__ == "__main__":
    raise SystemExit(main())
