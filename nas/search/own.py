"""The search with a score of one's own: a space, a table and a function, no supernet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from latency_tables.budget import Budget, nearest
from latency_tables.cost import CostModel
from latency_tables.table import Table
from nas.errors import AnswerIsNo
from nas.search.problem import Problem
from nas.search.studies import Evaluation
from nas.search.study import search
from search_spaces.arrangement import Arrangement
from search_spaces.planning import load_plan
from search_spaces.space import Space


@dataclass(frozen=True)
class _Score:
    """A number as the search wants it: exact, and in one part."""

    loss: float
    stderr: float = 0.0
    parts: Mapping[str, float] = field(default_factory=dict)


def search_with(
    score: Callable[[Arrangement], float],
    space: str | Path | Space,
    table: Table,
    where: str | Path,
    *,
    budget: Budget | None = None,
    trials: int = 100,
    sampler: str = "surrogate",
    seed: int = 0,
    allow_mixed: bool = False,
    name: str = "own score",
) -> list[Evaluation]:
    """Search a space under a budget with any function of an arrangement; lower is better.

    Every score is kept in ``where``: the same call goes on where it was stopped, and asks for no score twice.

    Args:
        where: an Optuna journal file, or a database's URL.
        trials: arrangements to score, hand-made designs beside them. sampler: a name in ``nas.search.samplers``.
        allow_mixed: measured and estimated rows of the table together.
        name: of the score; a study of a score with another name is refused, so name it anew when it changes.

    Returns:
        Every arrangement that was scored, with its costs (ms, MB); ``pareto_front`` gives those that none beats.

    Raises:
        AnswerIsNo: if nothing in the space meets the budget. NasError: if ``where`` holds another study, or a score is
            no finite number. TableError: if the table lacks rows of the space.
    """
    loaded, limits = Space.load(space), budget or Budget()
    costs = CostModel(load_plan(loaded), table, allow_mixed=allow_mixed)
    refused = nearest(costs, limits) if limits.given else None
    if refused is not None:
        raise AnswerIsNo(f"nothing meets the budget: {refused.message}")
    identity = {"space": loaded.fingerprint, "table": costs.rows_digest, "score": name, "seed": str(seed)}
    return search(
        Problem(loaded, costs, limits),
        lambda arrangement: _Score(float(score(arrangement))),
        where if "://" in str(where) else Path(where),
        identity=identity,
        trials=trials,
        sampler=sampler,
        seed=seed,
    )
