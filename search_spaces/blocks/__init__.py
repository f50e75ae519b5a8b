"""The blocks by name, their parameters, and how one is built.

No torch until one is built.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from search_spaces.blocks.attention import (
    Attention,
    along_time,
    of_frames,
    over_clip,
    text_along_time,
    text_over_clip,
)
from search_spaces.errors import SpaceError, unknown
from search_spaces.registry import Registry
from search_spaces.variant import Variant
from search_spaces.workload import Workload

if TYPE_CHECKING:
    from torch import nn

#: Entry points of this group name a ``BlockSpec``; that is how another package adds blocks.
GROUP = "temporal_nas.blocks"
MAX_KERNEL = 99
MAX_WIDTH, MAX_DEPTH = 8192, 64

#: What a network may hand a block beside the running tensor: the text (B, L, D), and the time's embedding (B, E).
READABLE = ("context", "embedding")
NOTHING: frozenset[str] = frozenset()
TEXT = frozenset({"context"})

#: Which part of a tensor a smaller variant has, axis by axis: a slice, or the places that it keeps.
Index = tuple[slice | tuple[int, ...], ...]

#: Given a variant's parameters and the channels of its position: what is wrong, with the remedy, or None.
Rule = Callable[[Mapping[str, int], int], str | None]


def heads_divide_channels(params: Mapping[str, int], channels: int) -> str | None:
    """Each head takes an equal share of the channels."""
    heads = params["heads"]
    if heads >= 1 and channels % heads == 0:
        return None
    choices = [str(n) for n in range(1, min(channels, 64) + 1) if channels % n == 0]
    return f"heads must divide channels, but {channels} channels and heads={heads}; choose {', '.join(choices)}"


def odd_kernel(params: Mapping[str, int], channels: int) -> str | None:
    """An even kernel would shift its output by half a step against the residual it is added to."""
    size = params["kernel_size"]
    if size > MAX_KERNEL:
        return f"kernel_size must be at most {MAX_KERNEL}, but is {size}; choose 3 or 5"
    if size >= 1 and size % 2 == 1:
        return None
    return f"kernel_size must be odd, so that time stays aligned, but is {size}; choose {max(0, size) // 2 * 2 + 1}"


def widths_and_depths(params: Mapping[str, int], channels: int) -> str | None:
    """A stage has units, and channels inside them."""
    for name, most in (("width", MAX_WIDTH), ("depth", MAX_DEPTH)):
        if not 1 <= params[name] <= most:
            return f"{name} must be from 1 to {most}, but is {params[name]}"
    return None


def heads_fit_channels(params: Mapping[str, int], channels: int) -> str | None:
    """Heads of an even size lie inside the channels, as many as there is room for or fewer; widths are above 0."""
    heads, size, room = params["heads"], params["size"], channels // max(1, params["size"])
    if min(params.values()) < 1:
        return f"heads, size and ffn must be at least 1, but are {heads}, {size} and {params['ffn']}"
    if size % 2 or channels % size:
        return (
            f"size of a head must be even and divide channels, but is {size} and channels {channels}; choose "
            f"{', '.join(str(n) for n in range(2, min(channels, 256) + 1, 2) if channels % n == 0) or 'other channels'}"
        )
    if heads > room:
        return f"heads must be at most {room}, as {channels} channels have room for so many of {size}, but is {heads}"
    return None


def heads_of_width(params: Mapping[str, int], channels: int) -> str | None:
    """Heads of a stated width fill the channels, and key-value heads divide them."""
    width, shared = params["head_width"], params["kv_heads"]
    if width < 1 or channels % width:
        choices = ", ".join(str(n) for n in (8, 16, 32, 64, 128) if channels % n == 0) or str(channels)
        return f"head_width must divide channels, but {channels} channels and head_width={width}; choose {choices}"
    heads = channels // width
    if shared < 0 or (shared and heads % shared):
        choices = ", ".join(str(n) for n in (0, *(n for n in range(1, heads + 1) if heads % n == 0)))
        return (
            f"kv_heads must divide the {heads} heads ({channels} channels, head_width={width}), but is {shared}; "
            f"choose {choices} (0 is all)"
        )
    return None


def within(**limits: tuple[int, int]) -> Rule:
    """Parameters that lie between two bounds."""

    def rule(params: Mapping[str, int], channels: int) -> str | None:
        for name, (least, most) in limits.items():
            if not least <= params[name] <= most:
                return f"{name} must be {least} to {most}, but is {params[name]}; choose {least}"
        return None

    return rule


@dataclass(frozen=True)
class BlockSpec:
    """What is known of a block without loading it.

    Attributes:
        path: ``module:Class``; the class is called as ``Class(channels, **params)``, with ``context_dim=`` and
            ``embedding_dim=`` as well if it reads them.
        params: every parameter and its default.
        reads: what ``forward`` reads beside the running tensor, of ``READABLE``.
        summary: one phrase for people.
        rules: what must hold between parameters and channels.
        identity: whether a fresh one changes nothing, and a trained one no image; false for a block that is a choice
            among its like and no addition to a network.
        across: whether a frame's output depends on other frames; one of which it does not can be run frame by frame.
        widths: parameters in which a smaller variant is a part of a larger one. The class then has a static method
            ``slices(channels, params, whole) -> {parameter name: Index}``: what of the whole's parameters it has.
        attention: of a workload of it, its largest; None where it attends to nothing. A block that attends can be
            lowered with its attention as one operation, or spelled out.
        letter: what it is called where a network is spelled in letters, such as C and T; empty where it is not.
    """

    path: str
    params: Mapping[str, int]
    reads: frozenset[str]
    summary: str
    rules: tuple[Rule, ...] = ()
    identity: bool = True
    across: bool = True
    widths: frozenset[str] = NOTHING
    attention: Callable[[Workload], Attention] | None = None
    letter: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.reads, frozenset) or not self.reads <= set(READABLE):
            raise SpaceError(
                f"{self.path}: reads must be a frozenset of {' and '.join(READABLE)}, but is {self.reads!r:.60}"
            )
        if not isinstance(self.widths, frozenset) or not self.widths <= set(self.params):
            raise SpaceError(f"{self.path}: widths must be a frozenset of its params, but is {self.widths!r:.60}")


_TIME = frozenset({"embedding"})
_FEED = {"ratio": 3, "gated": 1}
_FEED_RULE = within(ratio=(1, 16), gated=(0, 1))
_HEADS = {"head_width": 64, "kv_heads": 1}
_EXPANSION_RULE = within(expansion=(1, 16))


def _attention(path: str, reads: frozenset[str], summary: str, attention: Callable[[Workload], Attention]) -> BlockSpec:
    path = f"search_spaces.blocks.{path}"
    return BlockSpec(path, {"heads": 8}, reads, summary, (heads_divide_channels,), attention=attention)


def _convolution(name: str, summary: str) -> BlockSpec:
    return BlockSpec(f"search_spaces.blocks.convolution:{name}", {"kernel_size": 3}, NOTHING, summary, (odd_kernel,))


def _transformer(name: str, summary: str) -> BlockSpec:
    return BlockSpec(
        f"search_spaces.blocks.transformer:{name}",
        {"heads": 1, "ffn": 64, "size": 16},
        frozenset(READABLE),
        summary,
        (heads_fit_channels,),
        identity=False,
        widths=frozenset({"heads", "ffn"}),
        attention=over_clip,
    )


def _spatial(name: str, params: Mapping[str, int], summary: str, *rules: Rule) -> BlockSpec:
    path = f"search_spaces.blocks.spatial_convolution:{name}"
    return BlockSpec(path, params, _TIME, summary, rules, identity=False, letter="C")


def _staged(
    name: str, params: Mapping[str, int], reads: frozenset[str], letter: str, summary: str, *rules: Rule
) -> BlockSpec:
    path, attention = f"search_spaces.blocks.spatial_transformer:{name}", of_frames if letter == "T" else None
    return BlockSpec(path, params, reads, summary, rules, identity=False, letter=letter, attention=attention)


def _residual(name: str, summary: str, across: bool = True, heads: int = 0) -> BlockSpec:
    return BlockSpec(
        f"search_spaces.blocks.residual:{name}",
        {"width": 64, "depth": 1, **({"heads": heads} if heads else {})},
        NOTHING,
        summary,
        (widths_and_depths, *([heads_divide_channels] if heads else [])),
        identity=False,
        across=across,
        attention=over_clip if heads else None,
    )


BLOCKS: dict[str, BlockSpec] = {
    "SelfAttention1D": _attention("self_attention:SelfAttention1D", NOTHING, "attention along time", along_time),
    "SelfAttention3D": _attention(
        "self_attention:SelfAttention3D", NOTHING, "attention over time and space", over_clip
    ),
    "CrossAttention1D": _attention("cross_attention:CrossAttention1D", TEXT, "text read with time", text_along_time),
    "CrossAttention3D": _attention(
        "cross_attention:CrossAttention3D", TEXT, "text read with time and place", text_over_clip
    ),
    "Conv1D": _convolution("Conv1D", "convolution along time"),
    "Conv3D": _convolution("Conv3D", "convolution over time and space"),
    "LTXBlock": _transformer("LTXBlock", "a transformer block of LTX-Video"),
    "WanBlock": _transformer("WanBlock", "a transformer block of Wan"),
    "FullConv": _spatial("FullConv", {}, "two full convolutions of each frame"),
    "SeparableConv": _spatial(
        "SeparableConv", {"expansion": 2}, "two separable convolutions of each frame", _EXPANSION_RULE
    ),
    "FusedMBConv": _spatial(
        "FusedMBConv", {"expansion": 4}, "a full convolution that widens, and a mix back", _EXPANSION_RULE
    ),
    "TextTransformer": _staged(
        "TextTransformer",
        {"self_attention": 1, **_HEADS, **_FEED},
        TEXT,
        "T",
        "a transformer block that reads the text, with self-attention or without",
        *(within(self_attention=(0, 1)), heads_of_width, _FEED_RULE),
    ),
    "SelfTransformer": _staged(
        "SelfTransformer",
        {**_HEADS, **_FEED},
        NOTHING,
        "T",
        "a transformer block that reads no text",
        *(heads_of_width, _FEED_RULE),
    ),
    "FeedForward": _staged("FeedForward", _FEED, NOTHING, "F", "a feed-forward layer without attention", _FEED_RULE),
    "Residual2D": _residual("Residual2D", "residual convolutions, frame by frame", across=False),
    "Residual21D": _residual("Residual21D", "residual convolutions over space, then along time"),
    "CausalConv3D": _residual("CausalConv3D", "residual convolutions over time and space, none ahead"),
    "CausalAttention3D": _residual("CausalAttention3D", "the same with attention to earlier frames", heads=4),
}


REGISTRY = Registry("block", GROUP, BLOCKS, BlockSpec)


def block_spec(name: str) -> BlockSpec:
    """What is known of a block: ours, or one that an installed package adds.

    Raises:
        SpaceError: if nobody knows it, or the package's entry point is no ``BlockSpec``.
    """
    return REGISTRY.get(name)


def has_attention(workload: Workload) -> bool:
    """Whether the workload holds attention, so that it has a fused and a decomposed form."""
    if not workload.is_block:
        return workload.block in ("backbone", "network", "spatial")
    return workload.block in REGISTRY and block_spec(workload.block).attention is not None


def attention_of(workload: Workload) -> Attention | None:
    """The largest attention of a block's workload; None of any other, and of a block that attends to nothing."""
    if not workload.is_block or workload.block not in REGISTRY:
        return None
    spec = block_spec(workload.block)
    return spec.attention(workload) if spec.attention else None


def complete(variant: Variant, channels: int) -> Variant:
    """The variant with defaults filled in, checked against its block's rules for a position of so many channels.

    Raises:
        SpaceError: if the block or a parameter is unknown, or a rule is broken.
    """
    spec = block_spec(variant.block)
    for name, _ in variant.params:
        if name not in spec.params:
            raise SpaceError(f"{variant.block}: {unknown('parameter', name, spec.params)}")
    full = Variant(variant.block, tuple({**spec.params, **dict(variant.params)}.items()))
    for rule in spec.rules:
        broken = rule(dict(full.params), channels)
        if broken:
            raise SpaceError(f"{variant.block}: {broken}")
    return full


def build_block(variant: Variant, channels: int, context_dim: int = 0, embedding_dim: int = 0) -> nn.Module:
    """A block as a module, freshly initialised (an identity until it is trained, unless its spec says otherwise).

    Its ``forward(x, num_frames)`` takes ``x: (B*T, C, H, W)`` and, by keyword, what its spec reads:
    ``context: (B, L, context_dim)`` and ``embedding: (B, embedding_dim)``.

    Raises:
        SpaceError: if the variant breaks its block's rules, or reads what has no width here.
    """
    full, spec = complete(variant, channels), block_spec(variant.block)
    if "context" in spec.reads and context_dim < 1:
        raise SpaceError(f"{variant.block} reads the text; give context_dim, the width of its embedding")
    if "embedding" in spec.reads and embedding_dim < 1:
        raise SpaceError(
            f"{variant.block} reads the time embedding, which this network does not hand out; give embedding_dim, its "
            "width, or another block"
        )
    widths = {"context_dim": context_dim, "embedding_dim": embedding_dim}
    extra = {f"{read}_dim": widths[f"{read}_dim"] for read in spec.reads}
    made: nn.Module = block_class(variant.block)(channels, **dict(full.params), **extra)
    return made


def block_class(name: str) -> Any:
    """The class of a block.

    Raises:
        SpaceError: if nobody knows the block.
    """
    module, _, kind = block_spec(name).path.partition(":")
    return getattr(import_module(module), kind)
