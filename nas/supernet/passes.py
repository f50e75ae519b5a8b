"""The passes of a training step: forward and backward one path at a time, so that one graph is held and no more."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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
        generator: (micro-batch, stream, item) -> the random numbers of it. at_once: how many clips are run together;
            the rest of a micro-batch follows, and its gradients add up.
    """

    supernet: Supernet
    task: Task
    text: nn.Module
    videos: Loader
    images: Loader
    config: TrainConfig
    engine: Engine
    generator: Callable[[int, int, int], torch.Generator]
    at_once: Callable[[], int]

    def __call__(self, paths: Sequence[Arrangement], turn: int, micro: int, image_share: float) -> Passed:
        """Forward and backward of a micro-batch's videos along each path, then of its images.

        The first of several paths teaches the others in place: they follow its answer, detached.

        Args:
            turn: which batch. micro: which micro-batch of the step.
            image_share: weight of the images, which no temporal layer sees (T = 1); at 0 they are not even loaded.
        """
        batch = self.videos(turn)
        question, read = self._ask(batch, micro, VIDEOS, self.config.clips)
        video = torch.zeros((), device=self.engine.device)
        parts: dict[str, Tensor] = {}
        for some, part_of in pieces(question, self.at_once()):
            teacher: Tensor | None = None
            for path in paths:
                found = self._loss(some, path, teacher)
                self.engine.back(found.total * ((1 - image_share) * part_of / len(paths)))
                video += found.total.detach() * part_of / len(paths)
                for name, part in found.parts.items():
                    parts[name] = parts.get(name, 0.0) + part.detach() * part_of / len(paths)
                if teacher is None and len(paths) > 1:
                    teacher = found.answer
                del found  # and with it the graph, before the next one is made
        read.back()
        told = {name: float(part) for name, part in parts.items()}
        if not image_share:
            return Passed(float(video), None, told)
        stills = self.at_once() * batch.video.shape[1]  # a picture takes what a frame does
        question, read = self._ask(self.images(turn), micro, IMAGES, self.config.images)
        image = torch.zeros((), device=self.engine.device)
        for some, part_of in pieces(question, stills):
            loss = self._loss(some, self.supernet.space.baseline(), None).total
            self.engine.back(loss * (image_share * part_of))
            image += loss.detach() * part_of
            del loss
        read.back()
        return Passed(float(video), float(image), told)

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


def pieces(question: Question, clips: int) -> Iterator[tuple[Question, float]]:
    """A question, so many clips at a time, each piece with its share of the whole; whole where all go at once."""
    count = min(len(tensor) for tensor in question.inputs.values())
    if clips >= count:
        yield question, 1.0
        return
    for start in range(0, count, clips):
        stop = min(start + clips, count)
        inputs, truth = ({n: t[start:stop] for n, t in part.items()} for part in (question.inputs, question.truth))
        yield Question(inputs, truth), (stop - start) / count
