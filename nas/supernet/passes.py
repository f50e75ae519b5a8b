"""The passes of a training step: forward and backward one path at a time, so that one graph is held and no more."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nas.config import TrainConfig
from nas.pretrained.text import drop_captions
from nas.supernet.supernet import Supernet
from nas.tasks.contract import Losses, Question, Task
from nas.training.engine import Engine
from nas.training.loader import Batch, Loader
from search_spaces.arrangement import Arrangement

VIDEOS, IMAGES = 0, 1  # random streams of a micro-batch; the noise of its items has two more


@dataclass(frozen=True)
class Passed:
    """Losses of a micro-batch.

    Attributes:
        video: mean over the paths. image: None where no images took part. parts: of the videos' loss, the same mean.
    """

    video: float
    image: float | None
    parts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class PassDraws:
    """Random numbers of a micro-batch: all drawn for the whole batch, noise item by item, so that who computes what
    changes nothing.

    Args:
        mine: this process's share of ``count`` items. shared: of the batch. item: of one item's noise.
    """

    count: int
    mine: range
    device: torch.device
    shared: torch.Generator
    item: Callable[[int], torch.Generator]

    def each(self, count: int, make: Callable[[int, torch.Generator], Tensor]) -> Tensor:
        return make(self.count, self.shared)[self.mine.start : self.mine.stop].to(self.device)

    def normal(self, like: Tensor) -> Tensor:
        shape = like.shape[1:]
        return torch.stack([torch.randn(shape, generator=self.item(i)) for i in self.mine]).to(self.device)

    def dropped(self, captions: Sequence[str], share: float) -> list[str]:
        whole = [*[""] * self.mine.start, *captions, *[""] * (self.count - self.mine.stop)]
        return drop_captions(whole, share, self.shared)[self.mine.start : self.mine.stop]


class _Read:
    """Text that all paths read, cut off from its encoder: what they want of it adds up, and it is walked back once."""

    def __init__(self, text: nn.Module, engine: Engine) -> None:
        self.text, self.engine = text, engine
        self._held: list[tuple[Tensor, Tensor]] = []

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """(B, L, D) states of the captions."""
        with self.engine.autocast():
            states = self.text(captions)
        context = states.detach().requires_grad_(states.requires_grad)
        self._held.append((states, context))
        return context

    def back(self) -> None:
        """Hand on to the text encoder what all paths want of it."""
        for states, context in self._held:
            if context.grad is not None:
                states.backward(context.grad)


@dataclass(frozen=True)
class Passes:
    """Adds up the gradients of a step: micro-batch by micro-batch, path by path.

    The gradient is that of one joint backward pass, up to rounding; the memory that of the path that takes most.

    Args:
        generator: (micro-batch, stream, item) -> the random numbers of it.
    """

    supernet: Supernet
    task: Task
    text: nn.Module
    videos: Loader
    images: Loader
    config: TrainConfig
    engine: Engine
    generator: Callable[[int, int, int], torch.Generator]

    def __call__(self, paths: Sequence[Arrangement], turn: int, micro: int, image_share: float) -> Passed:
        """Forward and backward of a micro-batch's videos along each path, then of its images.

        The first of several paths teaches the others in place: they follow its answer, detached.

        Args:
            turn: which batch. micro: which micro-batch of the step.
            image_share: weight of the images, which no temporal layer sees (T = 1); at 0 they are not even loaded.
        """
        question, read = self._ask(self.videos(turn), micro, VIDEOS, self.config.clips)
        video = torch.zeros((), device=self.engine.device)
        parts: dict[str, Tensor] = {}
        teacher: Tensor | None = None
        for path in paths:
            found = self._loss(question, path, teacher)
            self.engine.back(found.total * ((1 - image_share) / len(paths)))
            video += found.total.detach() / len(paths)
            for name, part in found.parts.items():
                parts[name] = parts.get(name, 0.0) + part.detach() / len(paths)
            if teacher is None and len(paths) > 1:
                teacher = found.answer
            del found  # and with it the graph, before the next one is made
        read.back()
        told = {name: float(part) for name, part in parts.items()}
        if not image_share:
            return Passed(float(video), None, told)
        question, read = self._ask(self.images(turn), micro, IMAGES, self.config.images)
        image = self._loss(question, self.supernet.space.baseline(), None).total
        self.engine.back(image * image_share)
        read.back()
        return Passed(float(video), float(image.detach()), told)

    def _ask(self, batch: Batch, micro: int, stream: int, count: int) -> tuple[Question, _Read]:
        """What this process's share of ``count`` items asks of every path, and the text that was read for it."""
        world, read = self.engine.world, _Read(self.text, self.engine)
        draws = PassDraws(
            count,
            world.share(count),
            self.engine.device,
            self.generator(micro, stream, 0),
            lambda i: self.generator(micro, 2 + stream, i),
        )
        return self.task.ask(batch, draws, read), read

    def _loss(self, question: Question, path: Arrangement, teacher: Tensor | None) -> Losses:
        def predict(inputs: Mapping[str, Any]) -> Tensor:
            with self.engine.autocast():
                return self.supernet.predict(inputs, path)

        return self.task.loss(predict, question, teacher)
