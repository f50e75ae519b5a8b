"""The evidence of a run: some of its arrangements trained alone, and how well the search's scores order them."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from nas.errors import NasError
from nas.files import read_text, write_whole
from nas.ranking.agreement import Agreement, agreement
from nas.search.problem import Problem
from search_spaces.arrangement import Arrangement

ROWS, FILE = "rank.csv", "rank.json"
LEAST = 6  # arrangements below which no order can be told from chance
DRAWN = 20_000
NOT_CHECKED = "not checked against arrangements trained alone; nas rank {run} does it"
ADVICE = (
    "; do not trust the order: train longer, or with frozen spatial layers (train.spatial_rate=0); or score by "
    "replacing one block at a time (--scoring one_replaced)"
)

Alone = Callable[[Arrangement], float]


def arrangements(problem: Problem, count: int, seed: int) -> list[Arrangement]:
    """Distinct arrangements within the budget, uniformly drawn: what a search has to tell apart.

    Raises:
        NasError: if fewer are found among ``DRAWN`` than wanted.
    """
    rng = np.random.default_rng([seed, 7])
    drawn = problem.costs.random(DRAWN, rng)
    fits = drawn[problem.feasible(drawn)]
    _, first = np.unique(fits, axis=0, return_index=True)
    rows = fits[np.sort(first)][:count]
    if len(rows) < count:
        raise NasError(
            f"only {len(rows)} of {DRAWN:,} random arrangements meet the budget, {count} are wanted; loosen it, or ask "
            "for fewer with --arrangements"
        )
    return [problem.arrangement(row) for row in rows]


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


def conclude(out: Path, scores: Sequence[float], truth: Sequence[float], identity: dict[str, Any]) -> Agreement:
    """Compare, and write ``rank.json``: what every later search of the run shows beside its answer."""
    found = agreement(scores, truth)
    facts = {**asdict(found), "identity": identity, "scores": list(scores), "alone": list(truth)}
    write_whole(out / FILE, json.dumps(facts, indent=1))
    return found


def sentence(out: Path, identity: dict[str, Any]) -> str:
    """The evidence in one line: what was found for this supernet and scoring, or that nobody has looked."""
    try:
        facts = json.loads((out / FILE).read_text())
        if facts["identity"] != identity:
            return NOT_CHECKED.format(run=out)
        found = Agreement(*(facts[name] for name in ("tau", "low", "high", "chance", "count")))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return NOT_CHECKED.format(run=out)
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
    writer.writerows((key, f"{loss:.8f}", mark) for key, loss in known.items())
    write_whole(path, text.getvalue())
