"""The supernet: every variant at every slot of every position, over one shared backbone; one path runs at a time."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from search_spaces.arrangement import Arrangement
from search_spaces.backbones import backbone_forward, build_backbone
from search_spaces.blocks import build_block
from search_spaces.network import VideoNetwork, module_name
from search_spaces.space import Space
from search_spaces.variant import Variant


def slot_name(slot: int, variant: Variant) -> str:
    """A layer's name inside its position: torch allows no dots, and a state dict should read well."""
    return f"{slot}:{variant.label}"


class Supernet(nn.Module):
    """All networks of a space in one, sharing weights.

    A layer is shared by all arrangements that hold its variant in its slot (first, second, ... layer of a position).
    Layers off the path are not run, so they get no gradient, no decay and no optimiser step. Every layer starts as
    the identity: the supernet starts as the image backbone.

    Args:
        space: what may be chosen.

    Attributes:
        unet: the spatial backbone. layers: position -> slot and variant -> block.

    Source: single-path one-shot weight sharing (Guo et al., arXiv 1904.00420), over the temporal layers of SnapGen-V.
    """

    def __init__(self, space: Space) -> None:
        super().__init__()
        self.space = space
        self.unet = build_backbone(space)
        self.layers = nn.ModuleDict(
            {
                module_name(position.name): nn.ModuleDict(
                    {
                        slot_name(slot, variant): build_block(variant, position.channels, space.text.dim)
                        for slot in range(position.max_layers)
                        for variant in position.variants
                    }
                )
                for position in space.positions
            }
        )
        self._run = backbone_forward(space)

    def path(self, arrangement: Arrangement) -> dict[str, list[nn.Module]]:
        """The layers of an arrangement by position, in execution order."""
        found: dict[str, list[nn.Module]] = {}
        for position, variants in arrangement.layers:
            shelf = self.layers[module_name(position)]
            assert isinstance(shelf, nn.ModuleDict)
            found[position] = [shelf[slot_name(slot, variant)] for slot, variant in enumerate(variants)]
        return found

    def forward(
        self, x: Tensor, timestep: Tensor, context: Tensor, num_frames: int, arrangement: Arrangement
    ) -> Tensor:
        """One evaluation along one path.

        Args:
            x: (B*T, C, H, W). timestep: (B,) in 0..1000. context: (B, L, D). num_frames: T.
            arrangement: of this space.

        Returns:
            (B*T, C, H, W).
        """
        layers = self.path(arrangement)

        def temporal(position: str, x: Tensor) -> Tensor:
            for layer in layers.get(position, ()):
                x = layer(x, num_frames, context)
            return x

        return self._run(self.unet, x, timestep, context, num_frames, temporal)

    def extract(self, arrangement: Arrangement) -> VideoNetwork:
        """A plain network of one arrangement with the weights it has here, copied."""
        network = VideoNetwork(self.space, arrangement)
        network.unet.load_state_dict(self.unet.state_dict())
        for position, layers in self.path(arrangement).items():
            own = network.temporal[module_name(position)]
            assert isinstance(own, nn.ModuleList)
            for target, source in zip(own, layers, strict=True):
                target.load_state_dict(source.state_dict())
        return network.train(self.training)

    def temporal_parameters(self) -> Iterator[nn.Parameter]:
        """Everything that the search chooses among."""
        return self.layers.parameters()
