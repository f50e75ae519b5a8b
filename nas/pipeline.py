"""Text to video with a built model, as a diffusers pipeline that loads from one folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from nas.errors import NasError
from nas.model import VideoUNet


@dataclass
class VideoOutput(BaseOutput):
    """frames: (B, T, H, W, 3) float in 0..1, on the CPU."""

    frames: Tensor


class TextToVideoPipeline(DiffusionPipeline):
    """Flow-matching sampling with Euler steps and classifier-free guidance.

    Args:
        unet: the searched network. text_encoder, tokenizer: of its training. scheduler: flow-matching Euler.
        vae: decodes latents; absent for a space that works in pixels.
    """

    _optional_components = ["vae"]
    model_cpu_offload_seq = "text_encoder->unet->vae"

    def __init__(
        self,
        unet: VideoUNet,
        text_encoder: Any,
        tokenizer: Any,
        scheduler: FlowMatchEulerDiscreteScheduler,
        vae: Any = None,
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, text_encoder=text_encoder, tokenizer=tokenizer, scheduler=scheduler, vae=vae)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        num_inference_steps: int = 25,
        sigmas: Sequence[float] | None = None,
        guidance_scale: float = 1.0,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        generator: torch.Generator | None = None,
        callback: Callable[[int, int], None] | None = None,
    ) -> VideoOutput:
        """Sample one video a prompt.

        Args:
            num_inference_steps: evaluations of the network (twice as many with guidance).
            sigmas: the noise levels to step through, 1 first; by default evenly spaced from 1 to 1 / steps. They are
                always passed on: left alone, the scheduler puts its last step at a noise level of nearly zero.
            guidance_scale: classifier-free guidance; 1 is off.
            num_frames, height, width: latent frames, latent height and width; by default the training clip's.
            generator: of the initial noise.
            callback: called with (step, steps) after each step.

        Raises:
            NasError: if a prompt is longer than the text encoder takes, a size does not fit the network, or the noise
                levels do not fall.
        """
        if num_inference_steps < 1:
            raise NasError(f"num_inference_steps must be 1 or more, but is {num_inference_steps}")
        levels = list(sigmas) if sigmas else torch.linspace(1, 1 / num_inference_steps, num_inference_steps).tolist()
        if not all(1 >= a > b > 0 for a, b in zip(levels, [*levels[1:], 1e-12], strict=True)):
            raise NasError(f"sigmas must fall, from 1 or less to above 0, but are {levels}")
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        space = self.unet.space
        frames, channels, default_height, default_width = space.latent_shape("training")
        height, width = height or default_height, width or default_width
        down = max(position.downscale for position in space.positions)
        if height % down or width % down:
            raise NasError(
                f"a latent of {height}x{width} cannot be halved to the lowest stage; use multiples of {down}"
            )
        context = self.encode(prompts)
        empty = self.encode([""] * len(prompts)) if guidance_scale != 1.0 else None
        shape = (len(prompts), channels, num_frames or frames, height, width)
        latents = randn_tensor(shape, generator=generator, device=self.device, dtype=self.unet.dtype)
        self.scheduler.set_timesteps(sigmas=levels, device=self.device)
        for step, timestep in enumerate(self.scheduler.timesteps):
            velocity = self.unet(latents, timestep, context).sample
            if empty is not None:
                plain = self.unet(latents, timestep, empty).sample
                velocity = plain + guidance_scale * (velocity - plain)
            latents = self.scheduler.step(velocity, timestep, latents).prev_sample
            if callback is not None:
                callback(step + 1, len(levels))
        return VideoOutput(frames=self.decode(latents))

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """(B, L, D) text states of the prompts.

        Raises:
            NasError: if a prompt has more tokens than the encoder takes; nothing is cut silently.
        """
        limit = self.text_encoder.config.max_position_embeddings
        for text in prompts:
            length = len(self.tokenizer(text, verbose=False).input_ids)
            if length > limit:
                raise NasError(f"the prompt has {length} tokens, the text encoder takes {limit}: {text!r}; shorten it")
        tokens = self.tokenizer(list(prompts), padding="max_length", max_length=limit, return_tensors="pt")
        return self.text_encoder(tokens.input_ids.to(self.device)).last_hidden_state

    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, T, h, w) latents -> (B, T, H, W, 3) frames in 0..1."""
        batch, channels, frames = latents.shape[:3]
        if self.vae is not None:
            folded = latents.transpose(1, 2).flatten(0, 1) / self.vae.config.scaling_factor
            pixels = self.vae.decode(folded).sample.unflatten(0, (batch, frames))
        else:
            pixels = latents.transpose(1, 2)
        return ((pixels.float().clamp(-1, 1) + 1) / 2).permute(0, 1, 3, 4, 2).cpu()
