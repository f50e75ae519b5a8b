"""Task denoise: the noise that is taken out of a clip, by flow matching or on Stable Diffusion's schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from nas.settings import Settings, parse_as
from nas.tasks import USUAL
from nas.tasks.contract import Clips, Encode, Footage, Frames, Losses, Predict, Question, Random
from nas.tasks.noise import TIMESTEPS, Diffusion, mix, velocity

if TYPE_CHECKING:
    from search_spaces.space import Space

SAMPLED, STEPS = 3, 20  # captions that are sampled for whoever watches, and evaluations a sample


class DenoiseConfig(Settings):
    """What a denoiser learns.

    Attributes:
        prediction: the ``velocity`` of flow matching, ``epsilon`` or ``v``; see ``nas.tasks.noise``.
        timestep_mean, timestep_std: of the logit-normal noise level.
        caption_dropout: share of captions replaced by the empty one. distillation: weight of a teacher's answer.
    """

    prediction: Literal["velocity", "epsilon", "v"] = USUAL
    timestep_mean: float = 0.0
    timestep_std: float = Field(1.0, gt=0.0)
    caption_dropout: float = Field(0.1, ge=0.0, le=1.0)
    distillation: float = Field(0.5, ge=0.0, le=1.0)


class Denoise:
    """A clip under noise, its level and a text are shown; how the noise leads away from the clip is to be answered.

    An answer is judged as a velocity of flow matching, whatever the network was trained to predict. Its error has two
    parts: ``velocity``, the mean squared error, and ``motion``, half the mean squared error of its frame-to-frame
    differences, so that errors which are independent between frames make both equal. A score without the second
    prefers networks that freeze the picture: their error sits between frames, where the first counts it once.
    """

    name = "denoise"
    weights: Mapping[str, float] = {"velocity": 0.5, "motion": 0.5}
    state: nn.Module | None = None
    facts: Mapping[str, Any] = {}  # a training's own settings say it all
    pixels = False
    shared: Sequence[str] = tuple(DenoiseConfig.model_fields)

    def __init__(self, config: DenoiseConfig | None = None) -> None:
        self.config = config or DenoiseConfig()
        self.diffusion = Diffusion(self.config.prediction)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Denoise:
        return cls(parse_as(DenoiseConfig, dict(settings), "train.task"))

    def ask(self, batch: Clips, draws: Random, encode: Encode) -> Question:
        """Noisy clips at logit-normal or evenly spread levels; see ``Diffusion.levels``."""
        config, diffusion, video = self.config, self.diffusion, batch.video

        def levels(count: int, generator: torch.Generator) -> Tensor:
            return diffusion.levels(count, config.timestep_mean, config.timestep_std, generator)

        level = draws.each(len(batch.captions), levels)
        captions = draws.dropped(batch.captions, config.caption_dropout)
        noise = draws.normal(video)
        context, video = encode(captions), video.to(noise.device)
        inputs = {"noisy": diffusion.noised(video, noise, level), "level": level, "context": context}
        return Question(inputs, {"target": diffusion.target(video, noise, level)})

    def loss(self, predict: Predict, question: Question, teacher: Tensor | None = None) -> Losses:
        noisy, told = question.inputs["noisy"], self.diffusion.timestep(question.inputs["level"])
        answer = _predicted(predict, noisy, told, question.inputs["context"]).float()
        loss, weight = nn.functional.mse_loss(answer, question.truth["target"]), self.config.distillation
        if teacher is not None and weight:
            loss = (1 - weight) * loss + weight * nn.functional.mse_loss(answer, teacher)
        return Losses(loss, answer.detach())

    def settle(self, mean: Callable[[Sequence[float]], list[float]]) -> None:
        """Nothing is kept between steps."""

    def questions(self, clips: Sequence[Mapping[str, Any]], config: Any, encode: Encode) -> list[Question]:
        """Noise levels are spread evenly over 0..1, with a fixed jitter and dealt to clips and repeats at random, so
        that few clips cover all; noise is drawn sample by sample, so that the batch size changes nobody's."""
        generator = torch.Generator().manual_seed(config.seed)
        total = len(clips) * config.repeats
        order = torch.randperm(total, generator=generator)
        levels = (order + torch.rand(total, generator=generator)) / total
        noises = [torch.randn(clips[i % len(clips)]["video"].shape, generator=generator) for i in range(total)]
        found = []
        for start in range(0, total, config.batch):
            picked = [clips[i % len(clips)] for i in range(start, min(start + config.batch, total))]
            video = torch.stack([item["video"] for item in picked])
            noise = torch.stack(noises[start : start + len(picked)])
            level = levels[start : start + len(picked)]
            context = encode([item["caption"] for item in picked])
            inputs = {"noisy": mix(video, noise, level), "level": level, "context": context}
            found.append(Question(inputs, {"target": velocity(video, noise)}))
        return found

    def answer(self, predict: Predict, question: Question) -> Tensor:
        """The velocity (B, T, C, H, W)."""
        noisy, told, context = (question.inputs[name] for name in ("noisy", "level", "context"))
        told = TIMESTEPS * told
        if self.diffusion.prediction == USUAL:
            return _predicted(predict, noisy, told, context)
        return self.diffusion.as_velocity(
            noisy, told / TIMESTEPS, lambda sample, steps: _predicted(predict, sample, steps, context)
        )

    def errors(self, answer: Tensor, question: Question) -> dict[str, Tensor]:
        """A picture has no motion: both parts then say the same of it."""
        error = (answer - question.truth["target"]).double()
        plain = error.square().flatten(1).mean(1)
        moving = error.shape[1] > 1
        return {
            "velocity": plain,
            "motion": error.diff(dim=1).square().flatten(1).mean(1) / 2 if moving else plain,
        }

    def samples(self, predict: Predict, encode: Encode, data: Footage, space: Space, device: torch.device) -> Frames:
        """Clips made of noise for a few captions, by Euler steps."""
        captions = list(data.captions)[:: max(1, len(data.captions) // SAMPLED)][:SAMPLED]
        frames, channels, height, width = space.latent_shape("training")
        generator = torch.Generator().manual_seed(0)
        sample = torch.randn(len(captions), frames, channels, height, width, generator=generator).to(device)
        context = encode(captions)
        levels = torch.linspace(1, 0, STEPS + 1).tolist()
        for level, following in zip(levels, levels[1:], strict=False):
            at = torch.full((len(captions),), level, device=device)
            answer = self.answer(predict, Question({"noisy": sample, "level": at, "context": context}, {}))
            sample = sample + (following - level) * answer.float()
        return Frames(sample, captions)


def _predicted(predict: Predict, video: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
    """One evaluation of the network itself on (B, T, C, H, W)."""
    frames = video.shape[1]
    out = predict({"x": video.flatten(0, 1), "timestep": timestep, "context": context, "frames": frames})
    return out.unflatten(0, (-1, frames))
