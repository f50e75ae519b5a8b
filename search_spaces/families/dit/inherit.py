"""A diffusers transformer's weights into a frame, and into the blocks that stand in it."""

from __future__ import annotations

from typing import Any

from diffusers import LTXVideoTransformer3DModel, WanTransformer3DModel
from torch import Tensor, nn

from search_spaces.errors import SpaceError
from search_spaces.families.contract import Layer, Mapped
from search_spaces.families.dit.run import WanFrame
from search_spaces.variant import Variant


def givers() -> dict[str, type]:
    """diffusers' LTX and Wan."""
    return {kind.__name__: kind for kind in (LTXVideoTransformer3DModel, WanTransformer3DModel)}


def inherit(frame: Any, given: Any) -> Mapped:
    """Copy all of a transformer but its blocks into ``frame``, module by module where shapes agree.

    Raises:
        SpaceError: if it is of another kind, or its width is another.
    """
    wan = isinstance(frame, WanFrame)
    if wan != isinstance(given, WanTransformer3DModel):
        raise SpaceError(
            f"is a {type(given).__name__}, but the backbone is {'Wan' if wan else 'LTX'}'s transformer; give one of it"
        )
    _check_config(frame, given)
    theirs, blocks, fresh, copied = given.state_dict(), {}, [], 0
    for name in dict.fromkeys(key.split(".")[0] for key in frame.state_dict()):
        mine = {key: value for key, value in frame.state_dict().items() if key.split(".")[0] == name}
        if any(key not in theirs or theirs[key].shape != value.shape for key, value in mine.items()):
            fresh.append(name)
            continue
        for key, value in mine.items():
            value.copy_(theirs[key])
        blocks[name] = name
        copied += sum(value.numel() for value in mine.values())
    if not copied:
        raise SpaceError(
            f"nothing has the backbone's shapes: its width is {given.proj_out.in_features}, the backbone's "
            f"{frame.channels}; give another transformer"
        )
    found = layers(given)
    if len(found) != frame.depth:
        raise SpaceError(
            f"has {len(found)} blocks, but the backbone has {frame.depth} places; give a transformer of as many"
        )
    total = sum(parameter.numel() for parameter in frame.parameters())
    return Mapped("", blocks, tuple(fresh), copied, total, layers=found)


def _check_config(frame: Any, given: Any) -> None:
    """What shapes do not tell, and what our blocks do not know.

    Raises:
        SpaceError: naming what differs.
    """
    wanted: dict[str, Any] = {"attention_head_dim": frame.config["attention_head_dim"]}
    known: dict[str, Any] = {"qk_norm": "rms_norm_across_heads"}
    if isinstance(frame, WanFrame):
        wanted["patch_size"], known = list(frame.config["patch_size"]), {**known, "cross_attn_norm": True, "eps": 1e-6}
        known |= {"image_dim": None, "added_kv_proj_dim": None}
    else:
        known |= {"patch_size_t": 1, "norm_elementwise_affine": False, "norm_eps": 1e-6}
        known |= {"activation_fn": "gelu-approximate", "attention_bias": True, "attention_out_bias": True}
    for key, value in {**wanted, **known}.items():
        found = given.config.get(key, value)
        if (list(found) if isinstance(found, tuple) else found) != value:
            whose = "the backbone's" if key in wanted else "the one that is known here"
            raise SpaceError(f"{key} is {found} there, {value} is {whose}; give another transformer")


def layers(given: Any) -> dict[str, Layer]:
    """A transformer's blocks by place, each as the variant that it is and its weights."""
    wan = isinstance(given, WanTransformer3DModel)
    blocks: Any = given.blocks if wan else given.transformer_blocks
    return {f"block.{index}": _layer(block, wan, given.config) for index, block in enumerate(blocks)}


def _layer(block: nn.Module, wan: bool, config: Any) -> Layer:
    weights: dict[str, Tensor] = dict(block.state_dict())
    ffn = weights[f"{'ffn' if wan else 'ff'}.net.2.weight"].shape[1]
    heads, size = config["num_attention_heads"], config["attention_head_dim"]
    return Layer(Variant.of("WanBlock" if wan else "LTXBlock", heads=heads, ffn=ffn, size=size), weights)
