"""How good an arrangement is: its validation error on the supernet with common random numbers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nas.config import QualityConfig
from nas.data import Dataset
from nas.errors import NasError
from nas.pretrained.text import TextEncoder
from nas.supernet.supernet import Supernet
from nas.tasks.contract import Question, weights_of
from nas.training.precision import autocast
from search_spaces.arrangement import Arrangement

Floats = NDArray[np.float64]
Parts = dict[str, Floats]


@dataclass(frozen=True)
class Score:
    """A score and what it is made of; lower is better.

    Attributes:
        loss: the parts, weighed by ``quality.weights``, mean over clips. stderr: its standard error over clips; the
            repeats of a clip are averaged first, as they are not independent.
        parts: the named parts of the error as the task has them, mean over clips.
        samples: loss of each clip; two arrangements' samples are paired.
    """

    loss: float
    stderr: float
    parts: Mapping[str, float]
    samples: Floats


class Paired(ABC):
    """Scores whose samples are paired over the same clips, noise and levels; each asked for once."""

    def __init__(self) -> None:
        self._known: dict[str, Score] = {}

    def score(self, arrangement: Arrangement) -> Score:
        """The score of one arrangement; asked twice, answered from memory."""
        if arrangement.key not in self._known:
            self._known[arrangement.key] = self._score(arrangement)
        return self._known[arrangement.key]

    @abstractmethod
    def _score(self, arrangement: Arrangement) -> Score: ...

    def paired_difference(self, a: Arrangement, b: Arrangement) -> tuple[float, float]:
        """Mean of loss(a) - loss(b) over the same clips, noise and levels, and its standard error."""
        difference = self.score(a).samples - self.score(b).samples
        return float(difference.mean()), float(difference.std(ddof=1) / math.sqrt(len(difference)))


def score_of(samples: Floats, parts: Mapping[str, float]) -> Score:
    """A score from the losses of its clips, and the means of its parts."""
    stderr = float(samples.std(ddof=1) / math.sqrt(len(samples)))
    return Score(float(samples.mean()), stderr, parts, samples)


class Quality(Paired):
    """Scores arrangements on fixed questions of their task: what differs is the arrangement alone.

    Args:
        supernet, text: averaged weights; put in evaluation mode.
        data: the validation split. skip: clips of it to pass over. precision: of the forward pass, as in training;
            errors are taken in full precision, and scores of two precisions are not compared.

    Attributes:
        available: clips of the split.

    Raises:
        NasError: if there are fewer than two clips (one has no standard error), or the task has no part of a name in
            ``config.weights``.
    """

    def __init__(
        self,
        supernet: Supernet,
        text: TextEncoder,
        data: Dataset,
        config: QualityConfig,
        device: str = "cpu",
        *,
        skip: int = 0,
        precision: str = "fp32",
    ) -> None:
        super().__init__()
        self.config, self.task = config, supernet.task
        self.weights = weights_of(self.task, config.weights)
        self.device, self.precision = torch.device(device), precision
        self.supernet = supernet.to(self.device).eval()
        self.text = text = text.to(self.device).eval()
        self._parts: dict[str, list[Parts]] = {}  # by batch
        self._room = 0  # arrangements that fit into memory together, where that was found out
        self.available = len(data)
        items = [data[i] for i in range(skip, min(skip + config.clips, len(data)))]
        if len(items) < 2:
            raise NasError(
                f"quality needs 2 validation clips or more, but has {len(items)}; raise data.validation_clips"
            )
        with torch.no_grad(), self._autocast():
            self._batches = [question.to(self.device) for question in self.task.questions(items, config, text)]

    def _autocast(self) -> AbstractContextManager[None]:
        return autocast(self.device, self.precision)

    @property
    def rungs(self) -> tuple[int, ...]:
        """Numbers of batches at which losses so far are worth a comparison: a quarter, a half, all."""
        count = len(self._batches)
        return tuple(sorted({math.ceil(count / 4), math.ceil(count / 2), count}))

    def _score(self, arrangement: Arrangement) -> Score:
        self.prepare([arrangement])
        repeats = self.config.repeats  # drawn repeat by repeat, all clips each time
        parts = {n: v.reshape(repeats, -1).mean(0) for n, v in self._joined(self._parts[arrangement.key]).items()}
        return score_of(self._weigh(parts), {name: float(values.mean()) for name, values in parts.items()})

    def samples(self, arrangement: Arrangement) -> Floats:
        """Losses of an arrangement on the clips (repeat by repeat) that it was scored on so far."""
        parts = self._parts.get(arrangement.key, [])
        return self._weigh(self._joined(parts)) if parts else np.empty(0)

    def _joined(self, parts: Sequence[Parts]) -> Parts:
        return {name: np.concatenate([part[name] for part in parts]) for name in self.weights}

    def _weigh(self, parts: Parts) -> Floats:
        weighed = [weight * parts[name] for name, weight in self.weights.items()]
        return reduce(np.add, weighed)

    def prepare(self, arrangements: Sequence[Arrangement], batches: int | None = None) -> None:
        """Score arrangements on the first batches (all for ``None``), together where a GPU's memory allows.

        Together they differ from one by one in the last digits, as kernels differ by batch size.
        """
        wanted = {arrangement.key: arrangement for arrangement in arrangements}
        for turn, batch in enumerate(self._batches[:batches]):
            due = [a for a in wanted.values() if len(self._parts.setdefault(a.key, [])) == turn]
            while due:
                group = due[: self._room] if self._room else due
                try:
                    errors = self._errors(group, batch)
                except torch.cuda.OutOfMemoryError:
                    if len(group) == 1:
                        raise
                    self._room = len(group) // 2
                    continue
                for arrangement, found in zip(group, errors, strict=True):
                    self._parts[arrangement.key].append(found)
                due = due[len(group) :]

    @torch.no_grad()
    def _errors(self, arrangements: Sequence[Arrangement], question: Question) -> list[Parts]:
        """The parts (B,) of each arrangement's error on one batch."""
        times = len(arrangements)
        asked: Arrangement | Sequence[Arrangement] = arrangements if times > 1 else arrangements[0]

        def predict(inputs: Mapping[str, Any]) -> Tensor:
            with self._autocast():
                return self.supernet.predict(inputs, asked).float()

        answers = self.task.answer(predict, question.repeated(times))
        found = []
        for answer in answers.chunk(times):
            errors = self.task.errors(answer, question)
            found.append({name: error.cpu().numpy() for name, error in errors.items()})
        return found
