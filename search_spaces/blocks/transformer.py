"""Blocks of diffusion transformers: attention over a whole clip, attention to the text, a feed-forward layer.

Parameters carry diffusers' names, so weights of its models come over block by block. ``heads`` may be fewer than the
channels have room for, inside an unchanged width, and ``ffn`` is the feed-forward layer's inner width.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from search_spaces.blocks import Index
from search_spaces.blocks.tokens import join_heads, split_heads, to_map, to_tokens
from search_spaces.errors import SpaceError

THETA = 10_000.0

#: Where a latent stands for LTX, as a share of the largest clip that it knows (20 s, 2,048 pixels a side): a third of
#: a second and 32 pixels after the one before, which is 24 frames a second through an autoencoder of 8x32x32.
LTX_STEPS = (8 / 24 / 20, 32 / 2048, 32 / 2048)


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x^2) + eps) * weight`` over the channels, by the function that every lowering keeps exact.

    diffusers spells its own out, and squares overflow float16 there; ``device_profiler.lowering.spelled`` has the form
    in which this one is exported.
    """

    def __init__(self, channels: int, eps: float, *, scaled: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels)) if scaled else None

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)


class Attention(nn.Module):
    """Multi-head attention whose queries and keys are normalised over all heads together.

    Args:
        channels: of the queries and the answer. given: of keys and values. heads, size: of the attention inside.
    """

    def __init__(self, channels: int, given: int, heads: int, size: int, eps: float) -> None:
        super().__init__()
        self.heads, inner = heads, heads * size
        self.norm_q, self.norm_k = RMSNorm(inner, eps), RMSNorm(inner, eps)
        self.to_q = nn.Linear(channels, inner)
        self.to_k, self.to_v = nn.Linear(given, inner), nn.Linear(given, inner)
        self.to_out = nn.ModuleList([nn.Linear(inner, channels)])

    def forward(self, x: Tensor, given: Tensor, turns: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """``x: (B, L, C)``, ``given: (B, K, G)``; ``turns``, where there are any, are cosines and sines (L, I)."""
        query, key = self.norm_q(self.to_q(x)), self.norm_k(self.to_k(given))
        if turns is not None:
            query, key = turned(query, *turns), turned(key, *turns)
        query, key, value = (split_heads(part, self.heads) for part in (query, key, self.to_v(given)))
        answer: Tensor = self.to_out[0](join_heads(F.scaled_dot_product_attention(query, key, value)))
        return answer


class Gelu(nn.Module):
    """A projection, then GELU; diffusers has both under this name."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, inner)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """Two layers, GELU between them."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([Gelu(channels, inner), nn.Identity(), nn.Linear(inner, channels)])

    def forward(self, x: Tensor) -> Tensor:
        for part in self.net:
            x = part(x)
        return x


class _Transformer(nn.Module):
    """What both blocks share: the time's embedding shifts, scales and gates; the text is read in between.

    Args:
        channels: C. heads, size: of both attentions. ffn: inner channels. context_dim: of the text.
        embedding_dim: of the time, six times the channels.

    Raises:
        SpaceError: if the embedding is of another width.
    """

    feed = "ff"  # diffusers' name of the feed-forward layer
    eps = 1e-5  # of the norm of queries and keys

    def __init__(self, channels: int, *, heads: int, ffn: int, size: int, context_dim: int, embedding_dim: int) -> None:
        super().__init__()
        if embedding_dim != 6 * channels:
            raise SpaceError(
                f"{type(self).__name__} reads six times its channels ({6 * channels}) of the time embedding, but this "
                f"network hands out {embedding_dim}; name another block"
            )
        self.channels, self.size, self.count = channels, size, heads
        self.attn1 = Attention(channels, channels, heads, size, self.eps)
        self.attn2 = Attention(channels, context_dim, heads, size, self.eps)
        self.add_module(self.feed, FeedForward(channels, ffn))
        self.scale_shift_table = nn.Parameter(torch.randn(6, channels) / channels**0.5)

    def norm(self, x: Tensor, place: int) -> Tensor:
        """Before the three parts: the clip's attention (0), the text's (1), the feed-forward layer (2)."""
        return x

    def turns(self, frames: int, height: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Cosines and sines by which queries and keys are turned where they stand, (L, heads*size) each."""
        return turns_of_heads(frames, height, width, self.size, self.count)

    def forward(
        self, x: Tensor, num_frames: int, context: Tensor | None = None, embedding: Tensor | None = None
    ) -> Tensor:
        """``(B*T, C, H, W)``, the text ``(B, L, D)`` and the time ``(B, 6*C)`` to the shape of ``x``.

        Raises:
            SpaceError: without a text or a time.
        """
        if context is None or embedding is None:
            raise SpaceError(f"{type(self).__name__} reads the text and the time; give context and embedding")
        _, channels, height, width = x.shape
        tokens = to_tokens(x, num_frames).reshape(-1, num_frames * height * width, channels)
        told = self.scale_shift_table.reshape(6, channels) + embedding.reshape(-1, 6, channels)
        shift, scale, gate, shift_feed, scale_feed, gate_feed = told.split(1, 1)
        cosines, sines = (
            torch.tensor(table, dtype=torch.float32, device=x.device) for table in self.turns(num_frames, height, width)
        )
        normed = self.norm(tokens, 0) * (1 + scale) + shift
        tokens = tokens + self.attn1(normed, normed, (cosines, sines)) * gate
        tokens = tokens + self.attn2(self.norm(tokens, 1), context)
        tokens = tokens + getattr(self, self.feed)(self.norm(tokens, 2) * (1 + scale_feed) + shift_feed) * gate_feed
        return to_map(tokens.reshape(-1, num_frames, height * width, channels), height, width).contiguous()

    @classmethod
    def slices(cls, channels: int, params: Mapping[str, int], whole: Mapping[str, int]) -> dict[str, Index]:
        """Parameter -> which part of the whole's a narrower block has."""
        found: dict[str, Index] = {}
        if params["heads"] != whole["heads"]:
            kept = cls.kept_features(channels, params["heads"], whole["heads"], params["size"])
            for name in ("attn1", "attn2"):
                found |= {f"{name}.{part}": (kept,) for part in ("norm_q.weight", "norm_k.weight")}
                for part in ("to_q", "to_k", "to_v"):
                    found |= {f"{name}.{part}.{tensor}": (kept,) for tensor in ("weight", "bias")}
                found[f"{name}.to_out.0.weight"] = (slice(None), kept)
        if params["ffn"] != whole["ffn"]:
            inner = slice(0, params["ffn"])
            found |= {f"{cls.feed}.net.0.proj.{tensor}": (inner,) for tensor in ("weight", "bias")}
            found[f"{cls.feed}.net.2.weight"] = (slice(None), inner)
        return found

    @classmethod
    def kept_features(cls, channels: int, heads: int, whole: int, size: int) -> slice | tuple[int, ...]:
        """Which of the whole's head features a block of fewer heads has: the first; its heads are alike."""
        return slice(0, heads * size)


class WanBlock(_Transformer):
    """Wan's transformer block: every head is turned alike, by frame, row and column.

    Source: Wan (arXiv 2503.20314), as in diffusers' ``WanTransformerBlock``.
    """

    feed = "ffn"
    eps = 1e-6

    def __init__(self, channels: int, **sizes: int) -> None:
        super().__init__(channels, **sizes)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.scale_shift_table = nn.Parameter(self.scale_shift_table.detach()[None])

    def norm(self, x: Tensor, place: int) -> Tensor:
        normed: Tensor = self.norm2(x) if place == 1 else F.layer_norm(x, x.shape[-1:], eps=1e-6)
        return normed


class LTXBlock(_Transformer):
    """LTX-Video's transformer block: heads are turned at different rates, slow ones first.

    A block of fewer heads therefore keeps some of all rates: heads are taken in van der Corput's order, in which any
    number of them lie evenly among all.

    Source: LTX-Video (arXiv 2501.00103), as in diffusers' ``LTXVideoTransformerBlock``; fewer heads inside an unchanged
    width: Mobile DiT (arXiv 2507.13343).
    """

    def norm(self, x: Tensor, place: int) -> Tensor:
        return x if place == 1 else F.rms_norm(x, x.shape[-1:], eps=1e-6)

    def turns(self, frames: int, height: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return turns_of_channels(frames, height, width, self.channels, self.size, self.count)

    @classmethod
    def kept_features(cls, channels: int, heads: int, whole: int, size: int) -> slice | tuple[int, ...]:
        mine, theirs = kept_heads(heads, channels // size), kept_heads(whole, channels // size)
        return tuple(theirs.index(head) * size + at for head in mine for at in range(size))


def kept_heads(heads: int, room: int) -> list[int]:
    """Which of ``room`` heads a block of ``heads`` has: the first of van der Corput's order, in rising order."""
    bits = max(1, (room - 1).bit_length())
    order = [int(f"{at:0{bits}b}"[::-1], 2) for at in range(2**bits)]
    return sorted([head for head in order if head < room][:heads])


def turned(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """``(B, L, I)`` with every pair of neighbouring features turned by its place's angle; the arithmetic is float32."""
    real, imaginary = x.unflatten(2, (-1, 2)).unbind(-1)
    across = torch.stack([-imaginary, real], dim=-1).flatten(2)
    return (x.float() * cosines + across.float() * sines).to(x.dtype)


Turns = tuple[NDArray[np.float32], NDArray[np.float32]]


def _of_angles(angles: NDArray[np.float64]) -> Turns:
    doubled = angles.repeat(2, axis=1)
    return np.cos(doubled).astype(np.float32), np.sin(doubled).astype(np.float32)


def _grid(frames: int, height: int, width: int) -> NDArray[np.float64]:
    """Frame, row and column of every token, (L, 3)."""
    axes = np.meshgrid(np.arange(frames), np.arange(height), np.arange(width), indexing="ij")
    return np.stack(axes, axis=-1).reshape(-1, 3).astype(np.float64)


@lru_cache(maxsize=32)
def turns_of_heads(frames: int, height: int, width: int, size: int, heads: int) -> Turns:
    """Wan's: every head's features are shared out to time, rows and columns."""
    side = 2 * (size // 6)
    sizes = (size - 2 * side, side, side)
    grid = _grid(frames, height, width)
    angles = [np.outer(grid[:, axis], THETA ** (-np.arange(0, n, 2) / n)) for axis, n in enumerate(sizes) if n]
    return _of_angles(np.tile(np.concatenate(angles, axis=1), (1, heads)))


@lru_cache(maxsize=32)
def turns_of_channels(frames: int, height: int, width: int, channels: int, size: int, heads: int) -> Turns:
    """LTX's: rates rise over the channels of all heads that there is room for; ``heads`` of them are kept."""
    rates = THETA ** np.linspace(0.0, 1.0, channels // 6) * np.pi / 2
    places = _grid(frames, height, width) * LTX_STEPS * 2 - 1
    angles = (places[:, None, :] * rates[None, :, None]).reshape(len(places), -1)  # of one rate: time, row, column
    still = (channels - 2 * angles.shape[1]) // 2
    angles = np.concatenate([np.zeros((len(angles), still)), angles], axis=1)
    kept = [head * size // 2 + at for head in kept_heads(heads, channels // size) for at in range(size // 2)]
    return _of_angles(angles[:, kept])
