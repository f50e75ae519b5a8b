"""Temporal cross-attention blocks: video tokens read the text, knowing their time (1D) or time and place (3D)."""

from torch import Tensor, nn
from torch.nn import functional as F

from search_spaces.blocks.tokens import (
    join_heads,
    place_positions,
    split_heads,
    time_positions,
    to_map,
    to_tokens,
)
from search_spaces.errors import SpaceError


class CrossAttention1D(nn.Module):
    """Residual cross-attention, T queries at each location with the frame number encoded; keys and values are text.

    A query looks at the text alone, never at other queries, so the T queries of all locations go into one attention
    over B sequences. Folding locations into the batch would give the same numbers, and copy keys and values H*W times:
    0.8 GB for 77 tokens and 320 channels at 64x64.

    Args:
        channels: C.
        heads: divides C.
        context_dim: D, the width of the text embedding.

    Raises:
        SpaceError: from ``forward``, if the context is missing.

    Source: the CrossAttention1D candidate of SnapGen-V (arXiv 2412.10494); form as in ``SelfAttention1D``.
    """

    def __init__(self, channels: int, *, heads: int, context_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(channels)
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_dim, channels, bias=False)
        self.to_v = nn.Linear(context_dim, channels, bias=False)
        self.to_out = nn.Linear(channels, channels)
        nn.init.zeros_(self.to_out.weight)
        nn.init.zeros_(self.to_out.bias)

    def add_positions(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """Encode where the queries stand: ``(B, T, H*W, C)`` to the same shape."""
        return tokens + time_positions(tokens.shape[1], tokens)[:, None]

    def forward(self, x: Tensor, num_frames: int, context: Tensor | None = None) -> Tensor:
        """``x: (B*T, C, H, W)`` and ``context: (B, L, D)`` to the shape of ``x``."""
        if num_frames == 1:  # an image: the backbone's own cross-attention has read the text
            return x
        if context is None:
            raise SpaceError(f"{type(self).__name__} reads the text; pass context of shape (B, L, D)")
        _, channels, height, width = x.shape
        tokens = self.add_positions(self.norm(to_tokens(x, num_frames)), height, width)
        query = self.to_q(tokens.reshape(-1, num_frames * height * width, channels))
        query, key, value = (split_heads(part, self.heads) for part in (query, self.to_k(context), self.to_v(context)))
        # No `scale=`: with it, Core ML's converter spells the attention out instead of fusing it.
        attended = self.to_out(join_heads(F.scaled_dot_product_attention(query, key, value)))
        return x + to_map(attended.reshape(-1, num_frames, height * width, channels), height, width)


class CrossAttention3D(CrossAttention1D):
    """Residual cross-attention of all T*H*W tokens, with frame, row and column encoded; keys and values are text.

    Source: the CrossAttention3D candidate of SnapGen-V (arXiv 2412.10494); form as in ``SelfAttention1D``.
    """

    def add_positions(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """Encode where the queries stand: ``(B, T, H*W, C)`` to the same shape."""
        return super().add_positions(tokens, height, width) + place_positions(height, width, tokens)
