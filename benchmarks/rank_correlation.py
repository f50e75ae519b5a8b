"""Does the supernet rank arrangements as training each of them alone does? Every strategy in one table.

Truth: 24 arrangements of `tiny`, 14 of them within one 10% band of latency so that size alone cannot rank them, each
trained alone on moving shapes from the same warm backbone with two seeds. The losses are kept in data/rank_truth.csv
and made once (an hour; stopped at any moment, it goes on). The ceiling is the tau between the two seeds: no score can
be expected to agree better with one seed than the other seed does.

Strategies: supernets of equal numbers of trained paths, or three times as many, drawn fairly, uniformly, or as a
sandwich with in-place distillation (the default); with spatial layers frozen once paths train (the default, and the
paper's way) or trained slowly; and, on the same weights, scored after a few steps of adaptation, or by replacing one
position at a time in a trained path. Exit code 1 if the default's tau, after the longer training, is under 0.7 or 85%
of the ceiling.

    python benchmarks/rank_correlation.py [--truth-only] [--strategies fair uniform ...] [--runs runs/rank_correlation]
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import numpy as np
import torch
import yaml

from latency_tables.cost import CostModel
from latency_tables.lookup import load_table
from latency_tables.plan import Plan
from nas.config import QualityConfig, RunConfig, resolve
from nas.data import open_data
from nas.quality import Quality
from nas.ranking.agreement import kendall_tau
from nas.ranking.alone import train_alone
from nas.supernet import Supernet
from nas.text import TextEncoder
from nas.trained import load_supernet
from nas.trainer import Trainer, train
from search_spaces.arrangement import Arrangement
from search_spaces.space import Space

TARGET_TAU, TARGET_OF_CEILING = 0.7, 0.85
DATA = Path(__file__).parent / "data"
TRUTH, PROVENANCE = DATA / "rank_truth.csv", DATA / "rank_truth.yaml"
TABLE = "amd_epyc_zen5"
SPREAD, IN_BAND, BAND, SEEDS = 10, 14, 0.05, (0, 1)
WARM, ALONE, PATHS, ADAPT = 400, 300, 1800, 20  # steps; of a supernet, trained paths in all
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
    f"train.steps={WARM}",
    f"train.warmup_steps={WARM}",
)
QUALITY = QualityConfig(clips=64, repeats=4)
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


def arrangements(space: Space, model: CostModel) -> list[tuple[Arrangement, float, int, bool]]:
    """(arrangement, latency in ms, parameters, in the band): the same ones whenever this is asked."""
    rng = np.random.default_rng(2024)
    drawn = {a.key: a for a in (space.sample(rng) for _ in range(3000))}
    pool = list(drawn.values())
    costs = model.cost(np.stack([model.encode(a.labels()) for a in pool]))
    centre = float(np.median(costs.latency_ms))
    inside = [i for i in range(len(pool)) if abs(costs.latency_ms[i] / centre - 1) <= BAND]
    outside = [i for i in np.argsort(costs.latency_ms) if abs(costs.latency_ms[i] / centre - 1) > BAND]
    chosen = [(i, True) for i in rng.permutation(inside)[:IN_BAND]]
    chosen += [(outside[int(q * (len(outside) - 1))], False) for q in np.linspace(0.02, 0.98, SPREAD)]
    return [(pool[i], float(costs.latency_ms[i]), int(costs.parameters[i]), band) for i, band in chosen]


class Bench:
    """Space, data and the warm start that everything here shares."""

    def __init__(self, runs: Path) -> None:
        self.runs = runs
        self.config: RunConfig = resolve("tiny", None, None, SETTINGS)
        self.space = Space.load("tiny")
        clip = self.space.clip("training")
        self.data = open_data(self.config.data, clip, "train", 0)
        self.validation = open_data(self.config.data, clip, "validation", 0)
        self.model = CostModel(Plan.load("tiny"), load_table(TABLE))
        self.chosen = arrangements(self.space, self.model)

    def warm(self) -> tuple[Supernet, TextEncoder]:
        """The backbone after its warm-up, from which everybody starts."""
        train(self.space, self.data, self.config.train, self.runs / "warm", seed=0)
        return load_supernet(self.space, self.runs / "warm")[:2]

    def score(self, nets: tuple[Supernet, TextEncoder]) -> Quality:
        return Quality(*nets, self.validation, QUALITY)

    # Truth ----------------------------------------------------------------------------------------------

    def truth(self) -> dict[tuple[str, int], float]:
        """Stand-alone losses by (key, seed); those that are missing are made, one row at a time."""
        known = {(row["key"], int(row["seed"])): float(row["loss"]) for row in _rows(TRUTH)}
        wanted = [(a, ms, n, band, seed) for seed in SEEDS for a, ms, n, band in self.chosen]
        missing = [item for item in wanted if (item[0].key, item[4]) not in known]
        if not missing:
            return known
        start = self.warm()
        self._describe()
        for done, (arrangement, ms, parameters, band, seed) in enumerate(missing):
            began = time.perf_counter()
            nets = train_alone(self.space, self.data, self.config.train, arrangement, start, steps=ALONE, seed=seed)
            score = self.score(nets).score(arrangement)
            known[arrangement.key, seed] = score.loss
            _append(
                TRUTH,
                {
                    "key": arrangement.key,
                    "seed": seed,
                    "loss": f"{score.loss:.6f}",
                    "stderr": f"{score.stderr:.6f}",
                    "velocity_loss": f"{score.velocity_loss:.6f}",
                    "motion_loss": f"{score.motion_loss:.6f}",
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
            "settings": list(SETTINGS),
            "steps": {"warm": WARM, "alone": ALONE},
            "quality": QUALITY.model_dump(),
            "space": self.space.fingerprint,
            "latency": f"table {TABLE}",
            "arrangements": {a.key: a.to_json()["positions"] for a, *_ in self.chosen},
        }
        PROVENANCE.write_text(yaml.safe_dump(facts, sort_keys=False, width=120))

    # Supernets ------------------------------------------------------------------------------------------

    def supernet(self, settings: dict[str, str | float]) -> tuple[Supernet, TextEncoder]:
        """The averaged weights of a strategy's supernet, trained from the warm start; resumable."""
        per_step = 3 if settings["paths"] == "sandwich" else 1
        steps = PATHS * int(settings.get("times", 1)) // per_step
        config = self.config.train.model_copy(
            update={**_trained(settings), "steps": steps, "warmup_steps": 0, "checkpoint_every": 200}
        )
        name = "_".join(f"{key}-{value}" for key, value in settings.items())
        folder = self.runs / name
        trainer = Trainer(self.space, self.data, config, folder, 0, lambda message: print(message, file=sys.stderr))
        folder.mkdir(parents=True, exist_ok=True)
        trainer.start_from(*self.warm(), temporal=False)

        def tell(step) -> None:
            if step.step % 200 == 0:
                print(f"{name} {step.step}/{steps}: {step.loss:.4f}", file=sys.stderr, flush=True)

        trainer.run(tell)
        return load_supernet(self.space, folder)[:2]

    def scores(self, settings: dict[str, str | float], how: str) -> list[float]:
        """A strategy's score of every chosen arrangement; kept beside its supernet."""
        nets = self.supernet(settings)
        kept = self.runs / "scores" / f"{'_'.join(map(str, settings.values()))}_{how}.json"
        known = json.loads(kept.read_text()) if kept.exists() else {}
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
        own = train_alone(self.space, self.data, config, a, nets, steps=ADAPT, seed=5, inherit=True)
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


def agreement(scores: list[float], truth: list[list[float]], band: list[bool]) -> dict[str, float]:
    """Tau against each seed's truth, averaged; of all and of those in the band."""
    inside = np.array(band)
    values = np.array(scores)
    seeds = [np.array(losses) for losses in truth]
    return {
        "kendall_tau": round(float(np.mean([kendall_tau(values, losses) for losses in seeds])), 4),
        "kendall_tau_band": round(float(np.mean([kendall_tau(values[inside], o[inside]) for o in seeds])), 4),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument("--truth-only", action="store_true", help="make what is missing of the stand-alone losses")
    parser.add_argument("--runs", type=Path, default=Path("runs/rank_correlation"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(args.runs)
    known = bench.truth()
    if args.truth_only:
        return 0
    band = [inside for *_, inside in bench.chosen]
    truth = [[known[a.key, seed] for a, *_ in bench.chosen] for seed in SEEDS]
    ceiling = agreement(truth[0], [truth[1]], band)
    answer: dict[str, dict[str, float]] = {"ceiling": ceiling}
    answer["parameters"] = agreement([-n for _, _, n, _ in bench.chosen], truth, band)
    answer["latency"] = agreement([-ms for _, ms, _, _ in bench.chosen], truth, band)
    print(f"{len(bench.chosen)} arrangements, {sum(band)} of them within 10% of latency")
    print(f"{'predictor':<24}{'tau':>7}{'in the band':>13}", flush=True)
    for name in ("ceiling", "parameters", "latency"):
        print(f"{name:<24}{answer[name]['kendall_tau']:>7.3f}{answer[name]['kendall_tau_band']:>13.3f}", flush=True)
    for name in args.strategies:
        answer[name] = agreement(bench.scores(*STRATEGIES[name]), truth, band)
        print(f"{name:<24}{answer[name]['kendall_tau']:>7.3f}{answer[name]['kendall_tau_band']:>13.3f}", flush=True)
    default = answer.get(DEFAULT, {})
    tau = default.get("kendall_tau", float("nan"))
    told = {"kendall_tau": tau, "kendall_tau_band": default.get("kendall_tau_band"), "ceiling": ceiling["kendall_tau"]}
    print(json.dumps({**told, "arrangements": len(bench.chosen), "seeds": len(SEEDS), "strategies": answer}))
    return 0 if tau >= TARGET_TAU and tau >= TARGET_OF_CEILING * ceiling["kendall_tau"] else 1


if __name__ == "__main__":
    sys.exit(main())
