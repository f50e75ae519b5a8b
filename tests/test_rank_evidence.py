"""Evidence of ranking in a run: drawn within the budget, kept row by row, said with every search, and its remedy."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from search_problems import KnownQuality, tiny_problem

from latency_tables.budget import Budget
from nas.errors import NasError
from nas.ranking.evidence import arrangements, collect, conclude, sentence
from nas.ranking.scoring import Adapted, OneReplaced, score_of
from nas.supernet.quality import Score
from search_spaces.arrangement import Arrangement

IDENTITY = {"supernet": "step 10 (abc)", "quality": "q"}


def test_what_is_trained_alone_fits_the_budget_and_is_the_same_every_time() -> None:
    problem = tiny_problem(Budget(latency_ms=120.0))
    chosen = arrangements(problem, 8, seed=3)
    assert len({a.key for a in chosen}) == 8
    assert all(problem.feasible(problem.indices_of(a))[0] for a in chosen)
    assert [a.key for a in arrangements(problem, 8, seed=3)] == [a.key for a in chosen]
    assert [a.key for a in arrangements(problem, 8, seed=4)] != [a.key for a in chosen]
    with pytest.raises(NasError, match="ask for fewer with --arrangements"):
        arrangements(tiny_problem(Budget(latency_ms=40.5)), 8, seed=0)


def test_losses_are_kept_one_by_one_and_not_made_again(tmp_path: Path) -> None:
    problem = tiny_problem()
    chosen = arrangements(problem, 5, seed=0)
    made: list[str] = []

    def alone(a: Arrangement) -> float:
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(a.key)
        return float(len(made))

    with pytest.raises(KeyboardInterrupt):
        collect(tmp_path, chosen, alone, IDENTITY)
    rest = collect(tmp_path, chosen, lambda a: 9.0, IDENTITY)
    assert [rest[a.key] for a in chosen] == [1.0, 2.0, 3.0, 9.0, 9.0]
    other = collect(tmp_path, chosen, lambda a: 7.0, {**IDENTITY, "supernet": "another"})
    assert set(other.values()) == {7.0}
    assert collect(tmp_path, chosen, pytest.fail, IDENTITY) == rest  # kept beside the others


def test_a_search_says_what_is_known_of_its_ranking(tmp_path: Path) -> None:
    assert (
        sentence(tmp_path, IDENTITY) == f"not checked against arrangements trained alone; nas rank {tmp_path} does it"
    )
    truth = list(np.linspace(0, 1, 10))
    conclude(tmp_path, truth, truth, IDENTITY)
    assert "overall Kendall's tau 1.00 (1.00 to 1.00) over 10 arrangements" in sentence(tmp_path, IDENTITY)
    assert sentence(tmp_path, IDENTITY).startswith(
        "within 10% of latency: tau 1.00 over 10; regret of the top choice 0"
    )
    assert "not checked" in sentence(tmp_path, {**IDENTITY, "supernet": "trained on"})
    conclude(tmp_path, truth, list(np.random.default_rng(0).permutation(truth)), IDENTITY)
    assert "cannot be told from chance" in sentence(tmp_path, IDENTITY)
    assert "train.spatial_rate=0" in sentence(tmp_path, IDENTITY)
    (tmp_path / "rank.json").write_text("{")
    assert "not checked" in sentence(tmp_path, IDENTITY)


class FakeQuality:
    """Per-clip losses of a known quality, with noise that is the same for every arrangement."""

    def __init__(self, quality: KnownQuality) -> None:
        self._quality = quality
        self._noise = np.random.default_rng(0).standard_normal(16) * 0.1
        self.asked: list[str] = []

    def score(self, arrangement: Arrangement) -> Score:
        self.asked.append(arrangement.key)
        samples = self._quality.loss(arrangement) + self._noise
        return score_of(samples, {})


def test_one_replaced_is_the_truth_where_positions_add_up() -> None:
    problem = tiny_problem()
    quality = FakeQuality(KnownQuality(problem))
    base, *others = arrangements(problem, 6, seed=1)
    scorer = OneReplaced(quality, base)  # type: ignore[arg-type]
    for other in others:
        assert scorer.score(other).loss == pytest.approx(quality.score(other).loss)  # KnownQuality adds over positions
        mean, stderr = scorer.paired_difference(other, base)
        assert mean == pytest.approx(quality.score(other).loss - quality.score(base).loss) and stderr < 1e-9
    asked = len(quality.asked)
    scorer.score(others[0])
    assert len(quality.asked) == asked  # answered from memory


def test_one_replaced_never_runs_a_path_of_two_changes() -> None:
    problem = tiny_problem()
    quality = FakeQuality(KnownQuality(problem))
    base, other = arrangements(problem, 2, seed=2)
    OneReplaced(quality, base).score(other)  # type: ignore[arg-type]
    allowed = {base.key} | {base.replace(position, variants).key for position, variants in other.layers}
    assert set(quality.asked) <= allowed


def test_adaptation_is_asked_for_once_an_arrangement() -> None:
    problem = tiny_problem()
    a, b = arrangements(problem, 2, seed=5)
    asked: list[str] = []

    def adapt(arrangement: Arrangement) -> Score:
        asked.append(arrangement.key)
        return score_of(np.arange(4.0) + len(asked), {})

    scorer = Adapted(adapt)
    assert scorer.paired_difference(b, a)[0] == pytest.approx(-1.0)  # b was asked for first, and each costs one more
    scorer.paired_difference(a, b)
    assert asked == [b.key, a.key]


def test_a_ranking_that_was_stopped_goes_on_with_the_very_losses_it_had(tmp_path: Path) -> None:
    losses = {"one": 1 / 3, "two": 2 / 7}
    chosen = [SimpleNamespace(key=key) for key in losses]
    first = collect(tmp_path, chosen, lambda arrangement: losses[arrangement.key], {})
    assert collect(tmp_path, chosen, lambda arrangement: 0.0, {}) == first == losses
