"""The search loop: claim an arrangement, score it on the supernet, tell; any number of workers, stopped at any time."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from nas.console import say
from nas.errors import NasError
from nas.search.halving import Gradual, Race, Verdict, stored
from nas.search.lease import LEASE, OWNER, Keeper, Owner
from nas.search.ledger import (
    ESTIMATE,
    FINISHED,
    GAVE_WAY,
    INTERRUPTED,
    REFERENCE,
    SAMPLES,
    Ledger,
    ledger_of,
)
from nas.search.problem import Problem
from nas.search.records import PART, Choice
from nas.search.samplers import SpaceExhausted, make_sampler, population_of
from nas.search.storage import DRAFT, Drafting, open_storage
from nas.search.studies import (
    Details,
    Evaluation,
    Identity,
    Known,
    Scored,
    evaluations,
    evaluations_of,
    known_scores,
    open_study,
    refuse_other,
)
from search_spaces.arrangement import Arrangement

POLL = (0.02, 0.5)  # seconds between looks at others' trials once nothing is left to claim: doubled from first to last
PATIENCE = 10.0  # seconds of that before it is said
RETRY_OF = "retry_of"  # user attribute: number of the lost trial whose arrangement this one runs again
ASKED_FOR = "asked_for"  # user attribute of a retry: whether somebody had asked for the lost trial


def search(
    problem: Problem,
    score: Callable[[Arrangement], Scored],
    where: Path | str,
    *,
    identity: Identity,
    trials: int,
    sampler: str,
    seed: int,
    progress: Callable[[int, int, Evaluation], None] | None = None,
    details: Details | None = None,
    study_name: str = "search",
    check: Callable[[], None] | None = None,
    lease: float = LEASE,
    tell: Callable[[str], None] = say,
    gradual: Gradual | None = None,
    halving: bool = False,
    together: int = 1,
    left_out: Callable[[str], None] | None = None,
    population: int | None = None,
) -> list[Evaluation]:
    """Evaluate until ``trials`` search trials are done, hand-made designs beside them, and return all evaluations.

    Fewer, and a line that says so, where no further arrangement within the budget is found.
    Any number of processes may call this at once on one storage, join and leave: an arrangement is evaluated by one
    of them, and again by another only if its worker is gone (see ``nas.search.lease``). All return when all is done.
    Each budget is a study of its own; a quality that any of the same identity has asked for is never asked again.

    Args:
        problem: something in it must be feasible. score: quality of an arrangement; the only expensive call.
        where: Optuna journal file, or a database's URL; created, or continued when it is of the same ``identity``.
        identity: what the scores and costs depend on (space, table, supernet, ...); a difference is refused.
        trials: wanted in all, those already in the study included. sampler: a name in ``SAMPLERS``. seed: with one
            worker the whole study is a function of it.
        progress: called after each evaluation with (done, wanted, evaluation). check: called before each trial; what
            it raises ends this worker. left_out: called with a line for each arrangement that was given up; said with
            ``tell`` by default.
        details: for a name in ``identity``, its parts: a refusal tells which of them changed.
        study_name: before the limits in the study's name. population: of an evolutionary sampler; by default its best.
        lease: seconds without a beat after which a worker elsewhere is gone.
        gradual: the same score in instalments, where it can be had so: for halving, and to score several at once.
        halving: stop an arrangement that a cheaper one clearly beats on the first clips (see ``nas.search.halving``);
            hand-made designs are scored whole. together: arrangements that a worker proposes and scores at a time.

    Raises:
        NasError: if the study is another's, or the storage cannot be read.
    """
    if isinstance(where, Path):
        where.parent.mkdir(parents=True, exist_ok=True)
    asked = _Asked(score, gradual, halving, together, population_of(sampler, trials, population))
    with closing(open_storage(where, tell)) as storage:
        study = open_study(where, identity, problem, storage=Drafting(storage), study_name=study_name, details=details)
        with Keeper(storage, study._study_id, Owner.me(), lease) as keeper:
            worker = _Worker(study, problem, asked, sampler, seed, trials, keeper, tell)
            for found in worker.run(lambda: refuse_other(where, study.user_attrs, identity, details), check):
                for evaluation in found:
                    if progress is not None:
                        progress(worker.ledger.done, trials, evaluation)
            worker.say_dropped(left_out or tell)
            return evaluations(study, problem)


@dataclass(frozen=True)
class _Asked:
    """How scores are asked for: see ``search``."""

    score: Callable[[Arrangement], Scored]
    gradual: Gradual | None
    halving: bool
    together: int
    population: int


class _Worker:
    """One process that searches: claims what is due, scores it, tells."""

    def __init__(
        self,
        study: optuna.Study,
        problem: Problem,
        asked: _Asked,
        sampler: str,
        seed: int,
        trials: int,
        keeper: Keeper,
        tell: Callable[[str], None],
    ) -> None:
        self.study, self.problem, self.keeper = study, problem, keeper
        self.ledger: Ledger = ledger_of(study, problem)
        self._asked, self._sampler, self._seed, self._trials, self._tell = asked, sampler, seed, trials, tell
        self._race = Race(problem)
        self._storage: Drafting = study._storage
        self._known = known_scores(study, problem)
        self._exhausted = False
        self.references: dict[Choice, str] = {}
        for name, choice in problem.hand_made().items():
            if np.isfinite(problem.cost(choice).latency_ms[0]):
                self.references.setdefault(tuple(int(i) for i in choice), REFERENCE + name)

    def run(self, refuse: Callable[[], None], check: Callable[[], None] | None) -> Iterator[list[Evaluation]]:
        """Evaluate until the study has all that were wanted, and say what there is to say of its trials.

        Args:
            refuse: called now and then; what it raises ends this worker, as two may begin a study at once. check:
                likewise, before each trial.
        """
        damaged = self.ledger.damaged
        if damaged:
            numbers = ", ".join(map(str, damaged[:5])) + (", ..." * (len(damaged) > 5))
            self._tell(
                f"search     {len(damaged)} trials have damaged records ({numbers}); they are left out, and what they "
                "tried may be tried again"
            )
        looked = 0.0
        while True:
            if check is not None:
                check()
            if time.monotonic() - looked > 1.0:
                looked = time.monotonic()
                refuse()
            found = self.step()
            if found is None:
                break
            yield found
        if self.ledger.done < self._trials:
            self._tell(
                f"search     {self.ledger.done} of the {self._trials} trials that were wanted: nothing else within the "
                "budget was found; loosen a limit for more"
            )

    def say_dropped(self, say: Callable[[str], None]) -> None:
        """A line for each arrangement that was given up."""
        for choice, times in self.ledger.dropped.items():
            say(
                f"search     left out, as {times} workers ended while they scored it: "
                f"{self.references.get(choice, '').removeprefix(REFERENCE)} ({self.problem.named(choice)})"
            )

    def step(self) -> list[Evaluation] | None:
        """Evaluate one arrangement, or as many as go together; ``None`` when the study has all that were wanted."""
        pause, since, told = POLL[0], time.monotonic(), False
        while True:
            self._bury()
            held: list[int] = []
            try:
                found = self._evaluate(self._claim_some(held))
            except BaseException as error:
                # Whoever stops a worker, or damaged weights, are no fault of what was being scored.
                fault = isinstance(error, Exception) and not isinstance(error, NasError)
                for trial_id in held:
                    self._release(trial_id, fault)
                raise
            finally:
                self.keeper.hold(())
            if not held:
                if not self.ledger.running:
                    return None
                if not told and time.monotonic() - since > PATIENCE:
                    told = True
                    count = len(self.ledger.running)
                    self._tell(f"search     waiting for the last {count} of other workers, or for their leases to end")
                time.sleep(pause)  # others' last trials: if a worker dies now, its arrangement is run here
                pause = min(2 * pause, POLL[1])
                self.ledger.refresh()
                continue
            self.ledger.refresh()
            if found:
                return found
            pause = POLL[0]

    # Claiming --------------------------------------------------------------------------------------------

    def _bury(self) -> None:
        """Fail the trials of dead workers: their arrangements are lost, and due again."""
        dead = [trial for trial in self.ledger.running if self.keeper.dead(trial)]
        for trial in dead:
            self._fail(trial._trial_id)
        if dead:
            self.ledger.refresh()

    def _claim_some(self, held: list[int]) -> list[FrozenTrial]:
        """Claim what is evaluated next; ``held`` gets the ids of all that were claimed, also of those that give way."""
        standing = []
        while len(held) < self._asked.together:
            trial_id = self._claim()
            if trial_id is None:
                break
            held.append(trial_id)
            self.keeper.hold(held)
            trial = self._stands(trial_id)
            if trial is not None:
                standing.append(trial)
        return standing

    def _claim(self) -> int | None:
        """The id of a running trial that is this worker's, with all that is known before its score; or ``None``.

        Proposed in memory and written as one record, so that whoever sees it sees what it holds.
        """
        ledger = self.ledger
        user_attrs, system_attrs = self._due(ledger)
        if not (ledger.waiting or system_attrs) and (self._exhausted or ledger.searched_before(None) >= self._trials):
            return None
        with self._storage.drafting(ledger.trials, user_attrs, system_attrs) as drafted:
            try:
                # A sampler of its own for each trial: a resumed study proposes what the uninterrupted one would have.
                seed = self._seed_of(ledger)
                self.study.sampler = make_sampler(self._sampler, self.problem, seed, self._asked.population)
                trial = self.study.ask(dict(self.problem.distributions))
            except SpaceExhausted:
                self._exhausted = True
                return None
            self._describe(trial)
            # What somebody had enqueued was there before, and is no draft.
            return drafted.keep() if trial._trial_id == DRAFT else int(trial._trial_id)

    def _due(self, ledger: Ledger) -> tuple[dict[str, Any], dict[str, Any]]:
        """User and system attributes of what must be run before anything is proposed, if there is such a thing."""
        for choice, lost in ledger.lost.items():
            kept = {name: value for name, value in lost.system_attrs.items() if not name.startswith("constraints")}
            origin = self.references.get(choice, lost.user_attrs.get("origin"))
            asked_for = choice in self.references or _asked_for(lost)
            return (
                {**({"origin": origin} if origin else {}), RETRY_OF: lost.number, ASKED_FOR: asked_for},
                {**kept, "fixed_params": self.problem.params(choice)},
            )
        for choice, origin in self.references.items():
            if choice not in ledger.taken:
                return {"origin": origin}, {"fixed_params": self.problem.params(choice)}
        return {}, {}

    def _seed_of(self, ledger: Ledger) -> int:
        """Alone, a function of the seed and of how many trials there are; beside others each worker goes its way."""
        others = any(Owner.of(trial) != self.keeper.owner for trial in ledger.running)
        stream = [zlib.crc32(self.keeper.owner.token.encode())] if others else []
        return int(np.random.SeedSequence([self._seed, ledger.live, *stream]).generate_state(1)[0])

    def _describe(self, trial: optuna.Trial) -> None:
        """Put down what is known before the score: the costs, the limits, whose it is."""
        choice = self.problem.indices(trial.params)
        costs = self.problem.cost(choice)
        violations = self.problem.violations(choice)
        for limit, value in violations.items():
            trial.set_constraint(limit, float(value[0]))
        if not violations:
            trial.set_constraint("unlimited", 0.0)  # a trial without any constraint would be read as one never checked
        attributes = {
            "origin": trial.user_attrs.get("origin", self._sampler),
            "key": self.problem.arrangement(choice).key,
            "feasible": bool(self.problem.feasible(choice)[0]),  # optuna-dashboard 0.21 does not read 5.0's constraints
            "peak_mb": float(costs.peak_mb[0]),
            "weights_mb": float(costs.weights_mb[0]),
            "parameters": int(costs.parameters[0]),
            OWNER: self.keeper.owner.to_json(),
        }
        for name, attribute in attributes.items():
            trial.set_user_attr(name, attribute)

    def _stands(self, trial_id: int) -> FrozenTrial | None:
        """The claimed trial, if it may be evaluated: the later of two equal ones, and one too many, give way.

        Numbers are given out in one order that everybody sees, and a claim is visible before it is looked at here: of
        two workers with the same arrangement at least the later one sees the other.
        """
        ledger = self.ledger.refresh()
        trial = next((t for t in ledger.running if t._trial_id == trial_id), None)
        if trial is None:  # taken over already
            return None
        choice = tuple(int(i) for i in self.problem.indices(trial.params))
        asked_for = trial.user_attrs["origin"].startswith(REFERENCE) or RETRY_OF in trial.user_attrs
        enqueued = not asked_for and "fixed_params" in trial.system_attrs
        rivals = [n for n in ledger.holders(choice) if n != trial.number]
        reason = ""
        if any(n < trial.number or enqueued for n in rivals):
            reason = f"the same arrangement as trial {min(rivals)}"
        elif not (asked_for or enqueued) and ledger.searched_before(trial.number) >= self._trials:
            reason = f"{self._trials} search trials are enough"
        elif not asked_for and not trial.user_attrs["feasible"]:
            reason = "breaks the budget"
        if reason:
            self._fail(trial_id, reason)
        return None if reason else trial

    # Scoring ---------------------------------------------------------------------------------------------

    def _evaluate(self, trials: Sequence[FrozenTrial]) -> list[Evaluation]:
        """Score the arrangements and tell; without those that were taken from this worker meanwhile."""
        verdicts = self._scored_together(trials)
        found = [self._tell_score(trial, verdicts.get(trial.number)) for trial in trials]
        return [evaluation for evaluation in found if evaluation is not None]

    def _scored_together(self, trials: Sequence[FrozenTrial]) -> dict[int, Verdict]:
        """Score what is not known, rung by rung; trial number -> verdict, of those that were stopped."""
        asked, gradual = self._asked, self._asked.gradual
        going = {t.number: t for t in trials if self._arrangement(t).key not in self._known}
        verdicts: dict[int, Verdict] = {}
        if gradual is None or not going:
            return verdicts
        if asked.halving:
            self._race.learn(self.ledger.trials)
        for batches in gradual.rungs if asked.halving else (None,):
            gradual.prepare([self._arrangement(trial) for trial in going.values()], batches)
            for number, trial in list(going.items()) if asked.halving else ():
                if _asked_for(trial):
                    continue
                samples = np.array(stored(gradual.samples(self._arrangement(trial))))
                verdict = self._race.judge(self.problem.indices(trial.params), samples)
                if verdict is not None:
                    verdicts[number] = verdict
                    del going[number]
        return verdicts

    def _arrangement(self, trial: FrozenTrial) -> Arrangement:
        return self.problem.arrangement(self.problem.indices(trial.params))

    def _tell_score(self, trial: FrozenTrial, verdict: Verdict | None) -> Evaluation | None:
        """Put down a score, or why there is none; ``None`` if the trial was taken over."""
        state, values, score = TrialState.PRUNED, None, {}
        if verdict is not None:
            score = {
                ESTIMATE: verdict.estimate,
                "loss_stderr": verdict.stderr,
                "clips": verdict.clips,
                "rival": verdict.rival,
            }
        else:
            state = TrialState.COMPLETE
            values, score = self._whole_score(trial)
        score["key"] = trial.user_attrs["key"]  # whose it is, should lines of the journal be lost
        trial.set_user_attr("score", score)
        try:
            self._storage.set_trial_user_attr(trial._trial_id, "score", score)
            self.study.sampler.after_trial(self.study, trial, state, values)
            self._storage.set_trial_state_values(trial._trial_id, state, values)
        except UpdateFinishedTrialError:  # by this very call, repeated after an outage, or by who took it over
            if self._storage.get_trial(trial._trial_id).state not in FINISHED:
                self._tell(f"search     trial {trial.number} was taken over while this process stood still; going on")
                return None
        trial.values, trial.state = values, state
        return evaluations_of([trial], self.problem)[0]

    def _whole_score(self, trial: FrozenTrial) -> tuple[list[float], dict[str, Any]]:
        """Values of a trial, and what its score is made of."""
        choice = self.problem.indices(trial.params)
        arrangement = self.problem.arrangement(choice)
        if arrangement.key not in self._known:
            self._known[arrangement.key] = self._asked.score(arrangement)
        result = self._known[arrangement.key]
        if not np.isfinite(result.loss):
            raise NasError(
                f"the score of arrangement {arrangement.key} is {result.loss}; the supernet's weights are damaged, "
                "train it again"
            )
        score: dict[str, Any] = {"loss_stderr": float(result.stderr)}
        score.update({f"{name}{PART}": float(part) for name, part in result.parts.items()})
        gradual = self._asked.gradual
        if self._asked.halving and gradual is not None:  # loss by loss, as a part of them is compared
            kept = result.samples if isinstance(result, Known) else gradual.samples(arrangement)
            score[SAMPLES] = stored(np.asarray(kept))
        return [float(result.loss), *map(float, self.problem.objective_costs(choice)[0])], score

    def _release(self, trial_id: int, fault: bool) -> None:
        """This worker ends: others may run its trial at once."""
        if self._storage.get_trial(trial_id).state == TrialState.RUNNING:
            self._fail(trial_id, interrupted=not fault)

    def _fail(self, trial_id: int, gave_way: str = "", interrupted: bool = False) -> None:
        try:
            if gave_way:
                self._storage.set_trial_user_attr(trial_id, GAVE_WAY, gave_way)
            if interrupted:
                self._storage.set_trial_user_attr(trial_id, INTERRUPTED, True)
            self._storage.set_trial_state_values(trial_id, TrialState.FAIL)
        except UpdateFinishedTrialError:
            pass  # somebody else has just done the same


def _asked_for(trial: FrozenTrial) -> bool:
    """Whether somebody wants this very score: a design by hand, or enqueued; a retry is what its lost trial was."""
    return bool(trial.user_attrs.get(ASKED_FOR, "fixed_params" in trial.system_attrs))
