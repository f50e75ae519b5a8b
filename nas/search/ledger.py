"""What a study's trials say: which arrangements are taken, which were lost, how many are done; each is read once."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from nas.search.problem import Problem
from nas.search.records import DAMAGED, Choice, choice_of, without_damage

REFERENCE = "reference: "  # origin of the hand-made designs; never counted as search trials
INTERRUPTED = "interrupted"  # user attribute of a failed trial: somebody stopped its worker, it did nothing wrong
GAVE_WAY = "gave_way"  # user attribute of a failed trial that was never evaluated: why
SAMPLES = "samples"  # in a trial's score: the loss of each clip
ESTIMATE = "estimate"  # in the score of a pruned trial: its loss, as far as it was scored
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)  # scored, whole or as far as was needed
LOSSES = 5  # workers that an arrangement may take down with it before it is left alone


def is_reference(trial: FrozenTrial) -> bool:
    return str(trial.user_attrs.get("origin", "")).startswith(REFERENCE)


def loss_of(trial: FrozenTrial) -> float | None:
    """The loss of a finished trial, estimated where it was pruned; ``None`` of any other."""
    if trial.state == TrialState.COMPLETE:
        return float(trial.values[0])
    estimate = trial.user_attrs.get("score", {}).get(ESTIMATE) if trial.state == TrialState.PRUNED else None
    return None if estimate is None else float(estimate)


@dataclass
class _Tally:
    taken: dict[Choice, int] = field(default_factory=dict)
    failures: dict[Choice, list[FrozenTrial]] = field(default_factory=dict)
    done: int = 0

    def copy(self) -> _Tally:
        return _Tally(dict(self.taken), {choice: list(lost) for choice, lost in self.failures.items()}, self.done)

    def add(self, trial: FrozenTrial, choice: Choice) -> None:
        if trial.state == TrialState.FAIL:
            if GAVE_WAY not in trial.user_attrs:
                lost = self.failures.setdefault(choice, [])
                lost.append(trial)
                if sum(INTERRUPTED not in one.user_attrs for one in lost) >= LOSSES:
                    self.taken.setdefault(choice, trial.number)
            return
        self.taken.setdefault(choice, trial.number)
        self.done += trial.state in FINISHED and not is_reference(trial)


class Ledger:
    """The trials of a study, sorted by what they mean for the next one.

    Attributes:
        trials: all of them, by number; finished ones whose record cannot be believed as failed.
        damaged: the numbers of those.
        taken: choice -> lowest number of the trials that hold it: finished, running, or waiting to be run.
        done: finished search trials; the hand-made designs are not counted.
        running, waiting: trials that somebody runs; that somebody has enqueued.
        observed, recent: (choice, loss) of finished trials, estimated where pruned: those that are settled, in an order
            that only grows, and those after a trial that still runs.
        memo: whatever a reader of ``observed`` wants to find again when it has grown.
        lost: choice -> its latest failed trial: its worker died, and nobody has taken the choice since.
    """

    def __init__(self, study: optuna.Study, problem: Problem) -> None:
        self._study, self._problem = study, problem
        self._settled = _Tally()
        self._next = 0  # trials before this number are finished, and settled
        self.trials: list[FrozenTrial] = []
        self.damaged: list[int] = []
        self._sound: list[FrozenTrial] = []
        self._tail: list[FrozenTrial] = []
        self._now = self._settled
        self.observed: list[tuple[Choice, float]] = []
        self.recent: list[tuple[Choice, float]] = []
        self.memo: dict[str, Any] = {}

    def refresh(self) -> Ledger:
        """Read what is new."""
        trials = self._study.get_trials(deepcopy=False)
        while self._next < len(trials) and trials[self._next].state.is_finished():
            trial = without_damage(trials[self._next], self._problem)
            if DAMAGED in trial.user_attrs:
                self.damaged.append(trial.number)
            self._place(trial, self._settled, self.observed)
            _share(trial, self._problem)
            self._sound.append(trial)
            self._next += 1
        self._tail, self.recent = [without_damage(trial, self._problem) for trial in trials[self._next :]], []
        self.trials = [*self._sound, *self._tail]
        self._now = self._settled.copy() if self._tail else self._settled
        for trial in self._tail:
            self._place(trial, self._now, self.recent)
        return self

    def _place(self, trial: FrozenTrial, tally: _Tally, finished: list[tuple[Choice, float]]) -> None:
        choice = choice_of(trial, self._problem)
        if choice is not None and DAMAGED not in trial.user_attrs:
            tally.add(trial, choice)
            loss = loss_of(trial)
            if loss is not None:
                finished.append((choice, loss))

    @property
    def taken(self) -> dict[Choice, int]:
        return self._now.taken

    @property
    def done(self) -> int:
        return self._now.done

    @property
    def live(self) -> int:
        """Trials that count: all but the failed ones."""
        return len(self._now.taken)

    @property
    def running(self) -> list[FrozenTrial]:
        return [trial for trial in self._tail if trial.state == TrialState.RUNNING]

    @property
    def waiting(self) -> list[FrozenTrial]:
        return [trial for trial in self._tail if trial.state == TrialState.WAITING]

    @property
    def lost(self) -> dict[Choice, FrozenTrial]:
        return {c: trials[-1] for c, trials in self._now.failures.items() if c not in self._now.taken}

    @property
    def dropped(self) -> dict[Choice, int]:
        """Choice -> how many workers it took down with it, of those that are left alone for that."""
        found = {}
        for choice, lost in self._now.failures.items():
            if self._now.taken.get(choice) in {trial.number for trial in lost}:
                found[choice] = sum(INTERRUPTED not in trial.user_attrs for trial in lost)
        return found

    def searched_before(self, number: int | None) -> int:
        """Search trials, finished or running, with a lower number (all for ``None``); it must not be settled."""
        states = (TrialState.RUNNING, *FINISHED)
        counted = [t for t in self._tail if t.state in states and not is_reference(t)]
        return self._settled.done + sum(number is None or t.number < number for t in counted)

    def holders(self, choice: Choice) -> list[int]:
        """Numbers of the trials that hold the choice: the lowest, and those after the settled ones.

        A failed trial holds nothing: what is lost is free to be run again.
        """
        live = [trial for trial in self._tail if trial.state != TrialState.FAIL]
        found = [trial.number for trial in live if choice_of(trial, self._problem) == choice]
        lowest = self._now.taken.get(choice)
        return sorted({*found, *([] if lowest is None else [lowest])})


def _share(trial: FrozenTrial, problem: Problem) -> None:
    """Let all trials hold the same distributions, where a storage gives each trial its own."""
    ours = problem.distributions
    if all(ours.get(name) == held for name, held in trial.distributions.items()):
        trial.distributions = {name: ours[name] for name in trial.distributions}


_LEDGERS: weakref.WeakKeyDictionary[optuna.Study, tuple[Problem, Ledger]] = weakref.WeakKeyDictionary()


def ledger_of(study: optuna.Study, problem: Problem) -> Ledger:
    """The study's ledger, up to date; the same one as long as the study and the problem are the same."""
    known = _LEDGERS.get(study)
    if known is None or known[0] is not problem:
        known = (problem, Ledger(study, problem))
        _LEDGERS[study] = known
    return known[1].refresh()
