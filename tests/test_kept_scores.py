"""What was scored for the end of a search stays with the run: asked again, nothing is opened or scored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from search_problems import KnownQuality, tiny_problem

from nas.ranking.evidence import arrangements
from nas.ranking.kept import Kept
from nas.ranking.scoring import score_of
from nas.supernet.quality import Score

IDENTITY = {"supernet": "step 1 (abc)", "quality": "{}"}


class Opened:
    """A scorer that counts."""

    def __init__(self) -> None:
        self._quality = KnownQuality(tiny_problem())
        self.opened, self.asked = 0, 0

    def open(self) -> Opened:
        self.opened += 1
        return self

    def score(self, arrangement) -> Score:
        self.asked += 1
        samples = self._quality.loss(arrangement) + np.linspace(0, 0.1, 7)
        return score_of(samples, {"one": 0.25, "other": 0.5})

    def paired_difference(self, a, b) -> tuple[float, float]:
        raise AssertionError


def test_a_second_time_nothing_is_opened_or_scored(tmp_path: Path) -> None:
    first, second, third = arrangements(tiny_problem(), 3, seed=0)
    scorer = Opened()
    kept = Kept(tmp_path / "rescored.json", IDENTITY, scorer.open)
    told = kept.paired_difference(first, second)
    kept.keep()
    assert (scorer.opened, scorer.asked) == (1, 2)
    again = Kept(tmp_path / "rescored.json", IDENTITY, scorer.open)
    assert again.paired_difference(first, second) == told and scorer.asked == 2 and scorer.opened == 1
    assert vars(again.score(first)).keys() == vars(kept.score(first)).keys()
    again.keep()
    again.score(third)
    again.keep()
    assert (scorer.opened, scorer.asked) == (2, 3)
    assert len(json.loads((tmp_path / "rescored.json").read_text())["scores"]) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["rescored.json"]


@pytest.mark.parametrize("damage", ["another supernet", "half", "types"])
def test_of_another_supernet_or_damaged_it_is_begun_anew(damage: str, tmp_path: Path) -> None:
    (first,) = arrangements(tiny_problem(), 1, seed=0)
    path, scorer = tmp_path / "rescored.json", Opened()
    kept = Kept(path, IDENTITY, scorer.open)
    kept.score(first)
    kept.keep()
    if damage == "half":
        path.write_bytes(path.read_bytes()[:-40])
    if damage == "types":
        path.write_text(path.read_text().replace('"loss": ', '"loss": "many", "was": '))
    identity = {**IDENTITY, "supernet": "step 2 (def)"} if damage == "another supernet" else IDENTITY
    Kept(path, identity, scorer.open).score(first)
    assert scorer.asked == 2
