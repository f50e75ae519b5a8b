"""Convolutional blocks of an image network, told the time: full, separable, or a fused inverted bottleneck."""

from math import gcd

from torch import Tensor, nn
from torch.nn import functional as F


def frame_norm(channels: int) -> nn.GroupNorm:
    """Statistics of one frame: at least four channels a group where they allow it, at most 32 groups."""
    return nn.GroupNorm(gcd(channels, min(32, max(1, channels // 4))), channels)


def depthwise(channels: int) -> nn.Conv2d:
    """A 3x3 filter for each channel by itself."""
    return nn.Conv2d(channels, channels, 3, padding=1, groups=channels)


class _TimedBlock(nn.Module):
    """What all share: two halves, each a norm, SiLU and a convolution; the time is added between them.

    The second half starts at zero, so that a path through fresh blocks is as calm as a shallow one. Frames are seen one
    by one; the time is told once a clip.
    """

    def __init__(self, channels: int, inner: int, embedding_dim: int, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.norm1, self.first = frame_norm(channels), first
        self.time = nn.Linear(embedding_dim, inner)
        self.norm2, self.second = frame_norm(inner), second
        last = second[-1] if isinstance(second, nn.Sequential) else second
        for parameter in last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, num_frames: int, embedding: Tensor) -> Tensor:
        """``x: (B*T, C, H, W)`` and ``embedding: (B, E)`` to the shape of ``x``."""
        told = self.time(F.silu(embedding)).repeat_interleave(num_frames, 0)[:, :, None, None]
        y = self.first(F.silu(self.norm1(x))) + told
        return x + self.second(F.silu(self.norm2(y)))


class FullConv(_TimedBlock):
    """Two full 3x3 convolutions: the residual block of Stable Diffusion's UNets.

    Args:
        channels: C. embedding_dim: E, the width of the time's embedding.
    """

    def __init__(self, channels: int, *, embedding_dim: int) -> None:
        first, second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        super().__init__(channels, channels, embedding_dim, first, second)


class SeparableConv(_TimedBlock):
    """Two separable convolutions, each a 3x3 filter a channel and then a 1x1 mix, wider between them.

    Args:
        channels: C. expansion: how many times C there are between the two. embedding_dim: E.

    Source: the expanded separable convolution of SnapGen (arXiv 2412.09619), ratio 2 there; its order of operations is
    known to us from third parties only.
    """

    def __init__(self, channels: int, *, expansion: int, embedding_dim: int) -> None:
        inner = expansion * channels
        first = nn.Sequential(depthwise(channels), nn.Conv2d(channels, inner, 1))
        second = nn.Sequential(depthwise(inner), nn.Conv2d(inner, channels, 1))
        super().__init__(channels, inner, embedding_dim, first, second)


class FusedMBConv(_TimedBlock):
    """A full 3x3 convolution that widens, and a 1x1 one back: an inverted bottleneck without its filter a channel.

    Args:
        channels: C. expansion: how many times C there are between the two. embedding_dim: E.

    Source: Fused-MBConv of EfficientNetV2 (Tan and Le, arXiv 2104.00298, section 3.2), without its attention.
    """

    def __init__(self, channels: int, *, expansion: int, embedding_dim: int) -> None:
        inner = expansion * channels
        first, second = nn.Conv2d(channels, inner, 3, padding=1), nn.Conv2d(inner, channels, 1)
        super().__init__(channels, inner, embedding_dim, first, second)
