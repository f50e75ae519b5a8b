"""The staged UNet: its contract, its blocks', and what is refused."""

from __future__ import annotations

import pytest
import torch

from search_spaces.blocks import complete
from search_spaces.blocks.spatial_transformer import GroupedAttention
from search_spaces.errors import SpaceError
from search_spaces.families.staged_unet.layout import PRESETS, read_shape, staged_layout
from search_spaces.inspect import check
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


def test_shared_key_value_heads_are_those_of_torch() -> None:
    """Folding the query heads of a group into the sequence is a way of writing it, not another function."""
    torch.manual_seed(0)
    x, context = torch.randn(2, 5, 32), torch.randn(2, 7, 12)
    for shared in (0, 1, 2, 4):
        attention = GroupedAttention(32, 12, 8, shared)
        torch.nn.init.normal_(attention.to_out.weight)
        query, key, value = (
            project(of).unflatten(-1, (-1, 8)).transpose(1, 2)
            for project, of in ((attention.to_q, x), (attention.to_k, context), (attention.to_v, context))
        )
        expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)
        expected = attention.to_out(expected.transpose(1, 2).flatten(2))
        assert torch.allclose(attention(x, context), expected, atol=1e-5), f"kv_heads={shared}"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"up_groups": 3}, "up_groups must be at most 2 in stage 0"),
        ({"groups": [1, 1]}, "groups must be one number, or one for each of 3 stages"),
        ({"blocks": 0}, "blocks must be a whole number of at least 1"),
        ({"block_out_channels": []}, "block_out_channels must list 1 to 12 widths"),
        ({"block_out_channels": [8, "wide"]}, "block_out_channels must be a whole number"),
    ],
)
def test_a_wrong_configuration_is_one_line(change: dict[str, object], message: str) -> None:
    with pytest.raises(SpaceError, match=message) as caught:
        staged_layout({**PRESETS["tiny_image"].config, **change})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "params, message",
    [
        ({"kv_heads": 3, "head_width": 8}, "kv_heads must divide the 8 heads"),
        ({"head_width": 48}, "head_width must divide channels"),
        ({"ratio": 0, "head_width": 8}, "ratio must be 1 to 16"),
        ({"gated": 2, "head_width": 8}, "gated must be 0 to 1"),
    ],
)
def test_a_wrong_transformer_is_one_line(params: dict[str, int], message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        complete(Variant.of("TextTransformer", **params), 64)


def test_the_way_up_reads_the_last_skips_where_it_is_shorter() -> None:
    shape = read_shape({**PRESETS["snapgen"].config, "up_groups": [3, 1, 2]})
    assert [name for name, _ in shape.skips(1)] == ["down.1.1.time"]
    assert [name for name, _ in shape.skips(2)] == ["down.2.1.time", "down.2.0.time"]
    assert [name for name, _ in shape.skips(0)] == ["down.0.1.time", "down.0.0.time", "conv_in"]


def test_a_space_of_choices_checks_out() -> None:
    assert check("tiny_image") == []
