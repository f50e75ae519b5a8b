"""From feature maps to tokens, and where in time and space a token stands."""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@lru_cache(maxsize=128)
def _sinusoid(length: int, channels: int) -> NDArray[np.float32]:
    half = (channels + 1) // 2
    angles = np.outer(np.arange(length), 10_000.0 ** (-np.arange(half) / half))
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)[:, :channels].astype(np.float32)


@lru_cache(maxsize=32)
def _place(height: int, width: int, channels: int) -> NDArray[np.float32]:
    rows = _sinusoid(height, channels // 2)[:, None].repeat(width, axis=1)
    columns = _sinusoid(width, channels - channels // 2)[None].repeat(height, axis=0)
    return np.concatenate([rows, columns], axis=2).reshape(height * width, channels)


# Positions are constants made from the shapes at hand (Vaswani et al., arXiv 1706.03762, section 3.5): no parameter, so
# a network trained on one clip size runs on any other, and no arithmetic in an exported graph.


def time_positions(num_frames: int, like: Tensor) -> Tensor:
    """Encoded frame numbers, ``(T, C)``, with C, type and device of ``like: (..., C)``."""
    return torch.tensor(_sinusoid(num_frames, like.shape[-1]), dtype=like.dtype, device=like.device)


def place_positions(height: int, width: int, like: Tensor) -> Tensor:
    """Encoded places, ``(H*W, C)``: half of the channels for the row, half for the column."""
    return torch.tensor(_place(height, width, like.shape[-1]), dtype=like.dtype, device=like.device)


def to_tokens(x: Tensor, num_frames: int) -> Tensor:
    """``(B*T, C, H, W)`` to ``(B, T, H*W, C)``."""
    frames, channels, height, width = x.shape
    return x.reshape(frames // num_frames, num_frames, channels, height * width).transpose(2, 3)


def to_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """``(B, T, H*W, C)`` to ``(B*T, C, H, W)``."""
    batch, frames, _, channels = tokens.shape
    return tokens.transpose(2, 3).reshape(batch * frames, channels, height, width)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """``(N, L, C)`` to ``(N, heads, L, C/heads)``."""
    batch, length, channels = x.shape
    return x.reshape(batch, length, heads, channels // heads).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """``(N, heads, L, C/heads)`` to ``(N, L, C)``."""
    batch, heads, length, width = x.shape
    return x.transpose(1, 2).reshape(batch, length, heads * width)
