"""A model that this toolkit built, as weights to start another search from: its frame and its chosen layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config

from search_spaces.arrangement import Arrangement
from search_spaces.families.contract import Layer
from search_spaces.network import VideoNetwork, module_name
from search_spaces.space import Space

BUILT = "VideoUNet"  # what its config.json calls it


class Built(ModelMixin, ConfigMixin):
    """The network of a built model by the names of its weights; see ``nas.model.network.VideoUNet``."""

    @register_to_config
    def __init__(self, space: dict[str, Any], arrangement: dict[str, Any], prediction: str = "velocity") -> None:
        super().__init__()
        self.network = VideoNetwork(Space.from_json(space), Arrangement.from_json(arrangement))

    def layers(self) -> dict[str, Layer]:
        """The first layer of each position that holds one."""
        found: dict[str, Layer] = {}
        for name, variants in self.network.arrangement.layers:
            if variants:
                held: Any = self.network.temporal[module_name(name)]
                found[name] = Layer(variants[0], held[0].state_dict())
        return found


def family_of_built(config: Mapping[str, Any]) -> str:
    """The family of a built model, by its config.json."""
    return Space.from_json(config["space"]).backbone.family.name
