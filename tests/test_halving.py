"""Scores in instalments: what a cheaper arrangement clearly beats is stopped early, and the answer stays the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np
import optuna
import pytest
from numpy.typing import NDArray
from optuna.trial import TrialState
from search_problems import KnownQuality, Scored, tiny_problem

from latency_tables.budget import Budget
from nas.search.front import pareto_front, write_front
from nas.search.halving import behind
from nas.search.problem import Problem
from nas.search.studies import Evaluation, known_scores, open_study
from nas.search.study import search
from search_spaces.arrangement import Arrangement

LIMITS = Budget(latency_ms=130.0, memory_mb=27.0)
CLIPS, BATCH = 32, 8


@dataclass(frozen=True)
class Sampled(Scored):
    samples: tuple[float, ...] = ()


class InstalmentQuality:
    """A known quality seen through clips: some are hard for everybody, and each arrangement has its own luck."""

    rungs = (1, 2, 4)

    def __init__(self, problem: Problem, luck: float = 0.01) -> None:
        self.known, self.luck = KnownQuality(problem), luck
        self.hard = np.random.default_rng(5).normal(0, 0.3, CLIPS)
        self.batches: dict[str, int] = {}
        self.passes: list[int] = []

    def whole(self, arrangement: Arrangement) -> NDArray[np.float64]:
        rng = np.random.default_rng(crc32(arrangement.key.encode()))
        return self.known.loss(arrangement) + self.hard + rng.normal(0, self.luck, CLIPS)

    def prepare(self, arrangements: Sequence[Arrangement], batches: int | None = None) -> None:
        self.passes.append(len(arrangements))
        for arrangement in arrangements:
            self.batches[arrangement.key] = batches or CLIPS // BATCH

    def samples(self, arrangement: Arrangement) -> NDArray[np.float64]:
        return self.whole(arrangement)[: BATCH * self.batches[arrangement.key]]

    def score(self, arrangement: Arrangement) -> Sampled:
        self.prepare([arrangement])
        samples = self.whole(arrangement)
        return Sampled(float(samples.mean()), samples=tuple(samples))


def key_of(evaluation: Evaluation) -> str:
    return evaluation.arrangement.key


def run(
    journal: Path, *, trials: int = 60, halving: bool = True, together: int = 1, sampler: str = "surrogate"
) -> tuple[list[Evaluation], InstalmentQuality]:
    problem = tiny_problem(LIMITS)
    quality = InstalmentQuality(problem)
    found = search(
        problem,
        quality.score,
        journal,
        identity={},
        trials=trials,
        sampler=sampler,
        seed=0,
        gradual=quality,
        halving=halving,
        together=together,
    )
    return found, quality


def test_it_saves_clips_and_no_member_of_the_front_is_stopped(tmp_path: Path) -> None:
    found, quality = run(tmp_path / "study.journal")
    stopped = [e for e in found if e.pruned]
    assert len(stopped) >= 10 and all(e.clips in (8, 16) for e in stopped)
    assert sum(quality.batches.values()) <= 0.9 * 4 * len(found)
    true = {e.arrangement.key: float(quality.whole(e.arrangement).mean()) for e in found}
    for one in stopped:
        assert one.loss == pytest.approx(true[one.arrangement.key], abs=0.02), "the estimate is near what it would be"
        assert any(
            e.latency_ms <= one.latency_ms and true[e.arrangement.key] < true[one.arrangement.key] for e in found
        )
    assert not any(e.pruned for e in pareto_front(found))
    whole, _ = run(tmp_path / "whole.journal", halving=False)
    assert min(e.loss for e in pareto_front(found)) == pytest.approx(min(e.loss for e in pareto_front(whole)), abs=1e-6)


@pytest.mark.parametrize("sampler", ["value", "nsga2", "tpe"])
def test_every_sampler_lives_with_pruned_trials(sampler: str, tmp_path: Path) -> None:
    found, _ = run(tmp_path / "study.journal", trials=40, sampler=sampler)
    assert len([e for e in found if not e.is_reference]) == 40 and any(e.pruned for e in found)
    assert len({e.choice for e in found}) == len(found)


def test_optuna_sees_pruned_trials_and_a_resumed_study_stops_the_same(tmp_path: Path) -> None:
    whole, _ = run(tmp_path / "whole.journal", trials=30)
    run(tmp_path / "halves.journal", trials=11)
    resumed, _ = run(tmp_path / "halves.journal", trials=30)
    assert [(e.choice, e.clips, e.loss) for e in resumed] == [(e.choice, e.clips, e.loss) for e in whole]
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(tmp_path / "whole.journal"))
    )
    study = optuna.load_study(study_name=None, storage=storage)
    states = {trial.number: trial.state for trial in study.trials}
    assert {e.trial for e in whole if e.pruned} == {n for n, state in states.items() if state == TrialState.PRUNED}


@pytest.mark.parametrize("sampler", ["surrogate", "value"])
def test_a_study_that_was_interrupted_in_a_trial_stops_the_same(sampler: str, tmp_path: Path) -> None:
    """The interrupted trial is run again as what it was: a proposal, which may be stopped early."""
    whole, quality = run(tmp_path / "whole.journal", trials=30, sampler=sampler)
    stopped = next(i for i, e in enumerate(whole) if e.pruned)
    problem = tiny_problem(LIMITS)
    halves = InstalmentQuality(problem)
    prepare, key = halves.prepare, key_of(whole[stopped])

    def interrupted(arrangements: Sequence[Arrangement], batches: int | None = None) -> None:
        if key in [arrangement.key for arrangement in arrangements]:
            raise KeyboardInterrupt
        prepare(arrangements, batches)

    halves.prepare = interrupted  # type: ignore[method-assign]
    settings = {"identity": {}, "trials": 30, "sampler": sampler, "seed": 0, "gradual": halves, "halving": True}
    with pytest.raises(KeyboardInterrupt):
        search(problem, halves.score, tmp_path / "halves.journal", **settings)
    resumed, _ = run(tmp_path / "halves.journal", trials=30, sampler=sampler)
    assert [(e.choice, e.clips, e.loss, e.origin) for e in resumed] == [
        (e.choice, e.clips, e.loss, e.origin) for e in whole
    ]


def test_a_hand_made_design_is_scored_whole(tmp_path: Path) -> None:
    found, quality = run(tmp_path / "study.journal")
    references = [e for e in found if e.is_reference]
    assert references and all(quality.batches[e.arrangement.key] == 4 and not e.pruned for e in references)


def test_an_estimate_is_not_taken_for_a_score(tmp_path: Path) -> None:
    """Under another budget what beat it may not be allowed, so it is scored anew."""
    found, _ = run(tmp_path / "study.journal")
    study = open_study(tmp_path / "study.journal", {}, tiny_problem(LIMITS))
    whole = {e.arrangement.key for e in found if not e.pruned}
    assert set(known_scores(study, tiny_problem(LIMITS))) == whole < set(map(key_of, found))


def test_several_at_once_are_feasible_new_and_few_passes(tmp_path: Path) -> None:
    found, quality = run(tmp_path / "study.journal", halving=False, together=4, trials=40)
    searched = [e for e in found if not e.is_reference]
    assert len(searched) == 40 and all(e.feasible for e in searched)
    assert len({e.choice for e in found}) == len(found)
    assert max(quality.passes) == 4
    assert quality.passes.count(4) >= len(found) // 4 - 1


def test_the_error_of_a_part_vanishes_as_it_becomes_the_whole() -> None:
    rng = np.random.default_rng(0)
    rival = rng.normal(0, 1, 4000)
    mine = rival + 0.1 + rng.normal(0, 0.5, 4000)
    true = float((mine - rival).mean())
    errors = []
    for count in (50, 500, 3900):
        mean, stderr = behind(mine[:count], rival)
        assert abs(mean - true) < 3.5 * stderr
        errors.append(stderr)
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.002


def test_front_csv_says_what_was_stopped(tmp_path: Path) -> None:
    found, _ = run(tmp_path / "study.journal")
    write_front(tmp_path / "front.csv", found, found[0].arrangement.key)
    rows = (tmp_path / "front.csv").read_text().splitlines()
    assert rows[0].endswith(",chosen,clips_seen")
    seen = [row.rsplit(",", 1)[1] for row in rows[1:]]
    assert seen == [str(e.clips or "") for e in found] and {"8", ""} <= set(seen)
