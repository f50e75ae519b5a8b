"""Noise and what the network learns of it: flow matching along straight lines, or Stable Diffusion's own schedule.

A noise level runs from 0, clean data, to 1, pure noise. Whatever a network was trained to predict, it is read as a
velocity, noise - data, of the straight line through its sample: scores, sampling and reports know one language.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nas.tasks import Prediction as Prediction

TIMESTEPS = 1000.0  # the UNet's timestep embedding runs over 0..1000


def _log_ratios() -> Tensor:
    """log(s / a) at Stable Diffusion 1.5's 1,000 timesteps, rising."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, int(TIMESTEPS), dtype=torch.float64, device="cpu") ** 2
    kept = torch.cumprod(1 - betas, 0)
    return 0.5 * torch.log((1 - kept) / kept)


LOG_RATIOS = _log_ratios()  # made here, not when first asked for: an export would keep its own stand-in of it
ENDS: tuple[float, float] = tuple(
    torch.sigmoid(LOG_RATIOS[[0, -1]]).tolist()
)  # levels where that schedule begins, ends


def noise_levels(count: int, mean: float, std: float, generator: torch.Generator) -> Tensor:
    """(count,) logit-normal noise levels in 0..1 (Esser et al., arXiv 2403.03206, section 3.1)."""
    return torch.sigmoid(mean + std * torch.randn(count, generator=generator))


def mix(clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
    """The noisy sample at ``level`` (B,) of ``clean`` and ``noise`` (B, ...)."""
    s = _over(level, clean)
    return (1 - s) * clean + s * noise


def velocity(clean: Tensor, noise: Tensor) -> Tensor:
    """What the network learns to predict: d(sample) / d(level)."""
    return noise - clean


def clean_estimate(noisy: Tensor, predicted: Tensor, level: Tensor) -> Tensor:
    """The clean sample that a predicted velocity points at, in one step."""
    return noisy - _over(level, noisy) * predicted


@dataclass(frozen=True)
class Diffusion:
    """What a network is shown and what it answers.

    Args:
        prediction: ``velocity``, flow matching; ``epsilon``, the noise, as Stable Diffusion 1.5 came; ``v``, its
            v-prediction (Salimans and Ho, arXiv 2202.00512, appendix D). The last two keep data and noise at
            ``a**2 + s**2 = 1`` on Stable Diffusion's scaled-linear schedule, whose timesteps the network is told.

    A sample of that schedule divided by ``a + s`` lies on the straight line at level ``s / (a + s)``. That is how
    weights of either kind serve as the same velocity field.
    """

    prediction: Prediction = "velocity"

    def levels(self, count: int, mean: float, std: float, generator: torch.Generator) -> Tensor:
        """(count,) levels to train on: logit-normal for a velocity, else evenly spread timesteps."""
        if self.prediction == "velocity":
            return noise_levels(count, mean, std, generator)
        steps = torch.randint(len(LOG_RATIOS), (count,), generator=generator)
        return torch.sigmoid(LOG_RATIOS[steps]).float()

    def timestep(self, level: Tensor) -> Tensor:
        """What the network is told of a level, in 0..1000."""
        if self.prediction == "velocity":
            return TIMESTEPS * level
        ratios, wanted = LOG_RATIOS.to(level.device), level.double()
        wanted = torch.log(wanted / (1 - wanted))
        # How far into each step of the schedule, added up: a piecewise line without a search, which Core ML has not.
        low, high = ratios[:-1], ratios[1:]
        return ((wanted[..., None] - low) / (high - low)).clamp(0, 1).sum(-1).to(level.dtype)

    def noised(self, clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """The sample that the network sees at ``level`` (B,)."""
        if self.prediction == "velocity":
            return mix(clean, noise, level)
        a, s = _scales(level, clean)
        return a * clean + s * noise

    def target(self, clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """What the network should answer."""
        if self.prediction == "velocity":
            return velocity(clean, noise)
        if self.prediction == "epsilon":
            return noise
        a, s = _scales(level, clean)
        return a * noise - s * clean

    def as_velocity(self, noisy: Tensor, level: Tensor, predict: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """The velocity at a sample of the straight line.

        Args:
            noisy: (B, ...). level: (B,) in 0..1; levels past the schedule's own ends are read at the ends.
            predict: the network, called with the sample scaled its way and its timestep (B,).
        """
        if self.prediction == "velocity":
            return predict(noisy, TIMESTEPS * level)
        level = level.clamp(*ENDS)
        a, s = _scales(level, noisy)
        sample = noisy * (a + s)
        out = predict(sample, self.timestep(level)).float()
        if self.prediction == "epsilon":
            return out - (sample - s * out) / a
        return s * sample + a * out - (a * sample - s * out)


def _scales(level: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of data and noise, their squares adding to 1, at a level of the straight line."""
    ratio = level / (1 - level)
    a = (1 + ratio.square()).rsqrt()
    return _over(a, like), _over(ratio * a, like)


def _over(level: Tensor, like: Tensor) -> Tensor:
    return level.reshape(-1, *[1] * (like.dim() - 1))
