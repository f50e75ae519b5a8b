"""The contract of a task: what is learnt, and how an answer is judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from nas.errors import NasError
from search_spaces.errors import unknown

if TYPE_CHECKING:
    from search_spaces.space import Space

#: A network along one path: what its family reads, by name, to what it answers. Clips are folded: ``x (B*T, C, H, W)``.
Predict = Callable[[Mapping[str, Any]], Tensor]

#: Captions to what the network reads of them, (B, L, D).
Encode = Callable[[Sequence[str]], Tensor]


@dataclass(frozen=True)
class Question:
    """What a network is asked, and what its answer is judged by; every tensor has the clips first.

    Attributes:
        inputs: what the network is shown, or what that is made of. truth: what it is judged by.
    """

    inputs: Mapping[str, Tensor]
    truth: Mapping[str, Tensor]

    def to(self, device: torch.device) -> Question:
        """The same on a device."""
        inputs, truth = ({n: t.to(device) for n, t in part.items()} for part in (self.inputs, self.truth))
        return Question(inputs, truth)

    def repeated(self, times: int) -> Question:
        """The same asked several times over, one after the other, for as many paths."""
        inputs, truth = ({n: torch.cat([t] * times) for n, t in part.items()} for part in (self.inputs, self.truth))
        return Question(inputs, truth)


@dataclass(frozen=True)
class Losses:
    """What an answer costs.

    Attributes:
        total: with its graph. answer: what a path that learns from this one follows, cut off.
        parts: of the total, for the log, cut off.
    """

    total: Tensor
    answer: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Frames:
    """Clips to be looked at: videos (N, T, C, H, W) in the data's own units, and a line for each."""

    videos: Tensor
    captions: list[str]


class Footage(Protocol):
    """What a task reads of a data set: its captions, and clips as mappings that hold ``video (T, C, H, W)``."""

    @property
    def captions(self) -> Sequence[str]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Mapping[str, Any]: ...


class Clips(Protocol):
    """A batch: video (B, T, C, H, W) in [-1, 1], or latents, and one caption a clip."""

    @property
    def video(self) -> Tensor: ...

    @property
    def captions(self) -> Sequence[str]: ...


class Items(Protocol):
    """A dataset, as far as samples want it: clips (T, C, H, W) with their captions, by number."""

    @property
    def captions(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class Random(Protocol):
    """Random numbers of a micro-batch, the same however many processes share it."""

    def each(self, count: int, make: Callable[[int, torch.Generator], Tensor]) -> Tensor:
        """This process's ``count`` of what ``make`` draws for the whole batch, on its device."""

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers of a tensor's shape."""

    def dropped(self, captions: Sequence[str], share: float) -> list[str]:
        """The captions with about ``share`` of them emptied."""


class Task(Protocol):
    """What a family's networks learn.

    One question serves training and scoring: all paths of a step answer the same one, so it is drawn apart from the
    loss.

    Attributes:
        name: of the task. weights: parts of an answer's error, and how much each counts by default.
        state: numbers that training keeps between steps, as parameters without a gradient; None where it keeps none.
        facts: what a checkpoint must share with the training that continues it; empty where all is as usual.
        pixels: whether it is trained on pixels, whatever the network reads.
        shared: settings of a training that are also the task's.
    """

    name: str
    weights: Mapping[str, float]
    state: nn.Module | None
    facts: Mapping[str, Any]
    pixels: bool
    shared: Sequence[str]

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Task:
        """The task with some settings.

        Raises:
            NasError: on one that it does not know, or a wrong value.
        """

    def ask(self, batch: Clips, draws: Random, encode: Encode) -> Question:
        """A training question: noise and all else that is drawn."""

    def loss(self, predict: Predict, question: Question, teacher: Tensor | None = None) -> Losses:
        """What a path's answer costs.

        Args:
            teacher: the ``answer`` of a path that it also follows.
        """

    def settle(self, mean: Callable[[Sequence[float]], list[float]]) -> None:
        """A step is over: bring ``state`` up to date, averaged over the processes by ``mean``."""

    def questions(self, clips: Sequence[Mapping[str, Any]], config: Any, encode: Encode) -> list[Question]:
        """Fixed questions on fixed clips, repeat by repeat: common random numbers, so that what differs is the path.

        Args:
            clips: of the validation split: ``video (T, C, H, W)`` and ``caption``. config: ``QualityConfig``.
        """

    def answer(self, predict: Predict, question: Question) -> Tensor:
        """What is judged, clips first."""

    def errors(self, answer: Tensor, question: Question) -> dict[str, Tensor]:
        """Named parts of an answer's error, (B,) each, lower is better; the names are those of ``weights``."""

    def samples(self, predict: Predict, encode: Encode, data: Footage, space: Space, device: torch.device) -> Frames:
        """A few clips for whoever watches, from the same random numbers each time."""


def weights_of(task: Task, given: Mapping[str, float]) -> dict[str, float]:
    """The weights of an error's parts: those given, or the task's own.

    Raises:
        NasError: on a part that the task does not have.
    """
    for name in given:
        if name not in task.weights:
            raise NasError(f"quality.weights: {unknown(f'part of {task.name}', name, task.weights)}")
    if given and not any(given.values()):
        raise NasError("quality.weights: all are 0, so nothing would be scored; give one part a weight")
    return {name: float(given.get(name, 0.0)) for name in task.weights} if given else dict(task.weights)
