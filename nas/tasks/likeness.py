"""How like two clips are: peak signal-to-noise ratio and structural similarity."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

WINDOW, SIGMA = 11, 1.5  # of SSIM: Wang et al. 2004, section III-C
FLOOR = 1e-10  # mean squared error of pixels in 0..1: below what any format keeps


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """(B,) decibels between clips (B, ...) of the same range 0..1; 100 where they are equal."""
    return -10 * torch.log10((a - b).double().square().flatten(1).mean(1).clamp_min(FLOOR))


def psnr_of_changes(a: Tensor, b: Tensor) -> Tensor:
    """(B,) decibels between the frame-to-frame differences of clips (B, T, C, H, W) in 0..1; 100 for single frames."""
    if a.shape[1] < 2:
        return torch.full((len(a),), 100.0, dtype=torch.float64, device=a.device)
    return psnr(a.diff(dim=1), b.diff(dim=1))


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """(B,) mean structural similarity of the frames of clips (B, T, C, H, W) in 0..1; 1 where they are equal.

    Source: Wang et al., Image Quality Assessment: From Error Visibility to Structural Similarity (2004): a Gaussian
    window of 11 pixels, or of the largest odd number that fits, K1 = 0.01 and K2 = 0.03, inside the picture alone.
    """
    size = min(WINDOW, *(side - (side + 1) % 2 for side in a.shape[-2:]))
    steps = torch.arange(size, dtype=torch.float64, device=a.device) - size // 2
    line = torch.exp(-steps.square() / (2 * SIGMA**2))
    line = line / line.sum()
    x, y = (clip.double().reshape(-1, 1, *clip.shape[-2:]) for clip in (a, b))

    def blurred(z: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(z, line.reshape(1, 1, -1, 1)), line.reshape(1, 1, 1, -1))

    mean_x, mean_y = blurred(x), blurred(y)
    var_x, var_y = blurred(x * x) - mean_x**2, blurred(y * y) - mean_y**2
    covariance = blurred(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    found = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    found = found / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return found.reshape(len(a), -1).mean(1)
