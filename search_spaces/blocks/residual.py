"""Residual stages of a video autoencoder: frame by frame, along time after space, or over both without looking ahead.

A stage is a choice among its like and no addition: every position of a decoder holds one. All of them take their
statistics frame by frame, so that a frame is normalised alike whatever comes after it (and Core ML has no group norm
over five axes). None looks at later frames: where a clip begins, its first frame stands for those before it.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from search_spaces.blocks.convolution import group_norm
from search_spaces.blocks.tokens import join_heads, place_positions, split_heads, time_positions, to_map, to_tokens

KERNEL = 3  # frames, rows and columns that one output sees


class _Unit(nn.Module):
    """Two normalised convolutions beside a shortcut; the second starts at zero.

    Args:
        channels: C. first, second: convolutions from C to the inner width, and from there to C.
    """

    def __init__(self, channels: int, width: int, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.norm1, self.conv1 = group_norm(channels), first
        self.norm2, self.conv2 = group_norm(width), second
        for parameter in second.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        """``(B*T, C, H, W)`` to the same shape."""
        out = self.conv1(F.silu(self.norm1(x)), num_frames)
        return x + self.conv2(F.silu(self.norm2(out)), num_frames)


class _Space(nn.Conv2d):
    """A convolution over rows and columns, frame by frame."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__(channels, out, KERNEL, padding=KERNEL // 2)

    def forward(self, x: Tensor, num_frames: int) -> Tensor:  # type: ignore[override]
        return super().forward(x)


class _Time(nn.Conv2d):
    """A convolution along time at each place; time is the height of two dimensions."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__(channels, out, (KERNEL, 1))

    def forward(self, x: Tensor, num_frames: int) -> Tensor:  # type: ignore[override]
        _, channels, height, width = x.shape
        clip = x.reshape(-1, num_frames, channels, height * width).transpose(1, 2)  # (B, C, T, H*W)
        out = super().forward(torch.cat([clip[:, :, :1]] * (KERNEL - 1) + [clip], dim=2))
        return out.transpose(1, 2).reshape(-1, out.shape[1], height, width)


class _Both(nn.Conv3d):
    """A convolution over time and space that does not look ahead."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__(channels, out, KERNEL, padding=(0, KERNEL // 2, KERNEL // 2))

    def forward(self, x: Tensor, num_frames: int) -> Tensor:  # type: ignore[override]
        clip = x.reshape(-1, num_frames, *x.shape[1:]).transpose(1, 2)  # (B, C, T, H, W)
        out = super().forward(torch.cat([clip[:, :, :1]] * (KERNEL - 1) + [clip], dim=2))
        return out.transpose(1, 2).reshape(-1, out.shape[1], *out.shape[3:])


class _Stage(nn.Module):
    """``depth`` units, one after the other."""

    first: type[nn.Module]
    second: type[nn.Module]

    def __init__(self, channels: int, *, width: int, depth: int) -> None:
        super().__init__()
        self.units = nn.ModuleList(
            _Unit(channels, width, self.first(channels, width), self.second(width, channels)) for _ in range(depth)
        )

    def forward(self, x: Tensor, num_frames: int, context: Tensor | None = None) -> Tensor:
        """``(B*T, C, H, W)`` to the same shape; the context is not read."""
        for unit in self.units:
            x = unit(x, num_frames)
        return x


class Residual2D(_Stage):
    """Residual convolutions frame by frame: one frame can be decoded without the others.

    Args:
        channels: C. width: channels between the two convolutions of a unit. depth: units.

    Source: the high-resolution stages of H3AE (arXiv 2504.10567); widths and depths are ours, the paper gives none.
    """

    first, second = _Space, _Space


class Residual21D(_Stage):
    """Residual convolutions over space, then along time ((2+1)D).

    Args:
        channels: C. width: channels between the two. depth: units.

    Source: R(2+1)D (Tran et al., arXiv 1711.11248), here without a look ahead.
    """

    first, second = _Space, _Time


class CausalConv3D(_Stage):
    """Residual convolutions over time and space that do not look ahead.

    Args:
        channels: C. width: channels between the two convolutions of a unit. depth: units.

    Source: the low-resolution stages of H3AE (arXiv 2504.10567), padded as in CausalConv3d of MAGVIT-v2
    (arXiv 2310.05737), but by the first frame.
    """

    first, second = _Both, _Both


class CausalAttention3D(CausalConv3D):
    """Causal convolutions, then attention over time and space in which a frame sees itself and those before it.

    One fused operation with a mask. Queries and keys are normalised; places are encoded as in our other attention
    blocks, where the paper rotates.

    Args:
        channels: C. heads: of the attention; a divisor of C. width, depth: of the convolutions.

    Source: the bottleneck of H3AE (arXiv 2504.10567).
    """

    def __init__(self, channels: int, *, width: int, depth: int, heads: int) -> None:
        super().__init__(channels, width=width, depth=depth)
        self.heads = heads
        self.norm = nn.LayerNorm(channels)
        self.to_qkv = nn.Linear(channels, 3 * channels, bias=False)
        size = channels // heads  # no shifts: one of the keys would cancel in the softmax
        self.norm_q, self.norm_k = nn.LayerNorm(size, bias=False), nn.LayerNorm(size, bias=False)
        self.to_out = nn.Linear(channels, channels)
        for parameter in self.to_out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, num_frames: int, context: Tensor | None = None) -> Tensor:
        """``(B*T, C, H, W)`` to the same shape; the context is not read."""
        x = super().forward(x, num_frames)
        _, channels, height, width = x.shape
        tokens = self.norm(to_tokens(x, num_frames))
        tokens = tokens + time_positions(num_frames, tokens)[:, None] + place_positions(height, width, tokens)
        q, k, v = self.to_qkv(tokens.reshape(-1, num_frames * height * width, channels)).chunk(3, dim=-1)
        q, k = (norm(split_heads(part, self.heads)) for norm, part in ((self.norm_q, q), (self.norm_k, k)))
        mask = torch.tensor(_earlier(num_frames, height * width), device=x.device) if num_frames > 1 else None
        attended = F.scaled_dot_product_attention(q, k, split_heads(v, self.heads), attn_mask=mask)
        out = self.to_out(join_heads(attended)).reshape(-1, num_frames, height * width, channels)
        return x + to_map(out, height, width)


@lru_cache(maxsize=16)
def _earlier(frames: int, places: int) -> NDArray[np.bool_]:
    """(T*P, T*P): whether a token's frame may see another's: its own and all before it."""
    frame = np.arange(frames).repeat(places)
    seen: NDArray[np.bool_] = frame[:, None] >= frame[None]
    return seen
