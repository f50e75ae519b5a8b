"""The evidence of a run: some of its arrangements trained alone, and how well the search's scores order them."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from nas.errors import NasError
from nas.files import read_text, write_whole
from nas.ranking.agreement import Agreement, Band, agreement, band
from nas.search.problem import Problem
from search_spaces.arrangement import Arrangement

ROWS, FILE = "rank.csv", "rank.json"
LEAST = 6  # arrangements below which no order can be told from chance
DRAWN = 20_000
BAND, CENTRE = 0.05, 0.75  # half the width of the band of latency, and the quantile that it lies around
NOT_CHECKED = "not checked against arrangements trained alone; nas rank {run} does it"
ADVICE = (
    "; do not trust the order: train longer, or with frozen spatial layers (train.spatial_rate=0); or score by "
    "replacing one block at a time (--scoring one_replaced)"
)

Alone = Callable[[Arrangement], float]


def arrangements(problem: Problem, count: int, seed: int) -> list[Arrangement]:
    """Distinct arrangements within the budget: what a search has to tell apart.

    Those in ``in_band`` come first: two thirds of them, where there are so many, within ``BAND`` of latency of each
    other, in the upper half of what the budget allows; the others uniformly drawn.

    Raises:
        NasError: if fewer are found among ``DRAWN`` than wanted.
    """
    rng = np.random.default_rng([seed, 7])
    drawn = problem.costs.random(DRAWN, rng)
    fits = drawn[problem.feasible(drawn)]
    _, first = np.unique(fits, axis=0, return_index=True)
    rows = fits[np.sort(first)]
    if len(rows) < count:
        raise NasError(
            f"only {len(rows)} of {DRAWN:,} random arrangements meet the budget, {count} are wanted; loosen it, or ask "
            "for fewer with --arrangements"
        )
    latency = problem.cost(rows).latency_ms
    inside = np.abs(latency / np.quantile(latency, CENTRE) - 1) <= BAND
    near = np.flatnonzero(inside)[: 2 * count // 3]
    rest = np.setdiff1d(np.arange(len(rows)), near)[: count - len(near)]
    return [problem.arrangement(row) for row in rows[np.concatenate([near, rest])]]


def in_band(problem: Problem, chosen: Sequence[Arrangement]) -> list[bool]:
    """Which of ``arrangements`` are within one band of latency; its centre is the median of the first two thirds."""
    latency = problem.cost(np.stack([problem.indices_of(a) for a in chosen])).latency_ms
    centre = float(np.median(latency[: max(1, 2 * len(chosen) // 3)]))
    return [bool(abs(value / centre - 1) <= 2 * BAND) for value in latency]


def collect(
    out: Path,
    chosen: Sequence[Arrangement],
    alone: Alone,
    identity: dict[str, Any],
    progress: Callable[[int, int, float], None] | None = None,
) -> dict[str, float]:
    """Stand-alone losses by key; each is in ``rank.csv`` as soon as it is known, and is not made again.

    Args:
        identity: what the losses depend on; rows of another identity stay in the file, for when it is asked for again.
    """
    path, mark = out / ROWS, json.dumps(identity, sort_keys=True)
    rows = _rows(path)
    known = {row["key"]: float(row["loss"]) for row in rows if row["identity"] == mark}
    others = [row for row in rows if row["identity"] != mark]
    for arrangement in chosen:
        if arrangement.key not in known:
            known[arrangement.key] = alone(arrangement)
            _write(path, others, known, mark)
        if progress is not None:
            progress(sum(a.key in known for a in chosen), len(chosen), known[arrangement.key])
    return {a.key: known[a.key] for a in chosen}


def conclude(
    out: Path,
    scores: Sequence[float],
    truth: Sequence[float],
    identity: dict[str, Any],
    *,
    inside: Sequence[bool] | None = None,
    second: Sequence[float | None] | None = None,
    same_clips: bool = False,
) -> Evidence:
    """Compare, and write ``rank.json``: what every later search of the run shows beside its answer.

    Args:
        inside: which are in the band; all by default. second: truths by another seed, where there are any.
        same_clips: whether the truth was scored on the clips of the scores, for want of others.
    """
    inside = [True] * len(scores) if inside is None else list(inside)
    second = [None] * len(scores) if second is None else list(second)
    rows = [row for row, within in zip(zip(scores, truth, second, strict=True), inside, strict=True) if within]
    near = band(*([row[i] for row in rows] for i in range(3)))  # type: ignore[arg-type]
    found = Evidence(agreement(scores, truth), near, same_clips)
    facts = {**found.to_json(), "identity": identity, "scores": list(scores), "alone": list(truth), "second": second}
    write_whole(out / FILE, json.dumps(facts, indent=1))
    return found


@dataclass(frozen=True)
class Evidence:
    """How well a run's scores order arrangements.

    Attributes:
        overall: of all. near: within a band of latency, which is what a search uses. same_clips: see ``conclude``.
    """

    overall: Agreement
    near: Band
    same_clips: bool

    @property
    def told_from_chance(self) -> bool:
        return self.overall.told_from_chance

    @property
    def sentence(self) -> str:
        """One line for people: the band first."""
        shared = "; scores and truth share their clips, there are no others" if self.same_clips else ""
        return f"{self.near.sentence}; overall {self.overall.sentence}{shared}"

    def to_json(self) -> dict[str, Any]:
        """With ``None`` for what is not known: strict JSON has no other word."""
        near = {name: value if np.isfinite(value) else None for name, value in vars(self.near).items()}
        told = {"band_tau": near["tau"], "band_ceiling": near["ceiling"], "top_regret": near["regret"]}
        counts = {"in_band": self.near.count, "trained_twice": self.near.twice, "same_clips": self.same_clips}
        return {**told, **counts, **asdict(self.overall), "told_from_chance": self.told_from_chance}


class _Facts(BaseModel):
    """``rank.json``, as far as a search reads it."""

    model_config = ConfigDict(extra="ignore")

    identity: dict[str, Any]
    band_tau: float | None
    band_ceiling: float | None
    top_regret: float | None
    in_band: int
    trained_twice: int
    same_clips: bool
    tau: float
    low: float
    high: float
    chance: float
    count: int

    def evidence(self) -> Evidence:
        known = (self.band_tau, self.band_ceiling, self.top_regret)
        tau, ceiling, regret = (math.nan if value is None else value for value in known)
        overall = Agreement(self.tau, self.low, self.high, self.chance, self.count)
        return Evidence(overall, Band(tau, ceiling, regret, self.in_band, self.trained_twice), self.same_clips)


def sentence(out: Path, identity: dict[str, Any]) -> str:
    """The evidence in one line: what was found for this supernet and scoring, or that nobody has looked."""
    try:
        facts = _Facts.model_validate_json((out / FILE).read_bytes())
    except (OSError, ValidationError):
        return NOT_CHECKED.format(run=out)
    if facts.identity != identity:
        return NOT_CHECKED.format(run=out)
    found = facts.evidence()
    return found.sentence + ("" if found.told_from_chance else ADVICE)


def _rows(path: Path) -> list[dict[str, str]]:
    """The rows of ``rank.csv``, each checked: hours of training stand in them, so none is passed over in silence.

    Raises:
        NasError: on a row that is none.
    """
    if not path.exists():
        return []
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True))
        for number, row in enumerate(rows, start=2):
            if set(row) != {"key", "loss", "identity"} or None in row.values() or not math.isfinite(float(row["loss"])):
                raise ValueError(f"row {number} has no key, loss and identity")
    except (csv.Error, ValueError) as error:
        if isinstance(error, NasError):
            raise
        raise NasError(f"{path}: damaged ({error}); mend it, or move it away to train those networks again") from None
    return rows


def _write(path: Path, others: Sequence[dict[str, str]], known: dict[str, float], mark: str) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["key", "loss", "identity"])
    writer.writerows((row["key"], row["loss"], row["identity"]) for row in others)
    writer.writerows((key, repr(float(loss)), mark) for key, loss in known.items())
    write_whole(path, text.getvalue())
