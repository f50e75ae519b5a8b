"""Transformer blocks of an image network: frames attend within themselves, all of a clip's read the text."""

from torch import Tensor, nn
from torch.nn import functional as F

from search_spaces.errors import SpaceError


class GroupedAttention(nn.Module):
    """Attention whose query heads share key-value heads in groups.

    The query heads of a group stand one after the other in the sequence, so that keys and values are never copied and
    Core ML keeps one fused operation: with ``enable_gqa`` it copies them, or fails (coremltools pull request 2855).

    Args:
        channels: C. source: width of what keys and values come from. head_width: of a head. kv_heads: 0 is all.

    Source: multi-query attention (Shazeer, arXiv 1911.02150), grouped (Ainslie et al., arXiv 2305.13245).
    """

    def __init__(self, channels: int, source: int, head_width: int, kv_heads: int) -> None:
        super().__init__()
        self.width = head_width
        self.heads = channels // head_width
        self.kv_heads = kv_heads or self.heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(source, self.kv_heads * head_width, bias=False)
        self.to_v = nn.Linear(source, self.kv_heads * head_width, bias=False)
        self.to_out = nn.Linear(channels, channels)
        nn.init.zeros_(self.to_out.weight)
        nn.init.zeros_(self.to_out.bias)

    def forward(self, tokens: Tensor, source: Tensor) -> Tensor:
        """``tokens: (N, L, C)`` and ``source: (N, S, D)`` to the shape of ``tokens``."""
        batch, length, channels = tokens.shape
        groups, each = self.kv_heads, self.heads // self.kv_heads
        query = self.to_q(tokens).reshape(batch, length, groups, each * self.width).transpose(1, 2)
        query = query.reshape(batch, groups, length * each, self.width)
        key, value = (
            project(source).reshape(batch, -1, groups, self.width).transpose(1, 2) for project in (self.to_k, self.to_v)
        )
        # No `scale=`: with it, Core ML's converter spells the attention out instead of fusing it.
        out = F.scaled_dot_product_attention(query, key, value)
        out = out.reshape(batch, groups, length, each * self.width).transpose(1, 2)
        return self.to_out(out.reshape(batch, length, channels))


class FeedForwardPart(nn.Module):
    """Two linear layers, ``ratio`` times as wide between them; ``gated``, half of twice that width gates the other."""

    def __init__(self, channels: int, ratio: int, gated: bool) -> None:
        super().__init__()
        self.gated = gated
        self.up = nn.Linear(channels, ratio * channels * (2 if gated else 1))
        self.down = nn.Linear(ratio * channels, channels)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """``(N, L, C)`` to the same shape."""
        wide = self.up(tokens)
        if self.gated:
            value, gate = wide.chunk(2, dim=-1)
            return self.down(value * F.gelu(gate))
        return self.down(F.gelu(wide))


class _Tokens(nn.Module):
    """Frames as sequences of tokens, and back."""

    def parts(self, tokens: Tensor, frames: int, context: Tensor | None) -> Tensor:
        """``(B*T, H*W, C)`` to the same shape."""
        raise SpaceError(f"{type(self).__name__} says nothing of tokens")

    def forward(self, x: Tensor, num_frames: int, context: Tensor | None = None) -> Tensor:
        """``x: (B*T, C, H, W)`` and, where the block reads the text, ``context: (B, L, D)`` to the shape of ``x``."""
        n, channels, height, width = x.shape
        tokens = self.parts(x.reshape(n, channels, height * width).transpose(1, 2), num_frames, context)
        return tokens.transpose(1, 2).reshape(n, channels, height, width)


class FeedForward(_Tokens):
    """A feed-forward layer at each place by itself: a transformer block without attention.

    Args:
        channels: C. ratio: how much wider it is inside. gated: 1 for a gated one (GEGLU), 0 for a plain one.
    """

    def __init__(self, channels: int, *, ratio: int, gated: int) -> None:
        super().__init__()
        self.norm, self.feed = nn.LayerNorm(channels), FeedForwardPart(channels, ratio, bool(gated))

    def parts(self, tokens: Tensor, frames: int, context: Tensor | None) -> Tensor:
        return tokens + self.feed(self.norm(tokens))


class SelfTransformer(_Tokens):
    """Self-attention within each frame, then a feed-forward layer.

    Args:
        channels: C. head_width: of a head; it divides C. kv_heads: heads of keys and values, 0 for as many as there
            are heads. ratio, gated: as in ``FeedForward``.

    Source: SnapGen (arXiv 2412.09619): one key-value head and a narrower feed-forward layer.
    """

    def __init__(self, channels: int, *, head_width: int, kv_heads: int, ratio: int, gated: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(channels), GroupedAttention(channels, channels, head_width, kv_heads)
        self.norm2, self.feed = nn.LayerNorm(channels), FeedForwardPart(channels, ratio, bool(gated))

    def parts(self, tokens: Tensor, frames: int, context: Tensor | None) -> Tensor:
        normed = self.norm1(tokens)
        tokens = tokens + self.attention(normed, normed)
        return tokens + self.feed(self.norm2(tokens))


class TextTransformer(_Tokens):
    """Self-attention within each frame, or none; then cross-attention to the text, and a feed-forward layer.

    Args:
        channels: C. self_attention: 1 with it, 0 without, as SnapGen has it at high resolution. head_width, kv_heads,
            ratio, gated: as in ``SelfTransformer``. context_dim: D, the width of the text.

    Raises:
        SpaceError: from ``forward``, if the context is missing.

    Source: SnapGen (arXiv 2412.09619).
    """

    def __init__(
        self,
        channels: int,
        *,
        self_attention: int,
        head_width: int,
        kv_heads: int,
        ratio: int,
        gated: int,
        context_dim: int,
    ) -> None:
        super().__init__()
        if self_attention:
            self.norm1 = nn.LayerNorm(channels)
            self.attention = GroupedAttention(channels, channels, head_width, kv_heads)
        self.attends = bool(self_attention)
        self.norm2, self.cross = nn.LayerNorm(channels), GroupedAttention(channels, context_dim, head_width, kv_heads)
        self.norm3, self.feed = nn.LayerNorm(channels), FeedForwardPart(channels, ratio, bool(gated))

    def parts(self, tokens: Tensor, frames: int, context: Tensor | None) -> Tensor:
        if context is None:
            raise SpaceError("TextTransformer reads the text; pass context of shape (B, L, D)")
        if self.attends:
            normed = self.norm1(tokens)
            tokens = tokens + self.attention(normed, normed)
        n, length, channels = tokens.shape
        # All frames of a clip read one text: they stand in one sequence, and its keys are not copied.
        queries = self.norm2(tokens).reshape(n // frames, frames * length, channels)
        tokens = tokens + self.cross(queries, context).reshape(n, length, channels)
        return tokens + self.feed(self.norm3(tokens))
