"""Over how many tokens a block attends: what its spec says as ``attention``."""

from __future__ import annotations

from dataclasses import dataclass

from search_spaces.workload import Workload


@dataclass(frozen=True)
class Attention:
    """One attention: ``groups`` independent ones of ``queries`` against ``keys``, for each of ``heads``."""

    groups: int
    heads: int
    queries: int
    keys: int


def along_time(workload: Workload) -> Attention:
    """The frames of each place among themselves."""
    return Attention(_pixels(workload) * workload.batch, _heads(workload), workload.frames, workload.frames)


def over_clip(workload: Workload) -> Attention:
    """All places of all frames among themselves."""
    tokens = workload.frames * _pixels(workload)
    return Attention(workload.batch, _heads(workload), tokens, tokens)


def text_along_time(workload: Workload) -> Attention:
    """The frames of each place to the text."""
    groups = workload.batch * _pixels(workload)
    return Attention(groups, _heads(workload), workload.frames, workload.context_tokens)


def text_over_clip(workload: Workload) -> Attention:
    """All places of all frames to the text."""
    return Attention(workload.batch, _heads(workload), workload.frames * _pixels(workload), workload.context_tokens)


def of_frames(workload: Workload) -> Attention:
    """The places of each frame among themselves, or to a longer text; without self-attention, of a clip to the text."""
    pixels, params = _pixels(workload), dict(workload.params)
    heads = workload.channels // params["head_width"]
    if params.get("self_attention", 1):
        return Attention(workload.batch * workload.frames, heads, pixels, max(pixels, workload.context_tokens))
    return Attention(workload.batch, heads, workload.frames * pixels, workload.context_tokens)


def _pixels(workload: Workload) -> int:
    return workload.height * workload.width


def _heads(workload: Workload) -> int:
    return dict(workload.params).get("heads", 1)
