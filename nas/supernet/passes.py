"""The passes of a training step: forward and backward one path at a time, so that one graph is held and no more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nas.config import TrainConfig
from nas.pretrained.text import drop_captions
from nas.supernet.supernet import Supernet
from nas.training.engine import Engine
from nas.training.loader import Batch, Loader
from search_spaces.arrangement import Arrangement

VIDEOS, IMAGES = 0, 1  # random streams of a micro-batch; the noise of its items has two more


@dataclass(frozen=True)
class Shown:
    """What a micro-batch shows the network.

    Attributes:
        noisy, target: (B, T, C, H, W). level: (B,) in 0..1. states: (B, L, D) text, with the encoder's graph.
        context: the same, cut off from it: every path adds to its gradient, and the encoder is walked once.
    """

    noisy: Tensor
    level: Tensor
    target: Tensor
    states: Tensor
    context: Tensor


@dataclass(frozen=True)
class Passed:
    """Losses of a micro-batch.

    Attributes:
        video: mean over the paths. image: None where no images took part.
    """

    video: float
    image: float | None


@dataclass(frozen=True)
class Passes:
    """Adds up the gradients of a step: micro-batch by micro-batch, path by path.

    The gradient is that of one joint backward pass, up to rounding; the memory that of the path that takes most.

    Args:
        generator: (micro-batch, stream, item) -> the random numbers of it.
    """

    supernet: Supernet
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
        batch = self.videos(turn)
        shown = self._show(batch, micro, VIDEOS, self.config.clips)
        video = torch.zeros((), device=self.engine.device)
        teacher: Tensor | None = None
        for path in paths:
            predicted = self._predict(shown, path)
            loss = self._loss(predicted, shown.target, teacher)
            self.engine.back(loss * ((1 - image_share) / len(paths)))
            video += loss.detach() / len(paths)
            if teacher is None and len(paths) > 1:
                teacher = predicted.detach()
            del predicted, loss  # and with them the graph, before the next one is made
        self._back_text(shown)
        if not image_share:
            return Passed(float(video), None)
        batch = self.images(turn)
        shown = self._show(batch, micro, IMAGES, self.config.images)
        image = self._loss(self._predict(shown, self.supernet.space.baseline()), shown.target, None)
        self.engine.back(image * image_share)
        self._back_text(shown)
        return Passed(float(video), float(image.detach()))

    def _show(self, batch: Batch, micro: int, stream: int, count: int) -> Shown:
        """Noisy samples, levels, targets and text of this process's share of ``count`` items.

        Levels and dropped captions are drawn for the whole batch, noise item by item, so that who computes what
        changes nothing.
        """
        config, mine, diffusion = self.config, self.engine.world.share(count), self.supernet.diffusion
        draws = self.generator(micro, stream, 0)
        levels = diffusion.levels(count, config.timestep_mean, config.timestep_std, draws)
        level = levels[mine.start : mine.stop].to(self.engine.device)
        shown = [*[""] * mine.start, *batch.captions, *[""] * (count - mine.stop)]
        captions = drop_captions(shown, config.caption_dropout, draws)[mine.start : mine.stop]
        shape = batch.video.shape[1:]
        noise = torch.stack([torch.randn(shape, generator=self.generator(micro, 2 + stream, i)) for i in mine])
        noise, video = noise.to(self.engine.device), batch.video.to(self.engine.device)
        with self.engine.autocast():
            states = self.text(captions)
        context = states.detach().requires_grad_(states.requires_grad)
        noisy, target = diffusion.noised(video, noise, level), diffusion.target(video, noise, level)
        return Shown(noisy, level, target, states, context)

    def _predict(self, shown: Shown, path: Arrangement) -> Tensor:
        """What the network answers along a path, (B, T, C, H, W), in full precision."""
        frames, told = shown.noisy.shape[1], self.supernet.diffusion.timestep(shown.level)
        with self.engine.autocast():
            out = self.supernet.predict(shown.noisy.flatten(0, 1), told, shown.context, frames, path)
        return out.unflatten(0, (-1, frames)).float()

    def _loss(self, predicted: Tensor, target: Tensor, teacher: Tensor | None) -> Tensor:
        loss, weight = nn.functional.mse_loss(predicted, target), self.config.distillation
        if teacher is None or not weight:
            return loss
        return (1 - weight) * loss + weight * nn.functional.mse_loss(predicted, teacher)

    def _back_text(self, shown: Shown) -> None:
        """Hand on to the text encoder what all paths want of it."""
        if shown.context.grad is not None:
            shown.states.backward(shown.context.grad)
