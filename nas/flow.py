"""Flow matching along straight lines: clean data at noise level 0, pure noise at 1, velocity noise - data."""

from __future__ import annotations

import torch
from torch import Tensor

TIMESTEPS = 1000.0  # the UNet's timestep embedding runs over 0..1000


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


def _over(level: Tensor, like: Tensor) -> Tensor:
    return level.reshape(-1, *[1] * (like.dim() - 1))
