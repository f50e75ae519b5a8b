"""diffusers' transformers without their blocks, as frames; and a clip's way through them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from diffusers import LTXVideoTransformer3DModel, WanTransformer3DModel
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from search_spaces.families.contract import At, Watch

FEATURES = (0.25, 0.5, 0.75)  # of the depth: where a discriminator or a distillation may read


def build_frame(config: Mapping[str, Any]) -> nn.Module:
    """diffusers' own model of this configuration with no block in it."""
    heads, size = config["num_attention_heads"], config["attention_head_dim"]
    kinds: dict[str, type[LTXFrame] | type[WanFrame]] = {"ltx": LTXFrame, "wan": WanFrame}
    return kinds[config["transformer"]](config["num_layers"], config["patch_size"], heads, size, config)


class LTXFrame(LTXVideoTransformer3DModel):
    """LTX's transformer around its blocks.

    Args:
        depth: how many blocks stand in it. patch: latents a side of a token.
    """

    def __init__(self, depth: int, patch: int, heads: int, size: int, config: Mapping[str, Any]) -> None:
        super().__init__(
            in_channels=config["in_channels"],
            out_channels=config["in_channels"],
            num_attention_heads=heads,
            attention_head_dim=size,
            cross_attention_dim=heads * size,
            num_layers=0,
            caption_channels=config["caption_channels"],
        )
        self.depth, self.patch, self.channels = depth, patch, heads * size

    def parts(self) -> list[nn.Module]:
        return [self.time_embed]

    def enter(self, x: Tensor, frames: int) -> Tensor:
        """(B*T, C, H, W) to (B*T, D, H/p, W/p)."""
        patches = F.pixel_unshuffle(x, self.patch) if self.patch > 1 else x
        return self.proj_in(patches.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous()

    def tell(self, timestep: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The time's embedding for the blocks (B, 6*D) and for the end (B, D), and the text for the blocks."""
        given, last = self.time_embed(timestep, batch_size=len(timestep), hidden_dtype=context.dtype)
        return given, last, self.caption_projection(context)

    def leave(self, x: Tensor, last: Tensor, frames: int) -> Tensor:
        """(B*T, D, H/p, W/p) to (B*T, C, H, W)."""
        shift, scale = _per_frame(self.scale_shift_table[None] + last[:, None], frames).unbind(1)
        tokens = self.norm_out(x.permute(0, 2, 3, 1))
        out = self.proj_out(tokens * (1 + scale[:, None, None]) + shift[:, None, None]).permute(0, 3, 1, 2)
        return F.pixel_shuffle(out, self.patch) if self.patch > 1 else out.contiguous()


class WanFrame(WanTransformer3DModel):
    """Wan's transformer around its blocks; see ``LTXFrame``."""

    def __init__(self, depth: int, patch: int, heads: int, size: int, config: Mapping[str, Any]) -> None:
        super().__init__(
            patch_size=(1, patch, patch),
            num_attention_heads=heads,
            attention_head_dim=size,
            in_channels=config["in_channels"],
            out_channels=config["in_channels"],
            text_dim=config["caption_channels"],
            num_layers=0,
        )
        self.rope = nn.Identity()  # blocks know where tokens stand
        self.depth, self.patch, self.channels = depth, patch, heads * size

    def parts(self) -> list[nn.Module]:
        return [self.condition_embedder.time_embedder]

    def enter(self, x: Tensor, frames: int) -> Tensor:
        clip = x.unflatten(0, (-1, frames)).transpose(1, 2)
        return self.patch_embedding(clip).transpose(1, 2).flatten(0, 1)

    def tell(self, timestep: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        last, given, text, _ = self.condition_embedder(timestep, context)
        return given, last, text

    def leave(self, x: Tensor, last: Tensor, frames: int) -> Tensor:
        shift, scale = _per_frame(self.scale_shift_table + last[:, None], frames).unbind(1)
        tokens = self.norm_out(x.permute(0, 2, 3, 1))
        out = self.proj_out(tokens * (1 + scale[:, None, None]) + shift[:, None, None])
        count, height, width, _ = out.shape
        # A token's pixels come before its channels there, and after them where they are laid out.
        out = out.reshape(count, height * width, self.patch**2, -1).transpose(2, 3)
        return F.pixel_shuffle(out.reshape(count, height, width, -1).permute(0, 3, 1, 2), self.patch)


def _per_frame(told: Tensor, frames: int) -> Tensor:
    """(B, ...) to (B*T, ...)."""
    return told[:, None].expand(-1, frames, *told.shape[1:]).flatten(0, 1)


def units(frame: Any) -> Iterator[nn.Module]:
    """The embedding of the time; what else there is beside the blocks is small, and stays together."""
    yield from frame.parts()


def features(frame: Any) -> dict[str, int]:
    """Blocks at a quarter, half and three quarters of the depth."""
    places = sorted({min(frame.depth - 1, int(frame.depth * share)) for share in FEATURES})
    return {f"block.{place}": frame.channels for place in places}


def run_transformer(frame: Any, inputs: Mapping[str, Any], at: At, watch: Watch | None = None) -> Tensor:
    """One evaluation; ``at`` is handed the feature map (B*T, D, H/p, W/p) at every block's place.

    With diffusers' own blocks there, the result is that of its model's ``forward``.
    """
    see = watch or (lambda name, x, skips: None)
    frames = inputs["frames"]
    x = frame.enter(inputs["x"], frames)
    see("enter", x, [])
    embedding, last, text = frame.tell(inputs["timestep"], inputs["context"])
    beside = {"context": text, "embedding": embedding}
    for index in range(frame.depth):
        see(f"block.{index}", x, [])
        x = at(f"block.{index}", x, beside)
    x = frame.leave(x, last, frames)
    see("leave", x, [])
    return torch.as_tensor(x)
