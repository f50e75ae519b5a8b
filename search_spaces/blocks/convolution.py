"""Temporal convolution blocks: along time (1D) or over time and space (3D)."""

from math import gcd

from torch import Tensor, nn
from torch.nn import functional as F


def group_norm(channels: int) -> nn.GroupNorm:
    """At least four channels a group where they allow it, at most 32 groups as in the image backbone."""
    return nn.GroupNorm(gcd(channels, min(32, max(1, channels // 4))), channels)


class Conv1D(nn.Module):
    """Residual convolution along time, at each location.

    Normalisation takes its statistics from the whole clip: per frame, it would erase a change of brightness. Time is
    the height of a two-dimensional convolution, so the long axis H*W stays last and nothing is padded to a tile.

    Args:
        channels: C.
        kernel_size: frames seen by one output frame; odd, so that time stays aligned.

    Source: the Conv1D candidate of SnapGen-V (arXiv 2412.10494); the paper gives no kernel size, 3 is ours.
    """

    def __init__(self, channels: int, *, kernel_size: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.conv = nn.Conv2d(channels, channels, (kernel_size, 1), padding=(kernel_size // 2, 0))
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, num_frames: int, context: Tensor | None = None) -> Tensor:
        """``(B*T, C, H, W)`` to the same shape; the context is not read."""
        if num_frames == 1:  # an image: time has nothing to add
            return x
        _, channels, height, width = x.shape
        clip = x.reshape(-1, num_frames, channels, height * width).transpose(1, 2)  # (B, C, T, H*W)
        out = self.conv(F.silu(self.norm(clip)))
        return x + out.transpose(1, 2).reshape(x.shape)


class Conv3D(nn.Module):
    """Residual convolution over time and space.

    Args:
        channels: C.
        kernel_size: frames, rows and columns seen by one output; odd, so that they stay aligned.

    Source: the Conv3D candidate of SnapGen-V (arXiv 2412.10494); the paper gives no kernel size, 3 is ours.
    """

    def __init__(self, channels: int, *, kernel_size: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.conv = nn.Conv3d(channels, channels, kernel_size, padding=kernel_size // 2)
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, num_frames: int, context: Tensor | None = None) -> Tensor:
        """``(B*T, C, H, W)`` to the same shape; the context is not read."""
        if num_frames == 1:  # an image: time has nothing to add
            return x
        _, channels, height, width = x.shape
        clip = x.reshape(-1, num_frames, channels, height * width).transpose(1, 2)  # (B, C, T, H*W)
        normed = F.silu(self.norm(clip)).reshape(-1, channels, num_frames, height, width)
        return x + self.conv(normed).transpose(1, 2).reshape(x.shape)
