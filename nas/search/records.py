"""What a trial must say to count: the schema of its record, checked once where it is read."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from pydantic import BaseModel, ConfigDict, ValidationError

from nas.search.problem import Problem

Choice = tuple[int, ...]

LABELS = "labels"  # user attribute of a study: position -> the name of each option
DAMAGED = "damaged"  # user attribute, in memory alone, of a finished trial whose record cannot be believed: why


class _Score(BaseModel):
    """What a score is made of, as a trial keeps it; each part of the error stands there as ``<part>_loss``."""

    model_config = ConfigDict(extra="allow")

    loss_stderr: float
    key: str = ""
    samples: list[float] = []
    estimate: float | None = None
    clips: int = 0


PART = "_loss"  # behind the name of a part of the error, in a trial's record and in ``front.csv``


def parts_of(record: Mapping[str, Any]) -> dict[str, float]:
    """The named parts of an error that a record holds."""
    found = {name.removesuffix(PART): value for name, value in record.items() if name.endswith(PART)}
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}


class _Attributes(BaseModel):
    """What a finished trial says of itself."""

    model_config = ConfigDict(extra="allow")

    origin: str
    key: str
    feasible: bool
    peak_mb: float
    weights_mb: float
    parameters: int
    score: _Score


def choice_of(trial: FrozenTrial, problem: Problem) -> Choice | None:
    """The choice of a trial, shape (P,); ``None`` while it is not known, or if it is none of this space."""
    params = trial.params or trial.system_attrs.get("fixed_params", {})
    if not isinstance(params, dict) or len(params) != len(problem.positions):
        return None
    found = tuple(params.get(name) for name in problem.positions)
    if not all(type(i) is int and 0 <= i < n for i, n in zip(found, problem.sizes, strict=True)):
        return None
    return found  # type: ignore[return-value]


def damage(trial: FrozenTrial, problem: Problem, objectives: int | None = None) -> str:
    """Why a finished trial cannot be believed; an empty line if it can.

    Args:
        objectives: beside the loss, of its study; the problem's by default.
    """
    if choice_of(trial, problem) is None:
        return "its choice is none of this space"
    try:
        told = _Attributes.model_validate(trial.user_attrs)
    except ValidationError as error:
        return ".".join(str(part) for part in error.errors()[0]["loc"])
    if told.score.key not in ("", told.key):
        return "its score is another arrangement's"
    if trial.state == TrialState.PRUNED:
        return "" if told.score.estimate is not None and math.isfinite(told.score.estimate) else "score.estimate"
    values: Any = trial.values
    count = len(problem.objectives) if objectives is None else objectives
    sound = isinstance(values, list) and len(values) == 1 + count
    return "" if sound and all(type(v) in (int, float) and math.isfinite(v) for v in values) else "values"


def without_damage(trial: FrozenTrial, problem: Problem) -> FrozenTrial:
    """The trial; one that is finished and cannot be believed as a failed one that holds nothing."""
    if trial.state not in (TrialState.COMPLETE, TrialState.PRUNED):
        return trial
    why = damage(trial, problem)
    if not why:
        return trial
    failed = copy.copy(trial)
    failed.state, failed.values = TrialState.FAIL, None
    failed.user_attrs = {DAMAGED: why}
    return failed
