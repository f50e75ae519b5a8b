"""Diffusion transformers: the contracts, and that frame and blocks together are diffusers' own models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import LTXVideoTransformer3DModel, WanTransformer3DModel
from torch import nn

from nas.errors import NasError
from nas.pretrained.given import init_network
from nas.report.drawing import network_svg
from nas.supernet.supernet import Supernet
from search_spaces.blocks.transformer import LTX_STEPS, kept_heads
from search_spaces.errors import SpaceError
from search_spaces.network import VideoNetwork
from search_spaces.planning import load_plan
from search_spaces.space import Space
from search_spaces.testing import BlockContract, FamilyContract
from search_spaces.variant import Variant

SMALL = {"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 3, "caption_channels": 10}
LTX = {"transformer": "ltx", "in_channels": 8, "patch_size": 1, **SMALL}
WAN = {"transformer": "wan", "in_channels": 4, "patch_size": 2, **SMALL}


class TestLTX(FamilyContract):
    preset = "ltx_video"
    config = LTX
    variant = Variant.of("LTXBlock", heads=2, ffn=20, size=12)


class TestWan(FamilyContract):
    preset = "wan_video"
    config = WAN
    variant = Variant.of("WanBlock", heads=1, ffn=20, size=12)


class TestLTXBlock(BlockContract):
    variant = Variant.of("LTXBlock", heads=3, ffn=20, size=4)
    embedding_dim = 96


class TestWanBlock(BlockContract):
    variant = Variant.of("WanBlock", heads=3, ffn=20, size=4)
    embedding_dim = 96


def transformer(kind: str) -> Any:
    """diffusers' own, small and random."""
    torch.manual_seed(4)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 3}
    if kind == "ltx":
        return LTXVideoTransformer3DModel(
            in_channels=8, out_channels=8, cross_attention_dim=24, caption_channels=10, **sizes
        ).eval()
    return WanTransformer3DModel(
        patch_size=(1, 2, 2), in_channels=4, out_channels=4, text_dim=10, freq_dim=256, ffn_dim=96, **sizes
    ).eval()


def small_space(folder: Path, kind: str, shelf: str = "sliced") -> Space:
    """A space over a small transformer: the whole block, or one of half the heads."""
    config = LTX if kind == "ltx" else WAN
    block = "LTXBlock" if kind == "ltx" else "WanBlock"
    given = ", ".join(f"{name}: {value}" for name, value in config.items())
    whole, half = (f"{block}(heads={heads},ffn={ffn},size=12)" for heads, ffn in ((2, 96), (1, 40)))
    position = f'{{max_layers: 1, shelf: {shelf}, variants: ["{whole}", "{half}"]}}'
    lines = [
        f"name: small_{kind}",
        f"backbone: {{name: {'ltx_video' if kind == 'ltx' else 'wan_video'}, config: {{{given}}}}}",
        "text: {tokens: 5}",
        "clips: {deployment: {frames: 4, height: 6, width: 4, fps: 8}}",
        "positions:",
        *(f"  block.{index}: {position}" for index in range(3)),
        "baseline:",
        *(f'  block.{index}: ["{whole}"]' for index in range(3)),
    ]
    path = folder / f"small_{kind}.yaml"
    path.write_text("\n".join(lines))
    return Space.load(path)


def diffusers_answer(model: Any, kind: str, x: torch.Tensor, time: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Of a clip (4, C, 6, 4)."""
    clip = x.transpose(0, 1)[None]
    if kind == "wan":
        return model(clip, time, text).sample[0].transpose(0, 1)
    scale = tuple(step * most for step, most in zip(LTX_STEPS, (20, 2048, 2048), strict=True))
    tokens = clip.flatten(2).transpose(1, 2)
    out = model(tokens, text, time[:, None], None, 4, 6, 4, rope_interpolation_scale=scale).sample
    return out.transpose(1, 2).reshape(1, -1, 4, 6, 4)[0].transpose(0, 1)


@pytest.mark.parametrize("kind", ["ltx", "wan"])
def test_a_folder_of_diffusers_becomes_the_uncut_network(tmp_path: Path, kind: str) -> None:
    """Its weights in several files, as large models have them; the supernet's baseline then is that model."""
    space, given = small_space(tmp_path, kind), transformer(kind)
    given.save_pretrained(str(tmp_path / "given"), max_shard_size="40KB")
    assert len(list((tmp_path / "given").glob("*.safetensors"))) > 1
    supernet = Supernet(space).eval()
    told = init_network(space.backbone.family, supernet, str(tmp_path / "given"))
    assert told.copied == told.total == sum(p.numel() for p in given.parameters()) and not told.fresh
    x, time = torch.randn(4, space.latent_channels, 6, 4), torch.tensor([321.0])
    text = torch.randn(1, 5, 10)
    with torch.no_grad():
        answer = supernet(x, time, text, 4, space.baseline())
        assert torch.allclose(answer, diffusers_answer(given, kind, x, time, text), atol=2e-4)
        assert torch.equal(supernet.extract(space.baseline())(x, time, text, 4), answer)
        less = space.baseline().replace("block.1", ())
        assert not torch.allclose(supernet(x, time, text, 4, less), answer, atol=1e-3)


def test_a_built_network_takes_a_folders_blocks_too(tmp_path: Path) -> None:
    space, given = small_space(tmp_path, "wan"), transformer("wan")
    given.save_pretrained(str(tmp_path / "given"))
    narrow = space.baseline().replace("block.1", (space.positions[1].variants[1],))
    supernet, network = Supernet(space), VideoNetwork(space, narrow)
    for one in (supernet, network):
        init_network(space.backbone.family, one, str(tmp_path / "given"))
    expected = supernet.extract(narrow).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    "kind, change, message",
    [
        ("ltx", "other", "is a WanTransformer3DModel, but the backbone is LTX's transformer"),
        ("wan", "heads", "attention_head_dim is 24 there, 12 is the backbone's"),
        ("ltx", "layers", "has 2 blocks, but the backbone has 3 places; give a transformer of as many"),
    ],
)
def test_another_transformer_is_one_line(tmp_path: Path, kind: str, change: str, message: str) -> None:
    space = small_space(tmp_path, kind)
    given = transformer("wan") if change == "other" else transformer(kind)
    if change == "heads":
        given = WanTransformer3DModel.from_config({**given.config, "num_attention_heads": 1, "attention_head_dim": 24})
    if change == "layers":
        given.transformer_blocks = nn.ModuleList(list(given.transformer_blocks)[:2])
        given.register_to_config(num_layers=2)
    given.save_pretrained(str(tmp_path / "given"))
    with pytest.raises(NasError, match=message) as caught:
        init_network(space.backbone.family, Supernet(space), str(tmp_path / "given"))
    assert "\n" not in str(caught.value)


def test_the_published_sizes_are_met() -> None:
    """1.9B uncut; 0.9B with 20 blocks of 20 heads and a feed-forward width of 6144."""
    space = Space.load("mobile_dit")
    plan = load_plan(space)
    assert space.latent_shape() == (7, 128, 12, 16)
    assert plan.parameters(space.baseline()) / 1e9 == pytest.approx(1.92, abs=0.01)
    cut = space.arrange(
        {f"block.{i}": [Variant.of("LTXBlock", heads=20, ffn=6144, size=64)] * (i < 20) for i in range(28)}
    )
    assert plan.parameters(cut) / 1e9 == pytest.approx(0.95, abs=0.01)


def test_fewer_heads_are_some_of_more_and_lie_evenly() -> None:
    for room in (1, 4, 12, 32):
        for heads in range(1, room):
            assert set(kept_heads(heads, room)) < set(kept_heads(heads + 1, room))
    assert kept_heads(4, 16) == [0, 4, 8, 12] and kept_heads(16, 32) == list(range(0, 32, 2))


@pytest.mark.parametrize(
    "variant, message",
    [
        (Variant.of("LTXBlock", heads=5, ffn=8, size=8), "heads must be at most 4"),
        (Variant.of("LTXBlock", heads=2, ffn=8, size=7), "size of a head must be even and divide channels"),
        (Variant.of("WanBlock", heads=2, ffn=0, size=8), "heads, size and ffn must be at least 1"),
    ],
)
def test_heads_that_do_not_fit_are_one_line(variant: Variant, message: str) -> None:
    from search_spaces.blocks import complete

    with pytest.raises(SpaceError, match=message):
        complete(variant, 32)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"transformer": "pixart"}, "transformer: unknown kind 'pixart'"),
        ({"num_layers": 0}, "num_layers must be a whole number of at least 1"),
        ({"patch_size": 3}, "in_channels must divide by 9"),
        ({"attention_head_dim": 7}, "attention_head_dim must be even"),
    ],
)
def test_a_wrong_configuration_is_one_line(change: dict[str, Any], message: str) -> None:
    from search_spaces.families.dit import FAMILY

    with pytest.raises(SpaceError, match=message):
        FAMILY.layout({**LTX, **change})


def test_a_block_is_drawn_with_what_it_keeps_of_its_heads_and_its_width() -> None:
    space = Space.load("tiny_dit")
    chosen = space.baseline().replace("block.1", [Variant.of("LTXBlock", heads=1, ffn=64, size=16)])
    chosen = chosen.replace("block.2", ())
    layers = [(name, list(labels)) for name, labels in chosen.labels().items()]
    svg = network_svg(load_plan(space), layers, {}, width=860, title="x")
    assert "heads 1 of 4" in svg and "ffn 64 of 256" in svg and svg.count("ffn 256 of 256") == 4
    assert svg.count('class="cut"') == 3 + 5 and svg.count('class="kept"') == 1 + 4 * 4 + 5
