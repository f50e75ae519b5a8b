"""A given staged UNet's weights into the frame of a space: module by module, where shapes agree."""

from __future__ import annotations

from torch import Tensor, nn

from search_spaces.errors import SpaceError
from search_spaces.families.contract import Mapped
from search_spaces.families.staged_unet.frame import StagedUNet, units


def givers() -> dict[str, type]:
    """Frames of this family."""
    return {StagedUNet.__name__: StagedUNet}


def inherit(frame: StagedUNet, given: nn.Module) -> Mapped:
    """Copy every module whose name and shapes agree, in place.

    Raises:
        SpaceError: if nothing agrees.
    """
    assert isinstance(given, StagedUNet)
    theirs = dict(given.named_modules())
    names = {id(module): name for name, module in frame.named_modules()}
    blocks: dict[str, str] = {}
    fresh: list[str] = []
    copied = 0
    for module in (frame.told, *units(frame)):
        name = names[id(module)]
        if name in theirs and _shapes(module) == _shapes(theirs[name]):
            module.load_state_dict(theirs[name].state_dict())
            blocks[name] = name
            copied += sum(parameter.numel() for parameter in module.parameters())
        else:
            fresh.append(name)
    if not copied:
        raise SpaceError(
            f"no part has the frame's shapes (channels {list(given.config['block_out_channels'])}, the frame's "
            f"{list(frame.config['block_out_channels'])}); give another staged UNet"
        )
    return Mapped("", blocks, tuple(fresh), copied, sum(parameter.numel() for parameter in frame.parameters()))


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    state: dict[str, Tensor] = module.state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}
