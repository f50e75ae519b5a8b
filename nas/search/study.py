"""The search loop: ask, score on the supernet, tell; stopped at any moment, it goes on from the journal."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from nas.errors import NasError
from nas.search.problem import Problem
from nas.search.samplers import SpaceExhausted, distributions, evaluated, make_sampler
from search_spaces.arrangement import Arrangement

REFERENCE = "reference: "  # origin of the hand-made designs; never counted as search trials


class Scored(Protocol):
    """What the search needs of a quality score; lower is better."""

    @property
    def loss(self) -> float: ...
    @property
    def stderr(self) -> float: ...
    @property
    def velocity_loss(self) -> float: ...
    @property
    def motion_loss(self) -> float: ...


@dataclass(frozen=True)
class Evaluation:
    """One finished trial, as the report and ``front.csv`` show it. Losses unitless, latency in ms, memory in MB."""

    trial: int
    choice: tuple[int, ...]
    arrangement: Arrangement
    origin: str
    loss: float
    loss_stderr: float
    velocity_loss: float
    motion_loss: float
    latency_ms: float
    peak_mb: float
    weights_mb: float
    parameters: int
    feasible: bool

    @property
    def is_reference(self) -> bool:
        return self.origin.startswith(REFERENCE)


def search(
    problem: Problem,
    score: Callable[[Arrangement], Scored],
    journal: Path,
    *,
    identity: dict[str, str],
    trials: int,
    sampler: str,
    seed: int,
    progress: Callable[[int, int, Evaluation], None] | None = None,
) -> list[Evaluation]:
    """Evaluate until ``trials`` search trials are done, hand-made designs beside them, and return all evaluations.

    Each budget is a study of its own in the journal; a quality that any of them has asked for is never asked again.

    Args:
        problem: space, costs and budget. Somebody must have made sure that something is feasible.
        score: quality of an arrangement; the only expensive call.
        journal: Optuna journal file; created, or continued when it is of the same ``identity``.
        identity: what the scores and costs depend on (space, table, supernet, ...); a difference is refused.
        trials: search trials wanted in all, those already in the journal included.
        sampler: a name in ``SAMPLERS``. seed: with one worker the whole study is a function of it.
        progress: called after each evaluation with (done, wanted, evaluation).

    Raises:
        NasError: if the journal is another study's, is held by another process, or cannot be read.
    """
    journal.parent.mkdir(parents=True, exist_ok=True)
    with _only_one(journal.with_suffix(".writer")):
        study = open_study(journal, identity, problem)
        known = known_scores(study)
        _requeue_interrupted(study)
        for name, choice in problem.hand_made().items():
            if tuple(choice) not in evaluated(study, problem) and np.isfinite(problem.cost(choice).latency_ms[0]):
                params = problem.params(choice)
                study.enqueue_trial(params, user_attrs={"origin": REFERENCE + name})
        while True:
            done = [e for e in evaluations(study, problem) if not e.is_reference]
            waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
            if len(done) >= trials and not waiting:
                return evaluations(study, problem)
            number = len(study.get_trials(deepcopy=False))
            try:
                # A sampler of its own for each trial: a resumed study proposes what the uninterrupted one would have.
                study.sampler = make_sampler(sampler, problem, seed=_mix(seed, number))
                trial = study.ask(dict(distributions(problem)))
            except SpaceExhausted:
                _requeue_interrupted(study, again=False)
                return evaluations(study, problem)
            evaluation = _evaluate(study, trial, problem, score, sampler, known)
            if progress is not None:
                searched = len(done) + (not evaluation.is_reference)
                progress(searched, trials, evaluation)


def _evaluate(
    study: optuna.Study,
    trial: optuna.Trial,
    problem: Problem,
    score: Callable[[Arrangement], Scored],
    sampler: str,
    known: dict[str, Scored],
) -> Evaluation:
    choice = problem.indices(trial.params)
    costs = problem.cost(choice)
    violations = problem.violations(choice)
    for limit, value in violations.items():
        trial.set_constraint(limit, float(value[0]))
    is_feasible = bool(problem.feasible(choice)[0])
    if not violations:
        trial.set_constraint("unlimited", 0.0)  # a trial without any constraint would be read as one never checked
    arrangement = problem.arrangement(choice)
    if arrangement.key not in known:
        known[arrangement.key] = score(arrangement)
    result = known[arrangement.key]
    attributes = {
        "origin": trial.user_attrs.get("origin", sampler),
        "key": arrangement.key,
        "feasible": is_feasible,  # optuna-dashboard 0.21 does not read 5.0's constraints yet
        "loss_stderr": float(result.stderr),
        "velocity_loss": float(result.velocity_loss),
        "motion_loss": float(result.motion_loss),
        "peak_mb": float(costs.peak_mb[0]),
        "weights_mb": float(costs.weights_mb[0]),
        "parameters": int(costs.parameters[0]),
    }
    for name, attribute in attributes.items():
        trial.set_user_attr(name, attribute)
    study.tell(trial, [float(result.loss), float(costs.latency_ms[0])])
    return _evaluation(study.get_trials(deepcopy=False)[trial.number], problem)


def evaluations(study: optuna.Study, problem: Problem) -> list[Evaluation]:
    """Every completed trial of the study, in the order of their numbers."""
    return [_evaluation(t, problem) for t in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))]


def _evaluation(trial: FrozenTrial, problem: Problem) -> Evaluation:
    attributes = trial.user_attrs
    choice = problem.indices(trial.params)
    loss, latency = trial.values
    return Evaluation(
        trial=trial.number,
        choice=tuple(int(i) for i in choice),
        arrangement=problem.arrangement(choice),
        origin=attributes["origin"],
        loss=loss,
        loss_stderr=attributes["loss_stderr"],
        velocity_loss=attributes["velocity_loss"],
        motion_loss=attributes["motion_loss"],
        latency_ms=latency,
        peak_mb=attributes["peak_mb"],
        weights_mb=attributes["weights_mb"],
        parameters=attributes["parameters"],
        feasible=attributes["feasible"],
    )


@dataclass(frozen=True)
class _Known:
    """A score read back from a journal."""

    loss: float
    stderr: float
    velocity_loss: float
    motion_loss: float


def known_scores(study: optuna.Study) -> dict[str, Scored]:
    """Arrangement key -> score, from every study in the journal of this one."""
    found: dict[str, Scored] = {}
    for name in optuna.get_all_study_names(study._storage):
        other = optuna.load_study(study_name=name, storage=study._storage, sampler=study.sampler)
        for trial in other.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            have = trial.user_attrs
            found[have["key"]] = _Known(
                trial.values[0], have["loss_stderr"], have["velocity_loss"], have["motion_loss"]
            )
    return found


def study_name(problem: Problem) -> str:
    """A study's name states its limits: ``search latency_ms=120 memory_mb=900``."""
    limits = [f"{name}={value:.9g}" for name, value in problem.budget.given.items()]
    return " ".join(["search", *limits])


def open_study(journal: Path, identity: dict[str, str], problem: Problem) -> optuna.Study:
    """The study of the problem's budget in ``journal``, created if need be; refused if the journal is of another run.

    Raises:
        NasError: if the journal's identity differs, or it cannot be read.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    _check_journal(journal)
    try:
        storage = JournalStorage(JournalFileBackend(str(journal)))
        for name in optuna.get_all_study_names(storage):
            _check_identity(journal, optuna.load_study(study_name=name, storage=storage), identity)
        study = optuna.create_study(
            study_name=study_name(problem),
            storage=storage,
            directions=["minimize", "minimize"],
            sampler=optuna.samplers.RandomSampler(seed=0),  # replaced before the first trial; never Optuna's default
            load_if_exists=True,
        )
    except (json.JSONDecodeError, KeyError, UnicodeDecodeError) as error:
        raise NasError(f"{journal}: a damaged Optuna journal ({error}); move it away to search again") from error
    if "identity" not in study.user_attrs:
        study.set_user_attr("identity", identity)
    return study


def _check_identity(journal: Path, study: optuna.Study, identity: dict[str, str]) -> None:
    known = study.user_attrs.get("identity", identity)
    changed = [name for name in sorted({*known, *identity}) if known.get(name) != identity.get(name)]
    if changed:
        what = "; ".join(f"{name} was {known.get(name)}, is {identity.get(name)}" for name in changed)
        raise NasError(
            f"{journal} holds a study of something else: {what}. "
            f"Search in a new run folder, or move the journal away to search again"
        )


def _check_journal(journal: Path) -> None:
    """Refuse a file that is no journal before Optuna appends to it."""
    if not journal.exists() or journal.stat().st_size == 0:
        return
    with journal.open("rb") as lines:
        first = lines.readline()
    try:
        known = "op_code" in json.loads(first)
    except (ValueError, TypeError):
        known = False
    if not known:
        raise NasError(f"{journal}: not an Optuna journal; move it away to search here")


def _requeue_interrupted(study: optuna.Study, again: bool = True) -> None:
    """Fail the trials that a dead process left running, and queue their arrangements again.

    The lock says that nobody else holds this journal, so whatever still runs in it is dead.
    """
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        params = trial.params or trial.system_attrs.get("fixed_params", {})
        study.tell(trial.number, state=TrialState.FAIL)
        if again and params:
            study.enqueue_trial(params, user_attrs=dict(trial.user_attrs))


@contextmanager
def _only_one(lock: Path) -> Iterator[None]:
    with lock.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise NasError(f"{lock}: another search is writing this study; wait for it, or stop it first") from error
        yield


def _mix(seed: int, number: int) -> int:
    """A seed for trial ``number``; neighbouring numbers share nothing."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
