"""Task reconstruct: a clip is encoded and decoded, and should come back as it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from nas.settings import Settings, parse_as
from nas.tasks.contract import Clips, Encode, Footage, Frames, Losses, Predict, Question, Random
from nas.tasks.likeness import psnr, psnr_of_changes, ssim

if TYPE_CHECKING:
    from search_spaces.space import Space

SHOWN = 3  # clips for whoever watches
MOST_DB = 60.0  # what a decibel falls short of: about the rounding of eight bits
MEMORY = 0.99  # of the running mean square of a gradient
SPREAD = (-30.0, 20.0)  # of the logarithm of a latent's variance


class ReconstructConfig(Settings):
    """What an autoencoder learns, each term with its weight.

    Attributes:
        reconstruction: error of a pixel, ``l1`` or ``mse``; its weight is 1. differences: of the same error of
            frame-to-frame differences. kl: of the divergence of the latents from unit size.
        consistency: of latent consistency: a clip that is decoded and encoded again should have its own latents. The
            encoder is frozen in that second pass, so that what made the clip learns through it, and the gradient is
            divided by its running root mean square: 1 is as much as the reconstruction by ``l1`` pulls. 0 is off.
        consistent_in: what is compared: the latents' ``means``, by mean squared error, or the ``gaussians``, by their
            KL divergence.

    Source: latent consistency after H3AE (arXiv 2504.10567, eq. 3), which takes it in place of perceptual and
    adversarial terms; the paper gives no weights, all are ours.
    """

    reconstruction: Literal["l1", "mse"] = "l1"
    differences: float = Field(0.5, ge=0.0)
    kl: float = Field(1e-6, ge=0.0)
    consistency: float = Field(0.1, ge=0.0)
    consistent_in: Literal["means", "gaussians"] = "means"


class Running(nn.Module):
    """The running mean square of a gradient, kept with a training's weights so that it goes on as it was."""

    def __init__(self) -> None:
        super().__init__()
        self.square = nn.Parameter(torch.zeros(()), requires_grad=False)


class Reconstruct:
    """A clip in pixels is shown; its latents, decoded, should be the clip.

    An answer's error has three parts: ``psnr`` and ``psnr_changes`` (of frame-to-frame differences), each as the
    decibels it falls short of 60, and ``ssim``, as what it falls short of 1. By default the last weighs so that a
    tenth of it is a decibel.
    """

    name = "reconstruct"
    weights: Mapping[str, float] = {"psnr": 0.5, "psnr_changes": 0.5, "ssim": 10.0}
    pixels = True
    shared: Sequence[str] = ()

    def __init__(self, config: ReconstructConfig | None = None) -> None:
        self.config = config or ReconstructConfig()
        self.state: nn.Module | None = Running() if self.config.consistency else None
        self.facts: Mapping[str, Any] = {}
        self._squares: list[float] = []  # of the step that is made

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Reconstruct:
        return cls(parse_as(ReconstructConfig, dict(settings), "train.task"))

    def ask(self, batch: Clips, draws: Random, encode: Encode) -> Question:
        """Clips, and a seed for the noise of each clip's latents."""

        def seeds(count: int, generator: torch.Generator) -> Tensor:
            return torch.randint(2**31 - 1, (count,), generator=generator)

        seed = draws.each(len(batch.captions), seeds)
        video = batch.video.to(seed.device)
        return Question({"video": video, "seed": seed}, {"video": video})

    def loss(self, predict: Predict, question: Question, teacher: Tensor | None = None) -> Losses:
        """The terms of ``ReconstructConfig``; no path needs a teacher where the truth itself is shown."""
        config, video = self.config, question.inputs["video"]
        moments = _moments(predict, video)
        mean, spread = _parted(moments)
        noise = _noise(mean, question.inputs["seed"])
        out = _decoded(predict, mean + (0.5 * spread).exp() * noise, len(video))
        error = F.l1_loss if config.reconstruction == "l1" else F.mse_loss
        terms = {"reconstruction": error(out, video)}
        terms["kl"] = 0.5 * (mean.square() + spread.exp() - 1 - spread).mean()
        total = terms["reconstruction"] + config.kl * terms["kl"]
        if config.differences and video.shape[1] > 1:
            terms["differences"] = error(out.diff(dim=1), video.diff(dim=1))
            total = total + config.differences * terms["differences"]
        if config.consistency and out.requires_grad:
            terms["consistency"], pull = self._consistent(predict, out, moments.detach())
            total = total + config.consistency * (pull - pull.detach())  # a gradient, and no part of the value
        return Losses(total, out.detach(), {name: term.detach() for name, term in terms.items()})

    def _consistent(self, predict: Predict, out: Tensor, moments: Tensor) -> tuple[Tensor, Tensor]:
        """How far the decoded clip's latents are from the clip's own, and a term with that gradient for the clip.

        The gradient is taken with respect to that clip alone, so the encoder gets none of its second pass.
        """
        shown = out.detach().requires_grad_()
        again, (mean, spread) = _parted(_moments(predict, shown)), _parted(moments)
        if self.config.consistent_in == "means":
            apart = F.mse_loss(again[0], mean)
        else:
            ratio = (again[1] - spread).exp() + (again[0] - mean).square() * (-spread).exp()
            apart = 0.5 * (ratio - 1 - again[1] + spread).mean()
        (gradient,) = torch.autograd.grad(apart, shown)
        square = float(gradient.double().square().mean())
        self._squares.append(square)
        assert isinstance(self.state, Running)
        known = float(self.state.square.detach()) or square
        pull = (out * gradient / max(known, 1e-30) ** 0.5).mean()
        return apart.detach(), pull

    def settle(self, mean: Callable[[Sequence[float]], list[float]]) -> None:
        """Take the step's gradients into the running mean square, the same on every process."""
        if not isinstance(self.state, Running):
            return
        found, self._squares = self._squares, []
        square = mean([sum(found) / len(found) if found else 0.0])[0]
        known = float(self.state.square.detach())
        if square:
            self.state.square.fill_(MEMORY * known + (1 - MEMORY) * square if known else square)

    def questions(self, clips: Sequence[Mapping[str, Any]], config: Any, encode: Encode) -> list[Question]:
        """The clips themselves; nothing is drawn, so a repeat of a clip is the clip again."""
        found, total = [], len(clips) * config.repeats
        for start in range(0, total, config.batch):
            picked = [clips[i % len(clips)]["video"] for i in range(start, min(start + config.batch, total))]
            video = torch.stack(picked)
            found.append(Question({"video": video}, {"video": video}))
        return found

    def answer(self, predict: Predict, question: Question) -> Tensor:
        """Clips (B, T, 3, H, W) decoded from the means of their latents."""
        video = question.inputs["video"]
        mean, _ = _parted(_moments(predict, video))
        return _decoded(predict, mean, len(video)).clamp(-1, 1)

    def errors(self, answer: Tensor, question: Question) -> dict[str, Tensor]:
        found, truth = ((clip + 1) / 2 for clip in (answer, question.truth["video"]))
        return {
            "psnr": (MOST_DB - psnr(found, truth)).clamp_min(0),
            "psnr_changes": (MOST_DB - psnr_of_changes(found, truth)).clamp_min(0),
            "ssim": 1 - ssim(found, truth),
        }

    def samples(self, predict: Predict, encode: Encode, data: Footage, space: Space, device: torch.device) -> Frames:
        """Clips, each with its reconstruction on the right."""
        items = [data[i] for i in range(min(SHOWN, len(data)))]
        video = torch.stack([item["video"] for item in items]).to(device)
        made = self.answer(predict, Question({"video": video}, {}))
        return Frames(torch.cat([video, made], dim=-1), [item["caption"] for item in items])


def _moments(predict: Predict, video: Tensor) -> Tensor:
    """Moments (B*t, 2*z, h, w) of clips (B, T, 3, H, W)."""
    return predict({"video": video.flatten(0, 1), "frames": video.shape[1]}).float()


def _parted(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Means of latents, and logarithms of their variances."""
    mean, spread = moments.chunk(2, dim=1)
    return mean, spread.clamp(*SPREAD)


def _decoded(predict: Predict, latents: Tensor, clips: int) -> Tensor:
    """Clips (B, T, 3, H, W) of latents (B*t, z, h, w)."""
    out = predict({"x": latents, "frames": len(latents) // clips}).float()
    return out.unflatten(0, (clips, -1))


def _noise(latents: Tensor, seeds: Tensor) -> Tensor:
    """Standard normal numbers for (B*t, z, h, w), each clip's of its own seed."""
    shape = (len(latents) // len(seeds), *latents.shape[1:])
    drawn = [torch.randn(shape, generator=torch.Generator().manual_seed(int(seed))) for seed in seeds.tolist()]
    return torch.cat(drawn).to(latents)
