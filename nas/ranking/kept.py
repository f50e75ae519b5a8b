"""Scores that stay with a run: what was scored once, for these weights and clips, is read back and not scored again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from nas.files import write_whole
from nas.ranking.scoring import Scorer
from nas.supernet.quality import Paired, Score
from search_spaces.arrangement import Arrangement

FILE, RIVALS = "rescored.json", "rivals.json"


class _Row(BaseModel):
    """A score on disk."""

    model_config = ConfigDict(extra="forbid")

    loss: float
    stderr: float
    parts: dict[str, float]
    samples: list[float]


class _Kept(BaseModel):
    model_config = ConfigDict(extra="forbid")

    identity: dict[str, str]
    scores: dict[str, _Row]


class Kept(Paired):
    """A scorer with a memory in a file; the scorer itself is opened when something is asked that is not in it.

    Args:
        path: of the memory. Of another identity, damaged, or not there: begun anew, as it only saves time.
        identity: what the scores depend on.
        open_scorer: makes the scorer.
    """

    def __init__(self, path: Path, identity: dict[str, str], open_scorer: Callable[[], Scorer]) -> None:
        super().__init__()
        self._path, self._identity, self._open = path, identity, open_scorer
        self._scorer: Scorer | None = None
        for key, row in _read(path, identity).items():
            facts = row.model_dump(exclude={"samples"})
            self._known[key] = Score(samples=np.array(row.samples, dtype=np.float64), **facts)

    def _score(self, arrangement: Arrangement) -> Score:
        if self._scorer is None:
            self._scorer = self._open()
        return self._scorer.score(arrangement)

    def keep(self) -> None:
        """Write down what was scored; whole or not at all."""
        if self._scorer is None:
            return  # nothing new
        rows = {key: {**vars(score), "samples": score.samples.tolist()} for key, score in self._known.items()}
        facts: dict[str, Any] = {"identity": self._identity, "scores": rows}
        write_whole(self._path, json.dumps(facts))


def _read(path: Path, identity: dict[str, str]) -> dict[str, _Row]:
    try:
        kept = _Kept.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return {}
    sound = {key: row for key, row in kept.scores.items() if len(row.samples) > 1}
    return sound if kept.identity == identity else {}
