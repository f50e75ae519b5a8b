"""What a search leaves: its evaluations, read back from a study that is of the same space, costs and scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from nas.errors import NasError
from nas.search.journal import NAMED
from nas.search.ledger import REFERENCE, SAMPLES, ledger_of, loss_of
from nas.search.problem import Problem
from nas.search.records import LABELS, damage, parts_of
from nas.search.storage import open_storage, shown
from search_spaces.arrangement import Arrangement

Identity = Mapping[str, str]
Details = Mapping[str, Mapping[str, str]]


class Scored(Protocol):
    """What the search needs of a quality score; lower is better."""

    @property
    def loss(self) -> float: ...
    @property
    def stderr(self) -> float: ...
    @property
    def parts(self) -> Mapping[str, float]: ...


@dataclass(frozen=True)
class Evaluation:
    """One finished trial, as the report and ``front.csv`` show it. Losses unitless, latency in ms, memory in MB.

    Attributes:
        parts: of the error, by name; none where a trial was stopped early.
        objectives: what the study minimises beside the loss, in the problem's order.
        clips: 0 if it was scored whole; else the losses it was scored on before it was beaten, and ``loss`` is an
            estimate.
    """

    trial: int
    choice: tuple[int, ...]
    arrangement: Arrangement
    origin: str
    loss: float
    loss_stderr: float
    parts: Mapping[str, float]
    latency_ms: float
    peak_mb: float
    weights_mb: float
    parameters: int
    feasible: bool
    objectives: tuple[float, ...] = ()
    clips: int = 0

    @property
    def pruned(self) -> bool:
        return self.clips > 0

    @property
    def is_reference(self) -> bool:
        return self.origin.startswith(REFERENCE)


def evaluations(study: optuna.Study, problem: Problem) -> list[Evaluation]:
    """Every scored trial of the study, pruned ones included, in the order of their numbers."""
    return evaluations_of([trial for trial in ledger_of(study, problem).trials if loss_of(trial) is not None], problem)


def evaluations_of(trials: Sequence[FrozenTrial], problem: Problem) -> list[Evaluation]:
    """Scored trials as evaluations; what they cost is asked for at once."""
    if not trials:
        return []
    choices = np.stack([problem.indices(trial.params) for trial in trials])
    latency, objectives = problem.cost(choices).latency_ms.tolist(), problem.objective_costs(choices).tolist()
    found = []
    for trial, choice, milliseconds, costs in zip(trials, choices.tolist(), latency, objectives, strict=True):
        attributes = {**trial.user_attrs, **trial.user_attrs.get("score", {})}
        loss = loss_of(trial)
        assert loss is not None
        found.append(
            Evaluation(
                trial=trial.number,
                choice=tuple(choice),
                arrangement=problem.arrangement(choice),
                origin=attributes["origin"],
                loss=loss,
                loss_stderr=attributes["loss_stderr"],
                parts=parts_of(attributes),
                latency_ms=milliseconds,
                peak_mb=attributes["peak_mb"],
                weights_mb=attributes["weights_mb"],
                parameters=attributes["parameters"],
                feasible=attributes["feasible"],
                objectives=tuple(costs),
                clips=attributes.get("clips", 0),
            )
        )
    return found


@dataclass(frozen=True)
class Known:
    """A score read back from a storage."""

    loss: float
    stderr: float
    parts: Mapping[str, float]
    samples: tuple[float, ...] = ()


def known_scores(study: optuna.Study, problem: Problem) -> dict[str, Scored]:
    """Arrangement key -> score, from every study of the same identity in the storage of this one."""
    found: dict[str, Scored] = {}
    storage, identity = study._storage, study.user_attrs.get("identity")
    for other in storage.get_all_studies():
        if other.user_attrs.get("identity") != identity:
            continue
        for trial in storage.get_all_trials(other._study_id, deepcopy=False, states=(TrialState.COMPLETE,)):
            if damage(trial, problem, objectives=len(other.directions) - 1):
                continue
            have = {**trial.user_attrs, **trial.user_attrs["score"]}
            stderr = float(have.get("loss_stderr", math.nan))
            found[have["key"]] = Known(trial.values[0], stderr, parts_of(have), tuple(have.get(SAMPLES, ())))
    return found


def name_of(problem: Problem, study_name: str = "search") -> str:
    """A study's name states its limits: ``search latency_ms=120 memory_mb=900``."""
    budget = problem.budget
    limits = [f"{name}={value:.9g}" for name, value in budget.given.items()]
    if budget.margin and budget.latency_ms is not None:
        limits.append(f"margin={budget.margin:.4g}")
    if problem.objectives != ("latency_ms",):
        limits.append(f"objectives={'+'.join(problem.objectives)}")
    return " ".join([study_name, *limits])


def open_study(
    where: Path | str,
    identity: Identity,
    problem: Problem,
    *,
    storage: BaseStorage | None = None,
    study_name: str = "search",
    details: Details | None = None,
) -> optuna.Study:
    """The study of the problem's budget, created if need be; refused if it is of something else.

    A journal file belongs to one run, so all of its studies must be of the same identity; a database may hold others'.

    Raises:
        NasError: if the identity differs, or the storage cannot be read.
    """
    storage = storage if storage is not None else open_storage(where)
    name = name_of(problem, study_name)
    there = storage.get_all_studies()
    for other in there:
        if isinstance(where, Path) or other.study_name == name:
            refuse_other(where, other.user_attrs, identity, details)
    settings = {"study_name": name, "storage": storage, "sampler": optuna.samplers.RandomSampler(seed=0)}  # a stand-in
    if name in [other.study_name for other in there]:
        study = optuna.load_study(**settings)
        _refuse_labels(where, study)
    else:
        directions = ["minimize"] * (1 + len(problem.objectives))
        study = optuna.create_study(directions=directions, load_if_exists=True, **settings)
    _note(study, identity, problem, details)
    return study


def _note(study: optuna.Study, identity: Identity, problem: Problem, details: Details | None) -> None:
    """Write down what a study is of, or what of it was lost."""
    facts: dict[str, Any] = {NAMED: {"name": study.study_name, "directions": len(study.directions)}}
    if details:
        facts["details"] = {part: dict(rows) for part, rows in details.items()}
    facts[LABELS] = {position: list(labels) for position, labels in problem.labels.items()}
    facts["identity"] = dict(identity)
    for fact, value in facts.items():
        if fact not in study.user_attrs:
            study.set_user_attr(fact, value)


def _refuse_labels(where: Path | str, study: optuna.Study) -> None:
    """Refuse a study of version 0.1, which kept every option's label in every trial."""
    first = next((t for t in study.get_trials(deepcopy=False) if t.distributions), None)
    if first is not None and any(isinstance(d, CategoricalDistribution) for d in first.distributions.values()):
        name = str(where) if isinstance(where, Path) else shown(where)
        raise NasError(
            f"{name}: {study.study_name!r} is a study of version 0.1, which this version does not read; search in a "
            "new run folder, or give the study another name with --study"
        )


def refuse_other(where: Path | str, attributes: Mapping[str, Any], identity: Identity, details: Details | None) -> None:
    """Refuse a study whose scores or costs come from something else, naming what differs."""
    known, before = attributes.get("identity", identity), attributes.get("details")
    known, before = (found if isinstance(found, Mapping) else {} for found in (known, before))
    changed = [name for name in sorted({*known, *identity}) if known.get(name) != identity.get(name)]
    if not changed:
        return
    what = "; ".join(
        f"{name} was {known.get(name)}, is {identity.get(name)}"
        + difference(before.get(name, {}), (details or {}).get(name, {}))
        for name in changed
    )
    if isinstance(where, Path):
        name, remedy = str(where), "or move the journal away to search again"
    else:
        name, remedy = shown(where), "or give the study another name with --study"
    raise NasError(f"{name} holds a study of something else: {what}. Search in a new run folder, {remedy}")


def difference(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Which parts of two versions differ, the first few by name."""
    if not before or not now:
        return ""
    changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    few = ", ".join(f"{key} was {before.get(key, 'not there')}, is {now.get(key, 'not there')}" for key in changed[:2])
    more = f" and {len(changed) - 2} more of {len(now)}" if len(changed) > 2 else ""
    return f" ({few}{more})" if changed else ""
