"""The supernet: every variant at every slot of every position, over one shared backbone; one path runs at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nas.errors import NasError
from nas.supernet.held import Held, holds
from nas.supernet.shelf import Shelf, build_shelf
from nas.tasks import USUAL, Prediction, open_task
from nas.tasks.contract import Question
from nas.tasks.noise import TIMESTEPS
from search_spaces.arrangement import Arrangement
from search_spaces.blocks import block_spec
from search_spaces.families import build_backbone
from search_spaces.families.contract import Layer
from search_spaces.network import VideoNetwork, build_layer, module_name
from search_spaces.space import Space


class Supernet(nn.Module):
    """All networks of a space in one, sharing weights.

    A layer is shared by all arrangements that hold its variant in its slot (first, second, ... layer of a position).
    Layers off the path are not run, so they get no gradient, no decay and no optimiser step. Where every layer starts
    as the identity, the supernet starts as its frame.

    Args:
        space: what may be chosen.
        prediction: what a denoiser is trained to answer; called, it always answers as its task judges it.
        held: the layers that it has; all where not given. A path with another one is refused.

    Attributes:
        task: what its networks learn.
        unet: the frame, of whatever family; checkpoints know it by this name.
        layers: position -> the shelf of its layers.

    Source: single-path one-shot weight sharing (Guo et al., arXiv 1904.00420), over the temporal layers of SnapGen-V.
    """

    def __init__(self, space: Space, prediction: Prediction = USUAL, held: Held | None = None) -> None:
        super().__init__()
        self.space, self.prediction, self.held = space, prediction, held
        self.task = open_task(space.backbone.family.task, {} if prediction == USUAL else {"prediction": prediction})
        self.unet = build_backbone(space.backbone)
        self.layers = nn.ModuleDict(
            {
                module_name(position.name): build_shelf(
                    position, partial(build_layer, space, position), None if held is None else held[position.name]
                )
                for position in space.positions
            }
        )
        self._family = space.backbone.family
        self._reads = {
            variant: block_spec(variant.block).reads for position in space.positions for variant in position.variants
        }
        self._divided = {position.name: position.time_scale for position in space.positions}

    def path(self, arrangement: Arrangement) -> dict[str, list[nn.Module]]:
        """The layers of an arrangement by position, in execution order."""
        self._check_held(arrangement)
        found: dict[str, list[nn.Module]] = {}
        for position, variants in arrangement.layers:
            shelf = self.shelf(position)
            found[position] = [shelf.of(slot, variant) for slot, variant in enumerate(variants)]
        return found

    def _check_held(self, arrangement: Arrangement) -> None:
        if self.held is not None and not holds(self.held, arrangement):
            raise NasError(
                f"{arrangement.key}: its layers are not all in this supernet, which was trained for a budget that they "
                "do not meet; train another run under a wider one, or without train.paths=within_budget"
            )

    def shelf(self, position: str) -> Shelf:
        """Who holds the layers of a position."""
        shelf = self.layers[module_name(position)]
        assert isinstance(shelf, Shelf)
        return shelf

    def take(self, place: str, given: Layer) -> int:
        """Give the first slot of a place the weights of a given block; the parameters that were filled.

        Raises:
            SpaceError: if something of its kind that may stand there is wider.
        """
        return self.shelf(place).take(0, given) if module_name(place) in self.layers else 0

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        num_frames: int,
        arrangement: Arrangement | Sequence[Arrangement],
    ) -> Tensor:
        """A denoiser's answer along one path, as its task judges it; or along several.

        Args:
            x: (B*T, C, H, W), on the straight line of flow matching. timestep: (B,) in 0..1000, 1000 times the level.
            context: (B, L, D). num_frames: T. arrangement: see ``predict``.

        Returns:
            (B*T, C, H, W).
        """
        if self.prediction == USUAL:
            given = {"x": x, "timestep": timestep, "context": context, "frames": num_frames}
            return self.predict(given, arrangement)
        inputs = {"noisy": x.unflatten(0, (-1, num_frames)), "level": timestep / TIMESTEPS, "context": context}
        return self.task.answer(lambda given: self.predict(given, arrangement), Question(inputs, {})).flatten(0, 1)

    def predict(
        self,
        inputs: Mapping[str, Any],
        arrangement: Arrangement | Sequence[Arrangement],
        seen: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """One evaluation of the network itself along one path, or along several.

        Args:
            inputs: what the family reads, clips folded: ``x (B*T, C, H, W)``, ``frames`` and what else it has.
            arrangement: of this space. Of several, each gets an equal part of the batch, one after the other: the
                frame runs once for all of them.
            seen: is given the running tensor behind every place, by its name.
        """
        arrangements = [arrangement] if isinstance(arrangement, Arrangement) else arrangement
        paths = [(self.path(a), dict(a.layers)) for a in arrangements]
        frames = inputs["frames"]

        def along(path: int, place: str, x: Tensor, beside: Mapping[str, Tensor]) -> Tensor:
            layers, variants = paths[path]
            for layer, variant in zip(layers.get(place, ()), variants.get(place, ()), strict=True):
                told = {read: beside[read].chunk(len(paths))[path] for read in self._reads[variant]}
                x = layer(x, beside.get("frames", frames // self._divided[place]), **told)
            return x

        def at(place: str, x: Tensor, beside: Mapping[str, Tensor]) -> Tensor:
            parts = [along(i, place, part, beside) for i, part in enumerate(x.chunk(len(paths)))]
            x = parts[0] if len(parts) == 1 else torch.cat(parts)
            if seen is not None:
                seen[place] = x
            return x

        return self._family.run(self.unet, inputs, at)

    def blocks(self) -> Iterator[nn.Module]:
        """The frame's units and all layers: recomputed, compiled and sharded one by one, as paths differ."""
        yield from self._family.units(self.unet)
        for shelf in self.layers.values():
            yield from shelf.values()  # type: ignore[operator]

    def extract(self, arrangement: Arrangement) -> VideoNetwork:
        """A plain network of one arrangement with the weights it has here, copied."""
        self._check_held(arrangement)
        network = VideoNetwork(self.space, arrangement)
        network.unet.load_state_dict(self.unet.state_dict())
        for position, variants in arrangement.layers:
            own: Any = network.temporal[module_name(position)]
            for slot, (target, variant) in enumerate(zip(own, variants, strict=True)):
                target.load_state_dict(self.shelf(position).extract(slot, variant))
        return network.train(self.training)

    def temporal_parameters(self) -> Iterator[nn.Parameter]:
        """Everything that the search chooses among; what stands alone at its position trains with the frame."""
        for position in self.space.positions:
            if position.size > 1:
                yield from self.shelf(position.name).parameters()
