"""Does the supernet rank arrangements as training each of them alone does? Every strategy in one table.

What a search uses is the order within a narrow band of latency, where size cannot tell; so that comes first: tau in
the band, the tau between two seeds of the truth there (the ceiling: no score can be expected to agree better with one
seed than the other seed does), and the regret of the score's first choice (0: the truly best; 1: as good as a random
one of the band).

Truth: 24 arrangements of `tiny`, 14 of them within one 10% band of latency, each trained alone on moving shapes from
the same warm backbone with two seeds. The default strategy was picked on the set `choice`; the set `report` holds
others, drawn afterwards, to report it on. Losses are kept in data/rank_truth.csv and data/rank_truth_report.csv and
made once (an hour each; stopped at any moment, it goes on). Scores are taken on other clips and other noise than the
truth: what they have in common would count as agreement.

Strategies: supernets of equal numbers of trained paths, or three times as many, drawn fairly, uniformly, or as a
sandwich with in-place distillation (the default); with spatial layers frozen once paths train (the default, and the
paper's way) or trained slowly; and, on the same weights, scored after a few steps of adaptation, or by replacing one
position at a time in a trained path. Exit code 1 if the default's tau in the band, after the longer training, is under
85% of the ceiling there.

    python benchmarks/rank_correlation.py [--set report] [--truth-only] [--strategies fair ...] [--runs FOLDER]
    python benchmarks/rank_correlation.py --stored    # what is kept, nothing trained
    python benchmarks/rank_correlation.py --quick     # minutes: everything once, too small to mean anything
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from latency_tables.agreement import kendall_tau
from latency_tables.cost import CostModel
from latency_tables.lookup import load_table
from nas.config import QualityConfig, RunConfig, resolve
from nas.data import open_data
from nas.pretrained.text import TextEncoder
from nas.ranking.agreement import top_regret
from nas.ranking.alone import train_alone
from nas.supernet.quality import Quality
from nas.supernet.stage import begin, train
from nas.supernet.supernet import Supernet
from nas.supernet.trained import load_supernet
from search_spaces.arrangement import Arrangement
from search_spaces.plan import Plan
from search_spaces.space import Space

TARGET_OF_CEILING = 0.85  # in the band
DATA = Path(__file__).parent / "data"
SETS = {"choice": (2024, "rank_truth"), "report": (2025, "rank_truth_report")}  # seed, and name of its files
TABLE = "amd_epyc_zen5"
BAND, SEEDS = 0.05, (0, 1)


@dataclass(frozen=True)
class Size:
    """How much is done: arrangements out of the band and in it, steps, trained paths of a supernet, clips."""

    spread: int = 10
    in_band: int = 14
    warm: int = 400
    alone: int = 300
    paths: int = 1800
    adapt: int = 20
    clips: int = 64
    repeats: int = 4


WHOLE = Size()
QUICK = Size(spread=1, in_band=3, warm=3, alone=2, paths=6, adapt=1, clips=4, repeats=1)
SETTINGS = (
    "data.source=moving_shapes",
    "data.max_objects=1",
    "train.clips=4",
    "train.images=4",
    "train.validate_every=0",
    "train.trackers=[]",
    "train.workers=0",
    "train.threads=1",
    "train.paths=fair",
    "train.spatial_rate=0.1",  # of those trained alone; supernets say their own
)
FROZEN, SLOW = {"paths": "fair", "spatial_rate": 0.0}, {"paths": "fair", "spatial_rate": 0.1}
LONGER = {**FROZEN, "times": 3}  # as many paths
SANDWICH = {"paths": "sandwich", "spatial_rate": 0.0}
STRATEGIES = {  # name -> (settings of its supernet, how it is scored)
    "fair": (FROZEN, "inherited"),
    "fair, one replaced": (FROZEN, "replaced"),
    "fair, adapted": (FROZEN, "adapted"),
    "fair, three times longer": (LONGER, "inherited"),
    "three times, adapted": (LONGER, "adapted"),
    "three times, one replaced": (LONGER, "replaced"),
    "fair, spatial slow": (SLOW, "inherited"),
    "the same, one replaced": (SLOW, "replaced"),
    "the same, adapted": (SLOW, "adapted"),
    "uniform, spatial slow": ({"paths": "uniform", "spatial_rate": 0.1}, "inherited"),
    "sandwich": (SANDWICH, "inherited"),
    "sandwich, three times": ({**SANDWICH, "times": 3}, "inherited"),
}
DEFAULT = "sandwich, three times"


def arrangements(space: Space, model: CostModel, seed: int, size: Size) -> list[tuple[Arrangement, float, int, bool]]:
    """(arrangement, latency in ms, parameters, in the band): the same ones whenever this is asked."""
    rng = np.random.default_rng(seed)
    drawn = {a.key: a for a in (space.sample(rng) for _ in range(3000))}
    pool = list(drawn.values())
    costs = model.cost(np.stack([model.encode(a.labels()) for a in pool]))
    centre = float(np.median(costs.latency_ms))
    inside = [i for i in range(len(pool)) if abs(costs.latency_ms[i] / centre - 1) <= BAND]
    outside = [i for i in np.argsort(costs.latency_ms) if abs(costs.latency_ms[i] / centre - 1) > BAND]
    chosen = [(i, True) for i in rng.permutation(inside)[: size.in_band]]
    chosen += [(outside[int(q * (len(outside) - 1))], False) for q in np.linspace(0.02, 0.98, size.spread)]
    return [(pool[i], float(costs.latency_ms[i]), int(costs.parameters[i]), band) for i, band in chosen]


class Bench:
    """Space, data and the warm start that everything here shares."""

    def __init__(self, runs: Path, which: str, size: Size, stored: bool, data: Path) -> None:
        self.runs, self.size, self.stored = runs, size, stored
        seed, name = SETS[which]
        self.kept, self.provenance = data / f"{name}.csv", data / f"{name}.yaml"
        self.quality = QualityConfig(clips=size.clips, repeats=size.repeats)
        steps = (f"train.steps={size.warm}", f"train.warmup_steps={size.warm}")
        self.settings = (*SETTINGS, *steps, f"data.validation_clips={2 * size.clips}")
        self.config: RunConfig = resolve("tiny", None, None, self.settings)
        self.space = Space.load("tiny")
        clip = self.space.clip("training")
        self.data = open_data(self.config.data, clip, "train", 0)
        self.validation = open_data(self.config.data, clip, "validation", 0)
        self.model = CostModel(Plan.load("tiny"), load_table(TABLE))
        self.chosen = arrangements(self.space, self.model, seed, size)

    def warm(self) -> tuple[Supernet, TextEncoder]:
        """The backbone after its warm-up, from which everybody starts."""
        train(self.space, self.data, self.config.train, self.runs / "warm", seed=0)
        return load_supernet(self.space, self.runs / "warm")[:2]

    def score(self, nets: tuple[Supernet, TextEncoder]) -> Quality:
        """The supernet's score, on the clips and noise that the truth does not use."""
        other = self.quality.model_copy(update={"seed": self.quality.seed + 1})
        return Quality(*nets, self.validation, other, skip=self.quality.clips)

    def judge(self, nets: tuple[Supernet, TextEncoder]) -> Quality:
        """The truth's."""
        return Quality(*nets, self.validation, self.quality)

    # Truth ----------------------------------------------------------------------------------------------

    def truth(self) -> dict[tuple[str, int], float]:
        """Stand-alone losses by (key, seed); those that are missing are made, one row at a time."""
        known = {(row["key"], int(row["seed"])): float(row["loss"]) for row in _rows(self.kept)}
        wanted = [(a, ms, n, band, seed) for seed in SEEDS for a, ms, n, band in self.chosen]
        missing = [item for item in wanted if (item[0].key, item[4]) not in known]
        if not missing:
            return known
        if self.stored:
            raise SystemExit(
                f"{len(missing)} of {len(wanted)} losses are not in {self.kept}; make them with --truth-only, an hour"
            )
        start = self.warm()
        self._describe()
        for done, (arrangement, ms, parameters, band, seed) in enumerate(missing):
            began = time.perf_counter()
            nets = train_alone(
                self.space, self.data, self.config.train, arrangement, start, steps=self.size.alone, seed=seed
            )
            score = self.judge(nets).score(arrangement)
            known[arrangement.key, seed] = score.loss
            _append(
                self.kept,
                {
                    "key": arrangement.key,
                    "seed": seed,
                    "loss": f"{score.loss:.6f}",
                    "stderr": f"{score.stderr:.6f}",
                    **{f"{name}_loss": f"{part:.6f}" for name, part in score.parts.items()},
                    "latency_ms": f"{ms:.4f}",
                    "parameters": parameters,
                    "in_band": int(band),
                },
            )
            seconds = time.perf_counter() - began
            print(f"alone {done + 1}/{len(missing)}: {score.loss:.5f} in {seconds:.0f} s", file=sys.stderr, flush=True)
        return known

    def _describe(self) -> None:
        facts = {
            "what": "losses of arrangements of tiny, each trained alone from one warm backbone",
            "made_by": "benchmarks/rank_correlation.py",
            "date": date.today().isoformat(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores shared, torch {torch.__version__}, one thread",
            "settings": list(self.settings),
            "steps": {"warm": self.size.warm, "alone": self.size.alone},
            "quality": self.quality.model_dump(),
            "space": self.space.fingerprint,
            "latency": f"table {TABLE}",
            "arrangements": {a.key: a.to_json()["positions"] for a, *_ in self.chosen},
        }
        self.provenance.write_text(yaml.safe_dump(facts, sort_keys=False, width=120))

    # Supernets ------------------------------------------------------------------------------------------

    def supernet(self, settings: dict[str, str | float]) -> tuple[Supernet, TextEncoder]:
        """The averaged weights of a strategy's supernet, trained from the warm start; resumable."""
        per_step = 3 if settings["paths"] == "sandwich" else 1
        steps = self.size.paths * int(settings.get("times", 1)) // per_step
        config = self.config.train.model_copy(
            update={**_trained(settings), "steps": steps, "warmup_steps": 0, "checkpoint_every": 200}
        )
        name = "_".join(f"{key}-{value}" for key, value in settings.items())
        folder = self.runs / name
        folder.mkdir(parents=True, exist_ok=True)

        def warn(message: str) -> None:
            print(message, file=sys.stderr)

        loop = begin(self.space, self.data, config, folder, 0, warn, start=self.warm())

        def tell(step, row) -> None:
            if step % 200 == 0:
                print(f"{name} {step}/{steps}: {row['loss']:.4f}", file=sys.stderr, flush=True)

        loop.run(tell)
        return load_supernet(self.space, folder)[:2]

    def scores(self, settings: dict[str, str | float], how: str) -> list[float]:
        """A strategy's score of every chosen arrangement; kept beside its supernet."""
        kept = self.runs / "scores_on_other_clips" / f"{'_'.join(map(str, settings.values()))}_{how}.json"
        known = json.loads(kept.read_text()) if kept.exists() else {}
        if all(a.key in known for a, *_ in self.chosen):
            return [known[a.key] for a, *_ in self.chosen]
        if self.stored:
            return []
        nets = self.supernet(settings)
        scorer: Callable[[Arrangement], float] = {
            "inherited": lambda a: quality.score(a).loss,
            "adapted": lambda a: self._adapted(nets, settings, a),
            "replaced": lambda a: self._replaced(quality, a),
        }[how]
        quality = self.score(nets)
        for arrangement, *_ in self.chosen:
            if arrangement.key not in known:
                known[arrangement.key] = scorer(arrangement)
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.write_text(json.dumps(known))
        return [known[a.key] for a, *_ in self.chosen]

    def _adapted(self, nets: tuple[Supernet, TextEncoder], settings: dict[str, str | float], a: Arrangement) -> float:
        config = self.config.train.model_copy(update=_trained(settings))
        own = train_alone(self.space, self.data, config, a, nets, steps=self.size.adapt, seed=5, inherit=True)
        return self.score(own).score(a).loss

    def _replaced(self, quality: Quality, a: Arrangement) -> float:
        """The trained path's loss plus, for each position, what putting this arrangement's choice there changes."""
        base = self.chosen[0][0]
        loss = quality.score(base).loss
        return loss + sum(
            quality.score(base.replace(position, variants)).loss - loss for position, variants in a.layers
        )


def _trained(settings: dict[str, str | float]) -> dict[str, str | float]:
    """What of a strategy's settings the trainer is told."""
    return {name: value for name, value in settings.items() if name != "times"}


def _rows(path: Path) -> Iterator[dict[str, str]]:
    if path.exists():
        with path.open(newline="") as handle:
            yield from csv.DictReader(handle)


def _append(path: Path, row: dict[str, object]) -> None:
    fresh = not path.exists()
    with path.open("a", newline="") as handle:
        writer = csv.DictWriter(handle, list(row), lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerow(row)


def agreement(scores: list[float], truth: list[list[float]], inside: list[bool]) -> dict[str, float]:
    """In the band and overall: tau against each seed's truth, averaged; and in the band the regret of the choice."""
    within, values = np.array(inside), np.array(scores)
    seeds = [np.array(losses) for losses in truth]
    mean = np.mean(seeds, axis=0)
    return {
        "band_tau": round(float(np.mean([kendall_tau(values[within], o[within]) for o in seeds])), 4),
        "top_regret": round(top_regret(values[within], mean[within]), 4),
        "kendall_tau": round(float(np.mean([kendall_tau(values, losses) for losses in seeds])), 4),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=None, help="all by default")
    parser.add_argument("--set", choices=SETS, default="choice", help="of arrangements")
    parser.add_argument("--truth-only", action="store_true", help="make what is missing of the stand-alone losses")
    parser.add_argument("--stored", action="store_true", help="train nothing: what is kept alone")
    parser.add_argument("--quick", action="store_true", help="small sizes in a folder of their own, for the code alone")
    parser.add_argument("--runs", type=Path, default=Path("runs/rank_correlation"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        runs, data = (Path(folder), Path(folder)) if args.quick else (args.runs, DATA)
        bench = Bench(runs, args.set, QUICK if args.quick else WHOLE, args.stored, data)
        return report(bench, args.strategies or ([DEFAULT] if args.quick else list(STRATEGIES)), args)


def report(bench: Bench, strategies: list[str], args: argparse.Namespace) -> int:
    """Print the table and the JSON line."""
    known = bench.truth()
    if args.truth_only:
        return 0
    inside = [band for *_, band in bench.chosen]
    truth = [[known[a.key, seed] for a, *_ in bench.chosen] for seed in SEEDS]
    ceiling = agreement(truth[0], [truth[1]], inside)
    answer: dict[str, dict[str, float]] = {"ceiling": ceiling}
    print(f"{len(bench.chosen)} arrangements of the set {args.set}, {sum(inside)} of them within 10% of latency")
    print(f"{'predictor':<26}{'tau in the band':>16}{'regret there':>14}{'tau overall':>13}", flush=True)

    def tell(name: str, found: dict[str, float] | None) -> None:
        if found is None:
            print(f"{name:<26}{'not kept':>16}", flush=True)
            return
        answer[name] = found
        print(
            f"{name:<26}{found['band_tau']:>16.3f}{found['top_regret']:>14.2f}{found['kendall_tau']:>13.3f}", flush=True
        )

    tell("ceiling", ceiling)
    tell("parameters", agreement([-n for _, _, n, _ in bench.chosen], truth, inside))
    tell("latency", agreement([-ms for _, ms, _, _ in bench.chosen], truth, inside))
    for name in strategies:
        scores = bench.scores(*STRATEGIES[name])
        tell(name, agreement(scores, truth, inside) if scores else None)
    default: dict[str, Any] = answer.get(DEFAULT, {})
    told = {
        "band_tau": default.get("band_tau"),
        "band_ceiling": ceiling["band_tau"],
        "top_regret": default.get("top_regret"),
        "kendall_tau": default.get("kendall_tau"),
        "ceiling": ceiling["kendall_tau"],
        "set": args.set,
    }
    print(json.dumps({**told, "arrangements": len(bench.chosen), "seeds": len(SEEDS), "strategies": answer}))
    if not default or args.quick:
        return 0
    return 0 if default["band_tau"] >= TARGET_OF_CEILING * ceiling["band_tau"] else 1


if __name__ == "__main__":
    sys.exit(main())
