"""The network as a module that Core ML can take: tensors only, one clip shape."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nas.errors import NasError
from nas.tasks.noise import TIMESTEPS
from search_spaces.space import latent_shape

if TYPE_CHECKING:
    from nas.model.network import VideoUNet

TIMESTEP = "timestep"
NAMES = ("x", TIMESTEP, "context")
BETWEEN = 999.3  # a timestep between two float16s, which only an input in float32 hears
Shape = tuple[int, int, int]  # frames, height, width in pixels


class Bound(nn.Module):
    """The model with its number of frames bound: (T, C, H, W), (1,), (1, L, D) to the velocity (T, C, H, W)."""

    def __init__(self, model: VideoUNet, frames: int) -> None:
        super().__init__()
        self.network, self.diffusion, self.frames = model.network, model.diffusion, frames

    def forward(self, x: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        def predict(sample: Tensor, told: Tensor) -> Tensor:
            return self.network(sample, told, context, self.frames)

        if self.diffusion.prediction == "velocity":
            return predict(x, timestep)
        return self.diffusion.as_velocity(x, timestep / TIMESTEPS, predict)


def bound_at(unet: VideoUNet, shape: Shape, between: bool = False) -> tuple[Bound, tuple[Tensor, ...]]:
    """The network bound to a clip of ``shape``, and random inputs of it.

    Args:
        between: the timestep is one that float16 cannot hold.

    Raises:
        NasError: if the autoencoder or the network cannot divide the shape.
    """
    space = unet.space
    frames, height, width = latent_shape(space, *shape)
    generator = torch.Generator().manual_seed(0)
    inputs = (
        torch.randn(frames, space.latent_channels, height, width, generator=generator),
        torch.full((1,), BETWEEN if between else 500.0),
        torch.randn(1, space.text.tokens, space.text.dim, generator=generator),
    )
    return Bound(unet, frames), inputs


def parse_shape(text: str) -> Shape:
    """``16x512x512``: frames, height and width in pixels.

    Raises:
        NasError: if it is not three whole numbers.
    """
    parts = text.split("x")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) for part in parts):
        raise NasError(f"--shape {text}: must be FRAMESxHEIGHTxWIDTH in pixels, such as 16x512x512")
    frames, height, width = (int(part) for part in parts)
    return frames, height, width


def function_name(shape: Shape) -> str:
    """What the function of a shape is called in a package of several: ``f16x512x512``."""
    return "f" + "x".join(map(str, shape))
