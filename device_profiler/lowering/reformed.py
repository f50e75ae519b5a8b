"""The forms of ``device_profiler.lowering.forms`` as classes: a block becomes one of them, its weights stay."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from search_spaces.blocks.convolution import Conv1D, Conv3D
from search_spaces.blocks.cross_attention import CrossAttention1D, CrossAttention3D
from search_spaces.blocks.self_attention import SelfAttention1D, SelfAttention3D
from search_spaces.blocks.tokens import join_heads, split_heads, to_map, to_tokens


def _project(linear: nn.Linear, x: Tensor) -> Tensor:
    """A linear layer as a 1x1 convolution: ``(N, C, 1, L)`` to ``(N, D, 1, L)``."""
    return F.conv2d(x, linear.weight[:, :, None, None], linear.bias)


def _heads(x: Tensor, heads: int) -> Tensor:
    """``(N, C, 1, L)`` to ``(N, heads, L, C/heads)``."""
    batch, channels, _, length = x.shape
    return x.reshape(batch, heads, channels // heads, length).transpose(2, 3)


def _joined(x: Tensor) -> Tensor:
    """``(N, heads, L, C/heads)`` to ``(N, C, 1, L)``."""
    batch, heads, length, width = x.shape
    return x.transpose(2, 3).reshape(batch, heads * width, 1, length)


def _columns(tokens: Tensor) -> Tensor:
    """``(N, L, C)`` to ``(N, C, 1, L)``."""
    return tokens.transpose(1, 2)[:, :, None]


class _ConvSelf:
    """``attend`` of the self-attention blocks with 1x1 convolutions."""

    heads: int
    to_q: nn.Linear
    to_k: nn.Linear
    to_v: nn.Linear
    to_out: nn.Linear

    def attend(self, tokens: Tensor) -> Tensor:
        """``(N, L, C)`` to the same shape."""
        x = _columns(tokens)
        query, key, value = (_heads(_project(one, x), self.heads) for one in (self.to_q, self.to_k, self.to_v))
        attended = F.scaled_dot_product_attention(query, key, value)
        return _project(self.to_out, _joined(attended))[:, :, 0].transpose(1, 2)


class ConvSelfAttention1D(_ConvSelf, SelfAttention1D):
    """``SelfAttention1D`` with 1x1 convolutions."""


class ConvSelfAttention3D(_ConvSelf, SelfAttention3D):
    """``SelfAttention3D`` with 1x1 convolutions."""


class ConvCrossAttention1D(CrossAttention1D):
    """``CrossAttention1D`` with 1x1 convolutions."""

    def forward(self, x: Tensor, num_frames: int, context: Tensor | None = None) -> Tensor:
        """As ``CrossAttention1D.forward``."""
        if num_frames == 1 or context is None:
            return super().forward(x, num_frames, context)
        _, channels, height, width = x.shape
        tokens = self.add_positions(self.norm(to_tokens(x, num_frames)), height, width)
        rows, text = _columns(tokens.reshape(-1, num_frames * height * width, channels)), _columns(context)
        query, key, value = (
            _heads(_project(linear, part), self.heads)
            for linear, part in ((self.to_q, rows), (self.to_k, text), (self.to_v, text))
        )
        attended = _project(self.to_out, _joined(F.scaled_dot_product_attention(query, key, value)))
        return x + to_map(
            attended[:, :, 0].transpose(1, 2).reshape(-1, num_frames, height * width, channels), height, width
        )


class ConvCrossAttention3D(ConvCrossAttention1D, CrossAttention3D):
    """``CrossAttention3D`` with 1x1 convolutions."""


class TiledCrossAttention1D(CrossAttention1D):
    """``CrossAttention1D`` as H*W sequences of T queries, each with keys and values of its own."""

    def forward(self, x: Tensor, num_frames: int, context: Tensor | None = None) -> Tensor:
        """As ``CrossAttention1D.forward``."""
        if num_frames == 1 or context is None:
            return super().forward(x, num_frames, context)
        _, channels, height, width = x.shape
        places = height * width
        tokens = self.add_positions(self.norm(to_tokens(x, num_frames)), height, width)
        query = split_heads(self.to_q(tokens.transpose(1, 2).reshape(-1, num_frames, channels)), self.heads)
        key, value = (
            split_heads(project(context), self.heads).repeat_interleave(places, dim=0)
            for project in (self.to_k, self.to_v)
        )
        attended = self.to_out(join_heads(F.scaled_dot_product_attention(query, key, value)))
        return x + to_map(attended.reshape(-1, places, num_frames, channels).transpose(1, 2), height, width)


class TimeLastConv1D(Conv1D):
    """``Conv1D`` with time as the width."""

    def forward(self, x: Tensor, num_frames: int, context: Tensor | None = None) -> Tensor:
        """As ``Conv1D.forward``."""
        if num_frames == 1:
            return x
        _, channels, height, width = x.shape
        clip = x.reshape(-1, num_frames, channels, height * width).permute(0, 2, 3, 1)  # (B, C, H*W, T)
        reach = self.conv.kernel_size[0] // 2
        weight = self.conv.weight.transpose(2, 3)
        out = F.conv2d(F.silu(self.norm(clip)), weight, self.conv.bias, padding=(0, reach))
        return x + out.permute(0, 3, 1, 2).reshape(x.shape)


class TapsConv3D(Conv3D):
    """``Conv3D`` as two-dimensional convolutions of shifted frames, added up."""

    def forward(self, x: Tensor, num_frames: int, context: Tensor | None = None) -> Tensor:
        """As ``Conv3D.forward``."""
        if num_frames == 1:
            return x
        _, channels, height, width = x.shape
        clip = x.reshape(-1, num_frames, channels, height * width).transpose(1, 2)  # (B, C, T, H*W)
        normed = F.silu(self.norm(clip)).transpose(1, 2)  # (B, T, C, H*W)
        size = self.conv.kernel_size[0]
        padded = F.pad(normed, (0, 0, 0, 0, size // 2, size // 2))
        taps = [
            F.conv2d(
                padded[:, tap : tap + num_frames].reshape(-1, channels, height, width),
                self.conv.weight[:, :, tap],
                self.conv.bias if tap == 0 else None,
                padding=size // 2,
            )
            for tap in range(size)
        ]
        return x + sum(taps[1:], taps[0])


KINDS: dict[str, dict[type, type]] = {
    "conv1x1": {
        SelfAttention1D: ConvSelfAttention1D,
        SelfAttention3D: ConvSelfAttention3D,
        CrossAttention1D: ConvCrossAttention1D,
        CrossAttention3D: ConvCrossAttention3D,
    },
    "tiled": {CrossAttention1D: TiledCrossAttention1D},
    "time_last": {Conv1D: TimeLastConv1D},
    "taps": {Conv3D: TapsConv3D},
}
