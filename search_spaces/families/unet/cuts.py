"""What can be taken out of a UNet: a stage, a layer of a stage, a stage's attention, the mid block, heads, channels."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from search_spaces.families.contract import Cut, Narrowable, Scores
from search_spaces.families.unet.inherit import pairs
from search_spaces.families.unet.narrow import NarrowUNet, keep, prunable, width

PLAIN = {"CrossAttnDownBlock2D": "DownBlock2D", "CrossAttnUpBlock2D": "UpBlock2D"}
A_STAGE = ("layers_per_block", "attention_head_dim", "num_attention_heads", "transformer_layers_per_block")


def block_cuts(config: Mapping[str, Any]) -> list[Cut]:
    """Whole blocks that a UNet of this configuration can do without, each alone."""
    down, up = list(config["down_block_types"]), list(config["up_block_types"])
    stages, found = len(down), []
    depths = _a_stage(config, "layers_per_block")
    if stages > 1:
        changed: dict[str, Any] = {"down_block_types": down[:-1], "up_block_types": up[1:]}
        changed["block_out_channels"] = list(config["block_out_channels"])[:-1]
        for key in A_STAGE:
            if isinstance(config.get(key), list | tuple):
                changed[key] = list(config[key])[:-1]
        found.append(_structural(f"lowest of {stages} stages", changed))
    if config.get("mid_block_type") is not None:
        found.append(_structural("mid block", {"mid_block_type": None}))
    for stage, depth in enumerate(depths):
        if depth > 1:
            fewer = [*depths[:stage], depth - 1, *depths[stage + 1 :]]
            found.append(_structural(f"layer {depth} of stage {stage}", {"layers_per_block": fewer}))
    for key, types in (("down_block_types", down), ("up_block_types", up)):
        for place, kind in enumerate(types):
            if kind in PLAIN:
                plain = [*types[:place], PLAIN[kind], *types[place + 1 :]]
                found.append(_structural(f"attention of {key.removesuffix('_block_types')}.{place}", {key: plain}))
    return found


def _a_stage(config: Mapping[str, Any], key: str) -> list[int]:
    value = config[key]
    return list(value) if isinstance(value, list | tuple) else [value] * len(config["block_out_channels"])


def _structural(name: str, changed: Mapping[str, Any]) -> Cut:
    return Cut(name, lambda unet: without(unet, changed), changed)


def without(unet: Any, changed: Mapping[str, Any]) -> Any:
    """A copy of a UNet in another structure; every module that has a counterpart is that one, however narrow.

    What has none (a stage's first layer that other channels now come into) starts fresh.
    """
    config = {key: value for key, value in unet.config.items() if not key.startswith("_") and key != "widths"}
    with torch.device("meta"):
        made: Any = UNet2DConditionModel(**{**config, **changed})
    for name, wanted, candidates in list(pairs(made, unet)):
        found = next((module for _, module in candidates if _interchangeable(wanted, module)), None)
        made.set_submodule(name, _fresh(wanted, unet.device) if found is None else copy.deepcopy(found))
    return narrowed(made).train(unet.training)


def _fresh(module: nn.Module, device: torch.device) -> nn.Module:
    """A module that was made without memory, with memory and newly drawn weights, the same ones every time."""
    module.to_empty(device="cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # a cut that is tried again, now or after a stop, misses what it missed
        for part in module.modules():
            reset: Any = getattr(part, "reset_parameters", None)
            if reset is not None:
                reset()
    return module.to(device)


def _interchangeable(wanted: Any, module: Any) -> bool:
    """Whether one module may stand for another: the same parameters, but for the widths inside of attentions."""
    mine, theirs = dict(wanted.named_parameters()), dict(module.named_parameters())
    inner = [name for name, _ in prunable(wanted)]
    outside = [name for name in mine if not any(name.startswith(f"{part}.") for part in inner)]
    return mine.keys() == theirs.keys() and all(mine[name].shape == theirs[name].shape for name in outside)


def narrowed(unet: Any) -> Any:
    """A UNet whose configuration tells its widths, so that it can be stored: a ``NarrowUNet`` where it has any."""
    config = {key: value for key, value in unet.config.items() if not key.startswith("_") and key != "widths"}
    with torch.device("meta"):
        plain = UNet2DConditionModel(**config)
    usual = {name: width(module) for name, module in prunable(plain)}
    widths = {name: width(module) for name, module in prunable(unet) if width(module) != usual[name]}
    if not widths:
        return unet
    with torch.device("meta"):
        made: Any = NarrowUNet(widths=widths, **config)
    made.load_state_dict(unet.state_dict(), assign=True)
    return made


def width_cut(unit: str, scores: Scores, share: float) -> Cut:
    """The least sensitive share of all heads, or of all feed-forward channels; every module keeps at least one."""

    def make(unet: Any) -> Any:
        made = copy.deepcopy(unet)
        modules = {n: m for n, m in prunable(made) if isinstance(m, Attention) == (unit == "heads")}
        entries = [(float(score), name, at) for name in modules for at, score in enumerate(scores[name])]
        left = {name: width(module) for name, module in modules.items()}
        gone: dict[str, set[int]] = {}
        for _, name, at in sorted(entries)[: max(1, round(share * len(entries)))]:
            if left[name] > 1:
                left[name] -= 1
                gone.setdefault(name, set()).add(at)
        for name, places in gone.items():
            keep(modules[name], torch.tensor([at for at in range(len(scores[name])) if at not in places]), name)
        return narrowed(made).train(unet.training)

    return Cut(unit, make)


def narrowable(unet: Any) -> list[Narrowable]:
    """Attentions, head by head, and feed-forward layers, channel by channel."""
    found = []
    for name, module in prunable(unet):
        attention = isinstance(module, Attention)
        last: Any = module.to_out[0] if isinstance(module, Attention) else module.net[2]
        each = module.inner_dim // module.heads if isinstance(module, Attention) else 1
        found.append(Narrowable(name, "heads" if attention else "channels", width(module), last, each))
    return found


def leads(config: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether a UNet of this configuration still holds one of the wanted configuration."""
    stages = len(wanted["block_out_channels"])
    if list(config["block_out_channels"])[:stages] != list(wanted["block_out_channels"]):
        return False
    if wanted.get("mid_block_type") is not None and config.get("mid_block_type") is None:
        return False
    have, need = _a_stage(config, "layers_per_block")[:stages], _a_stage(wanted, "layers_per_block")
    downs, ups = list(config["down_block_types"])[:stages], list(config["up_block_types"])[-stages:]
    kinds = zip([*downs, *ups], [*wanted["down_block_types"], *wanted["up_block_types"]], strict=True)
    return all(a >= b for a, b in zip(have, need, strict=True)) and all(
        "CrossAttn" in a or "CrossAttn" not in b for a, b in kinds
    )


def stages(config: Mapping[str, Any]) -> str:
    """A configuration's stages, for people: channels and layers of each."""
    depths = _a_stage(config, "layers_per_block")
    return ", ".join(f"{n}x{depth}" for n, depth in zip(config["block_out_channels"], depths, strict=True))


def answer(unet: Any, noisy: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
    """What a UNet predicts of noisy images."""
    found: Tensor = unet(noisy, timestep, text).sample
    return found


def misfits(config: Mapping[str, Any], channels: int, text: int) -> tuple[list[str], list[str]]:
    """What of a UNet's configuration rules out latents of so many channels and a text of that width, and what a space's
    own UNet has otherwise."""
    wanted = {"in_channels": channels, "cross_attention_dim": text}
    usual = {"act_fn": "silu", "norm_eps": 1e-5, "flip_sin_to_cos": True, "freq_shift": 0}
    usual |= {"use_linear_projection": False}
    wrong = [
        f"{key} is {config[key]} there, {value} in the space" for key, value in wanted.items() if config[key] != value
    ]
    notes = [
        f"{key} is {config.get(key)}, {value} in the space"
        for key, value in usual.items()
        if config.get(key, value) != value
    ]
    return wrong, notes


def matching(whole: Any, pruned: Any) -> Mapping[str, str]:
    """Stage of the pruned UNet -> the uncut one's of the same resolution, where both give the same channels."""
    found = {}
    ups = len(whole.up_blocks) - len(pruned.up_blocks)
    for index, block in enumerate(pruned.down_blocks):
        # The lowest stage that is left does not halve any more, so its output is of another resolution.
        same = bool(block.downsamplers) == bool(whole.down_blocks[index].downsamplers)
        if same and _channels(block) == _channels(whole.down_blocks[index]):
            found[f"down_blocks.{index}"] = f"down_blocks.{index}"
    for index, block in enumerate(pruned.up_blocks):
        if _channels(block) == _channels(whole.up_blocks[index + ups]):
            found[f"up_blocks.{index}"] = f"up_blocks.{index + ups}"
    return found


def _channels(block: Any) -> int:
    return int(block.resnets[-1].out_channels)
