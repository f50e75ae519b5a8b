"""The model that comes out of a search: a plain diffusers model, its arrangement in config.json."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor, nn

from nas.tasks.noise import TIMESTEPS, Diffusion, Prediction
from search_spaces.arrangement import Arrangement
from search_spaces.network import VideoNetwork
from search_spaces.space import Space


class VideoUNet(ModelMixin, ConfigMixin):
    """A spatial UNet with the temporal layers of one arrangement.

    Takes and returns videos as diffusers has them, ``(B, C, T, H, W)``; ``T = 1`` is an image. The whole definition
    of the space is kept in config.json, so a saved model loads without the YAML it was searched in.

    Args:
        space: ``Space.to_json()``.
        arrangement: ``Arrangement.to_json()``.
        prediction: what the network inside was trained to answer; called, the model always gives a velocity.

    Raises:
        SpaceError: if the arrangement does not fit the space.
    """

    _supports_gradient_checkpointing = False

    @register_to_config
    def __init__(self, space: dict[str, Any], arrangement: dict[str, Any], prediction: Prediction = "velocity") -> None:
        super().__init__()
        self.diffusion = Diffusion(prediction)
        self.network = VideoNetwork(Space.from_json(space), Arrangement.from_json(arrangement))

    @classmethod
    def of(
        cls, space: Space, network: VideoNetwork, arrangement: Arrangement, prediction: Prediction = "velocity"
    ) -> VideoUNet:
        """Wrap a network that has its weights already, as the supernet extracts it."""
        model = cls(space=space.to_json(), arrangement=arrangement.to_json(), prediction=prediction)
        model.network.load_state_dict(network.state_dict())
        return model.eval()

    @property
    def space(self) -> Space:
        return Space.from_json(self.config["space"])

    @property
    def arrangement(self) -> Arrangement:
        return Arrangement.from_json(self.config["arrangement"])

    def blocks(self) -> Iterator[nn.Module]:
        """The frame's units and all layers: recomputed, compiled and sharded one by one."""
        yield from self.space.backbone.family.units(self.network.unet)
        for layers in self.network.temporal.values():
            yield from layers  # type: ignore[misc]

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        return_dict: bool = True,
    ) -> UNet2DConditionOutput | tuple[Tensor]:
        """One evaluation of the network.

        Args:
            sample: (B, C, T, H, W) noisy video. timestep: scalar or (B,), in 0..1000.
            encoder_hidden_states: (B, L, D) text.

        Returns:
            The predicted velocity, (B, C, T, H, W).
        """
        batch, channels, frames, height, width = sample.shape
        steps = torch.as_tensor(timestep, device=sample.device, dtype=torch.float32).expand(batch)

        def predict(noisy: Tensor, told: Tensor) -> Tensor:
            folded = noisy.transpose(1, 2).reshape(batch * frames, channels, height, width)
            out = self.network(folded, told, encoder_hidden_states, frames)
            return out.reshape(batch, frames, -1, height, width).transpose(1, 2)

        if self.diffusion.prediction == "velocity":
            video = predict(sample, steps)
        else:
            video = self.diffusion.as_velocity(sample, steps / TIMESTEPS, predict).to(sample.dtype)
        return UNet2DConditionOutput(sample=video) if return_dict else (video,)
