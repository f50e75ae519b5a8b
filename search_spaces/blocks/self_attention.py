"""Temporal self-attention blocks: along time (1D) or over time and space (3D)."""

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


class _SelfAttention(nn.Module):
    """What both share: normalise, attend, project; the projection starts at zero, so the block starts as identity."""

    def __init__(self, channels: int, *, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(channels)
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(channels, channels, bias=False)
        self.to_v = nn.Linear(channels, channels, bias=False)
        self.to_out = nn.Linear(channels, channels)
        nn.init.zeros_(self.to_out.weight)
        nn.init.zeros_(self.to_out.bias)

    def attend(self, tokens: Tensor) -> Tensor:
        """``(N, L, C)`` to the same shape; each of the N sequences attends within itself."""
        query, key, value = (split_heads(project(tokens), self.heads) for project in (self.to_q, self.to_k, self.to_v))
        # No `scale=`: with it, Core ML's converter spells the attention out instead of fusing it.
        return self.to_out(join_heads(F.scaled_dot_product_attention(query, key, value)))


class SelfAttention1D(_SelfAttention):
    """Residual self-attention along time, at each location: H*W sequences of T tokens, frame numbers encoded.

    Args:
        channels: C.
        heads: divides C.

    Source: the SelfAttention1D candidate of SnapGen-V (arXiv 2412.10494); the paper gives no detail, the form is the
    usual pre-normalised residual one without a feed-forward part.
    """

    def forward(self, x: Tensor, num_frames: int, context: Tensor | None = None) -> Tensor:
        """``(B*T, C, H, W)`` to the same shape; the context is not read."""
        if num_frames == 1:  # an image: time has nothing to add
            return x
        _, channels, height, width = x.shape
        tokens = to_tokens(x, num_frames).transpose(1, 2)  # (B, H*W, T, C)
        normed = self.norm(tokens) + time_positions(num_frames, tokens)
        attended = self.attend(normed.reshape(-1, num_frames, channels))
        return x + to_map(attended.reshape(-1, height * width, num_frames, channels).transpose(1, 2), height, width)


class SelfAttention3D(_SelfAttention):
    """Residual self-attention over time and space: one sequence of T*H*W tokens, frame, row and column encoded.

    Quadratic in T*H*W: one head's scores alone take (T*H*W)^2 elements where a runtime does not fuse them away.

    Args:
        channels: C.
        heads: divides C.

    Source: the SelfAttention3D candidate of SnapGen-V (arXiv 2412.10494); form as in ``SelfAttention1D``.
    """

    def forward(self, x: Tensor, num_frames: int, context: Tensor | None = None) -> Tensor:
        """``(B*T, C, H, W)`` to the same shape; the context is not read."""
        if num_frames == 1:  # an image: time has nothing to add
            return x
        _, channels, height, width = x.shape
        tokens = to_tokens(x, num_frames)  # (B, T, H*W, C)
        # Time and place are added one after the other: their sum would be a constant as large as the feature map.
        normed = self.norm(tokens) + time_positions(num_frames, tokens)[:, None]
        normed = normed + place_positions(height, width, tokens)
        attended = self.attend(normed.reshape(-1, num_frames * height * width, channels))
        return x + to_map(attended.reshape(-1, num_frames, height * width, channels), height, width)
