"""Blocks of a picture in one small Core ML package: attention stays one operation, nothing is copied, all compute."""

from __future__ import annotations

from pathlib import Path

import torch
from evaluator_packages import converted, evaluable
from torch import Tensor, nn

from device_profiler.evaluator.evaluate import Arithmetic, evaluate
from search_spaces.blocks import block_spec, build_block
from search_spaces.variant import Variant

HEADS = "head_width=8,ratio=2"
ALL = {  # variant -> its attentions
    "FullConv": 0,
    "SeparableConv(expansion=2)": 0,
    "FusedMBConv(expansion=2)": 0,
    f"TextTransformer({HEADS},self_attention=1,gated=1,kv_heads=1)": 2,
    f"TextTransformer({HEADS},self_attention=1,gated=0,kv_heads=2)": 2,
    f"TextTransformer({HEADS},self_attention=0,gated=1,kv_heads=0)": 1,
    f"SelfTransformer({HEADS},gated=1,kv_heads=1)": 1,
    "FeedForward(gated=0,ratio=3)": 0,
}


class Chain(nn.Module):
    """Every block after the other, on two frames of 6x4 with 32 channels."""

    def __init__(self) -> None:
        super().__init__()
        variants = [Variant.parse(label) for label in ALL]
        self.blocks = nn.ModuleList(build_block(variant, 32, 12, 20) for variant in variants)
        self.reads = [block_spec(variant.block).reads for variant in variants]

    def forward(self, x: Tensor, embedding: Tensor, context: Tensor) -> Tensor:
        beside = {"embedding": embedding, "context": context}
        for block, reads in zip(self.blocks, self.reads, strict=True):
            x = block(x, 2, **{name: beside[name] for name in reads})
        return x


def test_blocks_of_a_picture_lower_and_the_package_computes_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    chain = Chain().eval().requires_grad_(False)
    for parameter in chain.parameters():
        if not parameter.any():
            parameter.normal_(std=0.1)
    inputs = torch.randn(2, 32, 6, 4), torch.randn(1, 20), torch.randn(1, 5, 12)
    names = ("x", "embedding", "context")
    package = evaluable(converted(chain, inputs, tmp_path, names))
    kinds = [operation.kind for operation in package.operations]
    assert kinds.count("scaled_dot_product_attention") == sum(ALL.values())
    assert kinds.count("tile") == 3, "the time is told each frame in every convolution; keys and values are not copied"
    feeds = {name: tensor.half() for name, tensor in zip(names, inputs, strict=True)}
    (out,) = evaluate(package, feeds, Arithmetic.FLOAT32).values()
    expected = chain(*inputs)
    assert torch.allclose(out.float(), expected, atol=1e-2 * float(expected.abs().max()))
