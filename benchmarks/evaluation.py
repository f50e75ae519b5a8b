"""What does scoring cost a search: stopped early where clearly beaten, and several arrangements in one pass?

Halving: each sampler searches the part of `tiny` whose losses are known clip by clip (benchmarks/data, see
search_regret.py), once scoring everything whole and once stopping what a cheaper arrangement clearly beats, with the
same seeds; a search leaves halving out for nsga2 and gp, and the first shows why. Printed: the share of clips scored,
how often the best arrangement found is the same or one as good, how
many members of the true front were stopped, and the front's hypervolume as a share of the true one.

Together: passes over several arrangements of an untrained supernet of `tiny`, interleaved with the same arrangements
one by one. Prints tables and one JSON line; exit code 1 if halving makes the default sampler's best worse.

    python benchmarks/evaluation.py [--seeds 10] [--trials 100] [--samplers surrogate ...] [--device cuda]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import optuna
import torch
from numpy.typing import NDArray
from search_regret import Scored, Truth, hypervolume, load_problem, load_samples

from nas.config import SearchConfig
from nas.search.samplers import SAMPLERS
from nas.search.studies import Evaluation
from nas.search.study import search
from search_spaces.arrangement import Arrangement

BATCHES = 4
SAME = 1e-9
TOGETHER = (2, 4, 8)
CLIPS, REPEATS = 8, 3


@dataclass(frozen=True)
class Sampled(Scored):
    samples: tuple[float, ...] = ()


@dataclass
class ByClip:
    """The truth in instalments; counts the batches that were asked for."""

    truth: Truth
    samples_of: dict[tuple[int, ...], NDArray[np.float64]]
    batches: dict[str, int] = field(default_factory=dict)
    rungs: tuple[int, ...] = (1, 2, BATCHES)

    def _all(self, arrangement: Arrangement) -> NDArray[np.float64]:
        return self.samples_of[tuple(int(i) for i in self.truth.problem.indices_of(arrangement))]

    def prepare(self, arrangements: Sequence[Arrangement], batches: int | None = None) -> None:
        for arrangement in arrangements:
            self.batches[arrangement.key] = batches or BATCHES

    def samples(self, arrangement: Arrangement) -> NDArray[np.float64]:
        whole = self._all(arrangement)
        return whole[: len(whole) * self.batches[arrangement.key] // BATCHES]

    def score(self, arrangement: Arrangement) -> Sampled:
        self.prepare([arrangement])
        return Sampled(self.truth.score(arrangement).loss, samples=tuple(self._all(arrangement)))


def run(quality: ByClip, sampler: str, seed: int, trials: int, halving: bool) -> list[Evaluation]:
    with tempfile.TemporaryDirectory() as folder:
        return search(
            quality.truth.problem,
            quality.score,
            Path(folder) / "study.journal",
            identity={},
            trials=trials,
            sampler=sampler,
            seed=seed,
            gradual=quality,
            halving=halving,
        )


def true_front(truth: Truth) -> set[tuple[int, ...]]:
    keys = np.array(list(truth.losses))
    fits = truth.problem.feasible(keys)
    latency, losses = truth.problem.cost(keys).latency_ms, np.array(list(truth.losses.values()))
    front, lowest = set(), np.inf
    for i in np.lexsort((losses, latency)):
        if fits[i] and losses[i] < lowest:
            front.add(tuple(int(c) for c in keys[i]))
            lowest = losses[i]
    return front


def halving(samplers: Sequence[str], seeds: int, trials: int) -> dict[str, dict[str, float]]:
    truth, samples = Truth(*load_problem()), load_samples()
    best_area, front = hypervolume(truth.feasible, truth.reference), true_front(truth)
    answers = {}
    print(f"{len(truth.losses)} arrangements known on {len(next(iter(samples.values())))} clips, {trials} trials")
    print(f"{'sampler':<10} {'clips':>7} {'stopped':>8} {'same best':>10} {'front stopped':>14} {'hypervolume':>20}")
    for name in samplers:
        shares, stopped, same, wrong, areas = [], [], 0, 0, {True: [], False: []}
        for seed in range(seeds):
            lowest = {}
            for early in (False, True):
                quality = ByClip(truth, samples)
                found = run(quality, name, seed, trials, early)
                scored = [e for e in found if e.feasible and not e.pruned]
                lowest[early] = min(e.loss for e in scored)
                areas[early].append(hypervolume([(e.latency_ms, e.loss) for e in scored], truth.reference) / best_area)
                if early:
                    shares.append(sum(quality.batches.values()) / (BATCHES * len(found)))
                    stopped.append(sum(e.pruned for e in found) / len(found))
                    wrong += sum(e.pruned and e.choice in front for e in found)
            same += lowest[True] <= lowest[False] + SAME
        answers[name] = {
            "clips_share": round(statistics.median(shares), 3),
            "stopped_share": round(statistics.median(stopped), 3),
            "best_kept": same,
            "front_stopped": wrong,
            "hypervolume_whole": round(statistics.median(areas[False]), 4),
            "hypervolume_halving": round(statistics.median(areas[True]), 4),
        }
        one = answers[name]
        print(
            f"{name:<10} {one['clips_share']:>7.0%} {one['stopped_share']:>8.0%} {same:>7}/{seeds} {wrong:>14} "
            f"{one['hypervolume_whole']:>9.2%} -> {one['hypervolume_halving']:.2%}",
            flush=True,
        )
    return answers


def together(device: str) -> dict[str, float]:
    """Time of scoring arrangements in one pass, over the time one by one; medians, interleaved."""
    from nas.config import DataConfig, QualityConfig
    from nas.data import open_data
    from nas.pretrained.text import TextEncoder
    from nas.supernet.quality import Quality
    from nas.supernet.supernet import Supernet
    from search_spaces.space import Space

    space = Space.load("tiny")
    data = open_data(DataConfig(source="moving_shapes"), space.clip("training"), "validation", 0)
    text = TextEncoder.small(space, data.captions)
    quality = Quality(Supernet(space), text, data, QualityConfig(clips=CLIPS, batch=CLIPS), device)
    rng = np.random.default_rng(0)
    ratios = {}
    for count in TOGETHER:
        found = []
        for _ in range(REPEATS + 1):
            several = [space.sample(rng) for _ in range(count)]
            spent = []
            for groups in ([several], [[one] for one in several]):
                quality._parts.clear()
                begun = time.perf_counter()
                for group in groups:
                    quality.prepare(group)
                if device != "cpu":
                    torch.cuda.synchronize()
                spent.append(time.perf_counter() - begun)
            found.append(spent[0] / spent[1])
        ratios[str(count)] = round(statistics.median(found[1:]), 3)
        print(f"{count} together on {device}: {ratios[str(count)]:.2f} of the time one by one", flush=True)
    return ratios


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--samplers", nargs="+", choices=sorted(SAMPLERS), default=[s for s in SAMPLERS if s != "gp"])
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    answers = halving(args.samplers, args.seeds, args.trials)
    ratios = together(args.device)
    default = SearchConfig().sampler
    print(json.dumps({"default_sampler": default, "halving": answers, "together": ratios, "device": args.device}))
    return 0 if default not in answers or answers[default]["best_kept"] == args.seeds else 1


if __name__ == "__main__":
    raise SystemExit(main())
