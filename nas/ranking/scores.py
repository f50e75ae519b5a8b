"""How a run's arrangements are scored, and the evidence that the scores rank them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from nas.config import RunConfig
from nas.console import progress
from nas.errors import NasError

if TYPE_CHECKING:
    from nas.pretrained.text import TextEncoder
    from nas.ranking.evidence import Evidence
    from nas.ranking.kept import Kept
    from nas.ranking.scoring import Scorer
    from nas.search.problem import Problem
    from nas.supernet.quality import Quality, Score
    from nas.supernet.supernet import Supernet
    from search_spaces.arrangement import Arrangement

LEAST_CLIPS = 4  # of the validation split that scores do not use, below which the truth is asked on the same ones
CLOSER = 4  # times as many noise levels a clip for rivals that cannot be told apart
SCORINGS = ("path", "one_replaced")


def open_quality(
    config: RunConfig, out: Path, nets: tuple[Supernet, TextEncoder] | None = None, skip: int = 0
) -> tuple[Quality, int]:
    """The run's score of quality, on its newest averaged weights (or the given ones), and their step.

    Its forward passes are in the precision that the supernet was trained in.

    Args:
        skip: clips of the validation split to pass over.
    """
    from nas.data import open_data
    from nas.supernet.quality import Quality
    from nas.supernet.trained import load_supernet, trained_precision
    from search_spaces.space import Space

    space, precision = Space.load(config.space), trained_precision(out / "supernet")
    supernet, text, steps = (*nets, 0) if nets is not None else load_supernet(space, out / "supernet")
    data = open_data(config.data, space.clip("training"), "validation", config.seed)
    device = config.train.device
    return Quality(supernet, text, data, config.quality, device, skip=skip, precision=precision), steps


def open_scorer(config: RunConfig, out: Path) -> tuple[Scorer, int]:
    """What a search asks for scores, by ``search.scoring`` and ``search.adapt_steps``, and the supernet's step."""
    from nas.ranking.scoring import Adapted, OneReplaced

    quality, steps = open_quality(config, out)
    wanted = config.search
    if wanted.adapt_steps and wanted.scoring == "one_replaced":
        raise NasError("search.adapt_steps trains whole paths; leave it 0 with search.scoring=one_replaced")
    if wanted.scoring == "one_replaced":
        from nas.supernet.paths import fixed_paths

        if quality.supernet.held is not None:
            raise NasError(
                "search.scoring=one_replaced changes a path that train.paths=within_budget may have left out; use path"
            )
        return OneReplaced(quality, fixed_paths(quality.supernet.space, 1)[0]), steps
    if not wanted.adapt_steps:
        return quality, steps
    start = (quality.supernet, quality.text)

    def adapt(arrangement: Arrangement) -> Score:
        nets = alone(config, out, arrangement, start, wanted.adapt_steps, inherit=True)
        return open_quality(config, out, nets)[0].score(arrangement)

    return Adapted(adapt), steps


def alone(
    config: RunConfig,
    out: Path,
    arrangement: Arrangement,
    start: tuple[Supernet, TextEncoder],
    steps: int,
    *,
    inherit: bool,
    seed: int = 0,
) -> tuple[Supernet, TextEncoder]:
    """One arrangement of the run trained by itself, on the run's own data."""
    from nas.data import open_data
    from nas.ranking.alone import train_alone
    from nas.supernet.trained import trained_precision
    from search_spaces.space import Space

    space = Space.load(config.space)
    train = config.train.model_copy(update={"precision": trained_precision(out / "supernet")})
    data = open_data(config.data, space.clip("training"), "train", config.seed)
    return train_alone(space, data, train, arrangement, start, steps=steps, seed=seed, inherit=inherit)


def rescorer(config: RunConfig, out: Path, quality: Scorer, scored: dict[str, str]) -> tuple[Kept, Kept]:
    """The same score on more clips, for the end of the search, and on several times the noise, for close rivals.

    What they have scored before is in ``rescored.json`` and ``rivals.json`` of the run: a search that is done opens
    and scores nothing.
    """
    from nas.ranking.kept import FILE, RIVALS, Kept

    def kept(name: str, clips: int, repeats: int) -> Kept:
        more = config.quality.model_copy(update={"clips": clips, "repeats": repeats})
        same = more == config.quality
        wider = config.model_copy(update={"quality": more})
        open_it = lambda: quality if same else open_scorer(wider, out)[0]  # noqa: E731
        return Kept(out / name, {**scored, "again": more.model_dump_json()}, open_it)

    clips, repeats = max(config.search.rescore_clips, config.quality.clips), config.quality.repeats
    return kept(FILE, clips, repeats), kept(RIVALS, clips, CLOSER * repeats)


def with_scoring(config: RunConfig, scoring: str | None) -> RunConfig:
    """The configuration with another ``search.scoring``, where one is named.

    Raises:
        NasError: on an unknown one.
    """
    if scoring is None:
        return config
    if scoring not in SCORINGS:
        raise NasError(f"--scoring {scoring}: must be one of {', '.join(SCORINGS)}")
    return config.model_copy(update={"search": config.search.model_copy(update={"scoring": scoring})})


def scored_by(config: RunConfig, out: Path, steps: int) -> dict[str, str]:
    """What scores depend on: the supernet's weights, the clips, and how they are asked."""
    from nas.data import open_data, split_digest
    from search_spaces.space import Space

    clips = open_data(config.data, Space.load(config.space).clip("training"), "validation", config.seed)
    asked = _asked(config, out)
    if config.search.scoring != "path" or config.search.adapt_steps:
        asked += f" {config.search.scoring}, {config.search.adapt_steps} steps of adaptation"
    supernet = f"step {steps} ({weights_digest(out / 'supernet')})"
    return {"supernet": supernet, "validation": split_digest(clips), "quality": asked}


def _asked(config: RunConfig, out: Path) -> str:
    """The questions of a score, and the precision of the answers where it is not the full one."""
    from nas.supernet.trained import trained_precision
    from nas.training.precision import FULL

    precision = trained_precision(out / "supernet")
    return config.quality.model_dump_json() + (f" in {precision}" if precision != FULL else "")


def rank(config: RunConfig, out: Path, problem: Problem, *, count: int, steps: int) -> Evidence:
    """Train some arrangements of the run alone, and write down how well its scores order them.

    Each starts from the supernet's shared weights with temporal layers of its own, drawn anew. Their losses are taken
    on other clips than the scores where there are others, and on other noise always: a score that learnt its own clips
    by heart would agree with itself. Half of those within one band of latency are trained with a second seed: how well
    two seeds agree is the most that a score can reach.
    """
    from nas.ranking.evidence import LEAST, arrangements, collect, conclude, in_band

    if count < LEAST:
        raise NasError(f"--arrangements must be {LEAST} or more, so that an order can be told from chance, is {count}")
    if steps < 1:
        raise NasError(f"--steps must be 1 or more, but is {steps}")
    quality, trained = open_quality(config, out)
    scorer = open_scorer(config, out)[0]
    chosen = arrangements(problem, count, config.seed)
    start = (quality.supernet, quality.text)
    identity = scored_by(config, out, trained)
    weights = {**identity, "quality": _asked(config, out), "steps": steps}

    inside = in_band(problem, chosen)
    twice = [a for a, within in zip(chosen, inside, strict=True) if within]
    twice = twice[: max(4, len(twice) // 2)]
    config_of, skip = _other_questions(config, quality)
    weights |= {"truth": f"{config_of.quality.model_dump_json()} after {skip} clips"}

    def truth_of(seed: int) -> Callable[[Arrangement], float]:
        def loss(arrangement: Arrangement) -> float:
            nets = alone(config, out, arrangement, start, steps, inherit=False, seed=seed)
            return open_quality(config_of, out, nets, skip)[0].score(arrangement).loss

        return loss

    with progress("rank") as report:
        total = len(chosen) + len(twice)
        told = lambda done, _, value: report(done, total, f"trained alone: loss {value:.4f}")  # noqa: E731
        truth = collect(out, chosen, truth_of(0), weights, told)
        again = lambda done, _, value: report(len(chosen) + done, total, f"second seed: loss {value:.4f}")  # noqa: E731
        second = collect(out, twice, truth_of(1), {**weights, "seed": 1}, again)
    scores = [scorer.score(a).loss for a in chosen]
    return conclude(
        out,
        scores,
        [truth[a.key] for a in chosen],
        identity,
        inside=inside,
        second=[second.get(a.key) for a in chosen],
        same_clips=not skip,
    )


def _other_questions(config: RunConfig, quality: Quality) -> tuple[RunConfig, int]:
    """A configuration whose quality asks on other noise, and how many clips it passes over to ask on others."""
    rest = quality.available - config.quality.clips
    skip = config.quality.clips if rest >= LEAST_CLIPS else 0
    clips = min(config.quality.clips, rest) if skip else config.quality.clips
    other = config.quality.model_copy(update={"seed": config.quality.seed + 1, "clips": clips})
    return config.model_copy(update={"quality": other}), skip


def weights_digest(supernet: Path) -> str:
    """12 hex characters of the newest checkpoint's averaged weights: scores of other weights are other scores."""
    from nas.training.checkpoint import list_checkpoints

    with (list_checkpoints(supernet)[-1] / "average.safetensors").open("rb") as weights:
        return hashlib.file_digest(weights, "sha256").hexdigest()[:12]
