"""A diffusers UNet's weights into a pruned backbone: matching blocks are copied, the rest is named."""

from __future__ import annotations

from typing import Any

from nas.errors import NasError
from nas.pretrained.files import choose_weights
from nas.pretrained.loading import load_weights, loading, open_part
from search_spaces.families.unet.inherit import Mapped, _same_shapes, pairs


def check_unet(source: str) -> None:
    """Whether there is a UNet with weights at all, by its configuration and its files alone.

    Raises:
        NasError: if not.
    """
    load_unet(source, weights=False)


def load_unet(source: str, weights: bool = True) -> Any:
    """A ``UNet2DConditionModel``, or what ``nas prune`` made of one, by hub id or folder; of a pipeline its ``unet``.

    Raises:
        NasError: if it cannot be loaded.
    """
    from diffusers import UNet2DConditionModel

    from search_spaces.families.unet.narrow import NarrowUNet

    with loading(source, "UNet", "give a hub id or a folder with its config.json and weights"):
        folder, config = open_part(source, "unet")
        known = {one.__name__: one for one in (UNet2DConditionModel, NarrowUNet)}
        kind = config.get("_class_name")
        if kind not in known:
            raise NasError(
                f"{source}: holds a {kind or 'model of no stated kind'}, not a UNet2DConditionModel such as "
                "Stable Diffusion 1.5's"
            )
        return load_weights(known[kind], folder, source) if weights else choose_weights(folder)


def init_backbone(backbone: Any, source: str) -> Mapped:
    """Copy what matches of a UNet into ``backbone``, in place.

    Stages are paired by resolution, from the highest down, as pruning removes the lowest ones. Within a stage each
    resnet, attention and sampler takes the weights of the one at the same relative place whose shapes are all equal,
    in order and each used once: the first pair of an up stage reads what comes from below, the last the first skip.

    Raises:
        NasError: if the source cannot be loaded, or nothing matches.
    """
    given = load_unet(source)
    blocks: dict[str, str] = {}
    fresh: list[str] = []
    copied = 0
    for name, wanted, candidates in pairs(backbone, given):
        found = next(((other, module) for other, module in candidates if _same_shapes(wanted, module)), None)
        if found is None:
            fresh.append(name)
            continue
        wanted.load_state_dict(found[1].state_dict())
        blocks[name] = found[0]
        copied += sum(parameter.numel() for parameter in wanted.parameters())
    total = sum(parameter.numel() for parameter in backbone.parameters())
    if not copied:
        raise NasError(
            f"{source}: no block has the backbone's shapes (channels {list(given.config.block_out_channels)}, the "
            f"backbone's {list(backbone.config.block_out_channels)}); give another UNet"
        )
    notes = [
        f"{key} is {given.config[key]} there, {backbone.config[key]} here"
        for key in ("attention_head_dim", "act_fn", "norm_num_groups", "norm_eps")
        if given.config.get(key) != backbone.config.get(key)
    ]
    return Mapped(source, blocks, tuple(fresh), copied, total, tuple(notes))
