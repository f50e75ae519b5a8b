"""The modules of the toy family: what a foreign package keeps apart, so that its family is read without torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Frame(nn.Module):
    """Patches in, patches out, a time embedding, and a mixer before every place."""

    def __init__(self, in_channels: int, dim: int, depth: int, patch: int, context_dim: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(in_channels, dim, patch, stride=patch)
        self.leave = nn.ConvTranspose2d(dim, in_channels, patch, stride=patch)
        self.time = nn.Sequential(nn.Linear(1, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.text = nn.Linear(context_dim, dim) if context_dim else None
        self.mixers = nn.ModuleList(nn.Conv2d(dim, dim, 1) for _ in range(depth))


class Transformer(nn.Module):
    """A transformer block over time and space, shifted by the time embedding; ``ffn`` counts quarters of channels."""

    def __init__(self, channels: int, heads: int, ffn: int, embedding_dim: int) -> None:
        super().__init__()
        self.heads, self.size = heads, 16
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.shift = nn.Linear(embedding_dim, channels)
        self.qkv, self.out = nn.Linear(channels, 3 * heads * self.size), nn.Linear(heads * self.size, channels)
        self.up, self.down = nn.Linear(channels, ffn * channels // 4), nn.Linear(ffn * channels // 4, channels)

    def forward(self, x: Tensor, num_frames: int, embedding: Tensor) -> Tensor:
        n, c, h, w = x.shape
        tokens = x.reshape(-1, num_frames, c, h * w).transpose(2, 3).reshape(-1, num_frames * h * w, c)
        normed = self.norm1(tokens) + self.shift(embedding)[:, None]
        q, k, v = (y.unflatten(-1, (self.heads, self.size)).transpose(1, 2) for y in self.qkv(normed).chunk(3, -1))
        tokens = tokens + self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        tokens = tokens + self.down(torch.nn.functional.gelu(self.up(self.norm2(tokens))))
        return tokens.reshape(-1, num_frames, h * w, c).transpose(2, 3).reshape(n, c, h, w).contiguous()
