"""A video network: a backbone with the layers of an arrangement; and any workload as a module to be measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from search_spaces.arrangement import Arrangement
from search_spaces.blocks import block_spec, build_block
from search_spaces.blocks.slicing import fill, fixed
from search_spaces.ends import build_decoder, build_text_encoder
from search_spaces.errors import SpaceError
from search_spaces.families import build_backbone, build_part
from search_spaces.families.contract import Layer
from search_spaces.space import Position, Space
from search_spaces.variant import Variant
from search_spaces.workload import Workload


def module_name(position: str) -> str:
    """A position's name where torch allows no dots: ``down.1.0`` becomes ``down_1_0``."""
    return position.replace(".", "_")


def recompute(module: nn.Module) -> None:
    """From now on, in training, the module keeps only what enters it, and computes the rest again on the way back."""
    plain = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if module.training and torch.is_grad_enabled():
            return checkpoint(plain, *args, use_reentrant=False, **kwargs)
        return plain(*args, **kwargs)

    module.forward = forward


def build_layer(space: Space, position: Position, variant: Variant) -> nn.Module:
    """A layer of a position, freshly initialised, as wide beside its tensor as the space's backbone tells it."""
    layout = space.backbone.layout
    return build_block(variant, position.channels, layout.told_dim, layout.embedding)


class VideoNetwork(nn.Module):
    """The backbone with temporal layers in it.

    Attributes:
        unet: the frame, of whatever family; stored models know it by this name.
        temporal: for each position (by ``module_name``) its layers in execution order.
        reads: what each of them reads beside the running tensor.

    Raises:
        SpaceError: if the arrangement neither lies in the space nor is empty: the bare frame is measured too.
    """

    def __init__(self, space: Space, arrangement: Arrangement) -> None:
        super().__init__()
        if arrangement != space.empty():
            space.check(arrangement)
        self.arrangement = arrangement
        self.unet = build_backbone(space.backbone)
        self.temporal = nn.ModuleDict(
            {
                module_name(position.name): nn.ModuleList(
                    build_layer(space, position, variant) for variant in arrangement.at(position.name)
                )
                for position in space.positions
            }
        )
        self._run = space.backbone.family.run
        self.reads = {
            module_name(name): [block_spec(variant.block).reads for variant in variants]
            for name, variants in arrangement.layers
        }
        self._divided = {module_name(position.name): position.time_scale for position in space.positions}
        self._channels = {position.name: position.channels for position in space.positions}

    def take(self, place: str, given: Layer) -> int:
        """Give the first layer of a place the weights of a given block; the parameters that were filled.

        Raises:
            SpaceError: if the layer is wider than the given block.
        """
        chosen = self.arrangement.at(place)[:1] if place in self.arrangement.positions else ()
        if not chosen or fixed(chosen[0]) != fixed(given.variant):
            return 0
        layers: Any = self.temporal[module_name(place)]
        return fill(layers[0], chosen[0], self._channels[place], given)

    def forward(self, x: Tensor, timestep: Tensor, context: Tensor, num_frames: int) -> Tensor:
        """``x: (B*T, C, H, W)``, ``timestep: (B,)``, ``context: (B, L, D)`` to the shape of ``x``."""
        return self.run({"x": x, "timestep": timestep, "context": context, "frames": num_frames})

    def run(self, inputs: Mapping[str, Any], seen: dict[str, Tensor] | None = None) -> Tensor:
        """One evaluation on whatever the family reads; see ``Family.run``.

        Args:
            seen: is given the running tensor behind every place, by its name.
        """
        num_frames = inputs["frames"]

        def at(place: str, x: Tensor, beside: Mapping[str, Tensor]) -> Tensor:
            name = module_name(place)
            if name in self.temporal:
                frames = beside.get("frames", num_frames // self._divided[name])
                layers: Any = self.temporal[name]
                for layer, reads in zip(layers, self.reads[name], strict=True):
                    x = layer(x, frames, **{read: beside[read] for read in reads})
            if seen is not None:
                seen[place] = x
            return x

        return self._run(self.unet, inputs, at)


class _Block(nn.Module):
    """A block with ``num_frames`` bound, so that it takes tensors only."""

    def __init__(self, block: nn.Module, num_frames: int) -> None:
        super().__init__()
        self.block, self.num_frames = block, num_frames

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.block(x, self.num_frames) if context is None else self.block(x, self.num_frames, context=context)


class _TimedBlock(nn.Module):
    """The same of a block that reads the time embedding."""

    def __init__(self, block: nn.Module, num_frames: int) -> None:
        super().__init__()
        self.block, self.num_frames = block, num_frames

    def forward(self, x: Tensor, embedding: Tensor, context: Tensor | None = None) -> Tensor:
        text = {} if context is None else {"context": context}
        return self.block(x, self.num_frames, embedding=embedding, **text)


class _Network(nn.Module):
    """A network, or a part of one, with ``num_frames`` bound, so that it takes tensors only."""

    def __init__(self, network: VideoNetwork, num_frames: int, part: str = "") -> None:
        super().__init__()
        self.network, self.num_frames = network, num_frames
        self.part = {"part": part} if part else {}

    def forward(self, x: Tensor, timestep: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        told = {"timestep": timestep, "context": context}
        given = {name: tensor for name, tensor in told.items() if tensor is not None}
        return self.network.run({"x": x, "frames": self.num_frames, **given, **self.part})


def build_module(
    workload: Workload, space: Space | None = None, arrangement: Arrangement | None = None, seed: int = 0
) -> tuple[nn.Module, tuple[Tensor, ...], tuple[str, ...]]:
    """A workload as a module that takes tensors only, in evaluation mode: what a runtime lowers and measures.

    Weights are random and the same for the same ``seed``. Those that start at zero are filled as well, with small
    values, since a compiler may drop a product with zeros.

    Args:
        workload: a block, a backbone or a spatial part of it, a network, a text encoder or a decoder.
        space: the space that a backbone or network belongs to; the others need none.
        arrangement: that of a network.
        seed: of weights and example inputs.

    Returns:
        The module, example inputs, and the inputs' names: ``x`` and, where they are read, ``timestep`` and ``context``;
        ``tokens`` of a text encoder, which are int64; ``embedding`` of the time, for a spatial part and a block that
        reads it. All other tensors are float32 whatever the workload's precision:
        a lowering decides how to reach it.

    Raises:
        SpaceError: if the space or arrangement is missing, or is not the one that the workload names.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        words = 1
        if workload.block == "text_encoder":
            module, words = build_text_encoder(workload.name, workload.context_tokens, workload.context_dim)
            names: tuple[str, ...] = ("tokens",)
        elif workload.block == "decoder":
            module, names = build_decoder(workload.name), ("x",)
        elif workload.block == "spatial":
            module, names = _spatial_part(workload, space), ("x", "embedding", "context")
            names = names if workload.context_tokens else ("x",)
        elif workload.is_block:
            block = build_block(workload.variant, workload.channels, workload.context_dim, workload.embedding_dim)
            reads = block_spec(workload.block).reads
            timed = "embedding" in reads
            module = _TimedBlock(block, workload.frames) if timed else _Block(block, workload.frames)
            names = ("x", *(read for read in ("embedding", "context") if read in reads))
        else:
            network, part = _whole_network(workload, space, arrangement)
            module = _Network(network, workload.frames, part)
            timed = space is not None and space.backbone.layout.timed
            names = ("x", *["timestep"] * timed, *["context"] * bool(workload.context_tokens))
        _fill_zeros(module)
        examples = {
            "x": torch.randn(workload.batch * workload.frames, workload.channels, workload.height, workload.width),
            "timestep": torch.full((workload.batch,), 500.0),
            "context": torch.randn(workload.batch, workload.context_tokens, workload.context_dim),
            "embedding": torch.randn(workload.batch, workload.embedding_dim or getattr(module, "embedding", 1)),
            "tokens": torch.randint(words, (workload.batch, workload.context_tokens)),
        }
    return module.eval().requires_grad_(False), tuple(examples[name] for name in names), names


def _spatial_part(workload: Workload, space: Space | None) -> nn.Module:
    if space is None:
        raise SpaceError(f"{workload.base}: a spatial part belongs to a space; pass it")
    prefix, name = f"{space.backbone_id}.", workload.name
    if not name.startswith(prefix):
        raise SpaceError(f"{workload.base} names {name}, but the backbone passed is {space.backbone_id}")
    return build_part(space.backbone, name.removeprefix(prefix))


def _whole_network(
    workload: Workload, space: Space | None, arrangement: Arrangement | None
) -> tuple[VideoNetwork, str]:
    """The network that a workload names, and the part of it that is meant; no name means all of it."""
    if space is None:
        raise SpaceError(f"{workload.base}: a {workload.block} belongs to a space; pass it")
    if workload.block == "backbone":
        arrangement = space.empty()
        expected = space.backbone_id
    elif arrangement is None:
        raise SpaceError(f"{workload.base}: a network needs its arrangement; pass it")
    else:
        expected = f"{space.name}:{arrangement.key}"
    parts = {"", *(part.name for part in space.backbone.layout.parts if space.backbone.layout.in_parts)}
    name, _, part = workload.name.removeprefix(expected).partition(".")
    if not workload.name.startswith(expected) or name or part not in parts:
        raise SpaceError(f"{workload.base} names {workload.name}, but the {workload.block} passed is {expected}")
    return VideoNetwork(replace(space, backbone=space.measured()), arrangement), part


def _fill_zeros(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
