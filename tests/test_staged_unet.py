"""The staged UNet: its contract, its blocks', and SnapGen's published size."""

from __future__ import annotations

from search_spaces.testing import BlockContract, FamilyContract
from search_spaces.variant import Variant


class TestStagedUNet(FamilyContract):
    preset = "tiny_image"
    config = {"block_out_channels": [8, 16], "cross_attention_dim": 8, "mid_blocks": 1, "up_groups": None}


class _Small(BlockContract):
    channels = 64
    height, width = 4, 3


class TestFullConv(_Small):
    variant = Variant.of("FullConv")


class TestSeparableConv(_Small):
    variant = Variant.of("SeparableConv", expansion=2)


class TestFusedMBConv(_Small):
    variant = Variant.of("FusedMBConv", expansion=2)


class TestTextTransformer(_Small):
    variant = Variant.of("TextTransformer", self_attention=1, head_width=16, kv_heads=2, ratio=2, gated=1)


class TestTextTransformerWithoutSelfAttention(_Small):
    variant = Variant.of("TextTransformer", self_attention=0, head_width=16, kv_heads=1, ratio=2, gated=0)


class TestSelfTransformer(_Small):
    variant = Variant.of("SelfTransformer", head_width=16, kv_heads=0, ratio=2, gated=0)


class TestFeedForward(_Small):
    variant = Variant.of("FeedForward", ratio=2, gated=1)
