"""Which workloads attend, and over how many tokens."""

from __future__ import annotations

from dataclasses import dataclass

from search_spaces.workload import Workload

#: Blocks that attend over a whole clip, and to the text.
TRANSFORMERS = ("LTXBlock", "WanBlock")


@dataclass(frozen=True)
class Attention:
    """One attention: ``groups`` independent ones of ``queries`` against ``keys``, for each of ``heads``."""

    groups: int
    heads: int
    queries: int
    keys: int


_TRANSFORMERS = ("SelfTransformer", "TextTransformer")


def has_attention(workload: Workload) -> bool:
    """Whether the workload holds attention, so that it has a fused and a decomposed form."""
    whole = workload.block in ("backbone", "network", "spatial")
    return whole or "Attention" in workload.block or workload.block in (*TRANSFORMERS, *_TRANSFORMERS)


def attention_of(workload: Workload) -> Attention | None:
    """The largest attention of one of our blocks; None for any other workload."""
    pixels = workload.height * workload.width
    heads = dict(workload.params).get("heads", 1)
    frames, batch, text = workload.frames, workload.batch, workload.context_tokens
    shapes = {
        "SelfAttention1D": (batch * pixels, frames, frames),
        "SelfAttention3D": (batch, frames * pixels, frames * pixels),
        "CausalAttention3D": (batch, frames * pixels, frames * pixels),
        "CrossAttention1D": (batch * pixels, frames, text),
        "CrossAttention3D": (batch, frames * pixels, text),
    }
    shapes |= dict.fromkeys(TRANSFORMERS, (batch, frames * pixels, frames * pixels))
    if workload.block in _TRANSFORMERS:
        params = dict(workload.params)
        heads = workload.channels // params["head_width"]
        if params.get("self_attention", 1):
            return Attention(batch * frames, heads, pixels, max(pixels, text))
        return Attention(batch, heads, frames * pixels, text)
    if workload.block not in shapes:
        return None
    groups, queries, keys = shapes[workload.block]
    return Attention(groups, heads, queries, keys)
