"""Text to video, or to pictures, with a built model, as a diffusers pipeline that loads from one folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from nas.errors import NasError
from nas.finite import check_finite
from nas.media import to_uint8
from nas.model.folder import INDEX, Index, _damaged, read_index
from nas.model.levels import plan_levels
from nas.model.network import VideoUNet
from nas.outputs import new_folder
from nas.pretrained.autoencoder import VideoAutoencoder
from nas.pretrained.hub import read_config
from nas.pretrained.loading import load_weights, loading

SHARD = "2GB"  # of weights in one file


@dataclass
class VideoOutput(BaseOutput):
    """frames: (B, T, H, W, 3) float in 0..1, on the CPU; and how they were sampled."""

    frames: Tensor
    steps: int
    sigmas: list[float]
    guidance: float

    @property
    def images(self) -> list[Any]:
        """Pictures of ``PIL``, as diffusers' text-to-image pipelines give them: the first frame of each."""
        from PIL import Image

        return [Image.fromarray(to_uint8(video[0].numpy())) for video in self.frames]


class TextToVideoPipeline(DiffusionPipeline):
    """Flow-matching sampling with Euler steps and classifier-free guidance.

    Args:
        unet: the searched network. text_encoder, tokenizer: of its training. scheduler: flow-matching Euler.
        vae: decodes latents; absent for a space that works in pixels.
        sampling: how the model was made to be sampled, kept in model_index.json; see ``set_sampling``.
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
        sampling: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, text_encoder=text_encoder, tokenizer=tokenizer, scheduler=scheduler, vae=vae)
        self.register_to_config(sampling=dict(sampling or {}))

    @property
    def sampling(self) -> Mapping[str, Any]:
        """How the model was made to be sampled; empty where it was only trained to follow the flow."""
        return self.config["sampling"]

    def set_sampling(
        self,
        *,
        sigmas: Sequence[float] = (),
        guidance: float | None = None,
        renoise: bool = False,
        clips: Sequence[Sequence[int]] = (),
    ) -> None:
        """State how the model was made to be sampled.

        Args:
            sigmas: the noise levels that its generator was trained at; used whenever as many steps are asked for.
            guidance: for those. renoise: whether fresh noise is drawn between steps (the scheduler's
                ``stochastic_sampling``) or the predicted noise is followed.
            clips: frames, height, width in pixels that it was trained on.
        """
        told: dict[str, Any] = {"sigmas": list(sigmas), "guidance": guidance, "clips": [list(clip) for clip in clips]}
        self.register_to_config(sampling={name: value for name, value in told.items() if value not in (None, [])})
        self.scheduler.register_to_config(stochastic_sampling=bool(renoise))

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        num_inference_steps: int | None = None,
        sigmas: Sequence[float] | None = None,
        guidance_scale: float | None = None,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        callback: Callable[[int, int], None] | None = None,
    ) -> VideoOutput:
        """Sample one video a prompt.

        Args:
            num_inference_steps: evaluations of the network (twice as many with guidance). By default as many as its
                generator was trained for, or 25.
            sigmas: the noise levels to step through, 1 first. By default those that the generator was trained at,
                where there are as many; else evenly spaced from 1 to 1 / steps. They are always passed on: left alone,
                the scheduler puts its last step at a noise level of nearly zero.
            guidance_scale: classifier-free guidance; 1 is off, and so it is by default.
            num_frames, height, width: latent frames, latent height and width; by default the training clip's.
            generator: of the noise; one for the batch, or one a prompt.
            callback: called with (step, steps) after each step.

        Raises:
            NasError: if a prompt is longer than the text encoder takes, a size does not fit the network, or the noise
                levels do not fall.
        """
        levels, guidance_scale = self.plan(num_inference_steps, sigmas, guidance_scale)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        space = self.unet.space
        frames, channels, default_height, default_width = space.latent_shape("training")
        frames = frames if num_frames is None else num_frames
        height = default_height if height is None else height
        width = default_width if width is None else width
        if min(frames, height, width) < 1:
            raise NasError(f"a latent of {frames}x{height}x{width} is empty; use 1 or more of each")
        down = max(position.space_scale for position in space.positions)
        if height % down or width % down:
            raise NasError(
                f"a latent of {height}x{width} cannot be halved to the lowest stage; use multiples of {down}"
            )
        context = self.encode(prompts)
        empty = self.encode([""] * len(prompts)) if guidance_scale != 1.0 else None
        shape = (len(prompts), channels, frames, height, width)
        latents = randn_tensor(shape, generator=generator, device=self.device, dtype=self.unet.dtype)
        self.scheduler.set_timesteps(sigmas=levels, device=self.device)
        for step, timestep in enumerate(self.scheduler.timesteps):
            velocity = self.unet(latents, timestep, context).sample
            if empty is not None:
                plain = self.unet(latents, timestep, empty).sample
                velocity = plain + guidance_scale * (velocity - plain)
            latents = self.scheduler.step(velocity, timestep, latents, generator=generator).prev_sample
            if callback is not None:
                callback(step + 1, len(levels))
        return VideoOutput(self.decode(latents), len(levels), levels, guidance_scale)

    def plan(
        self,
        num_inference_steps: int | None = None,
        sigmas: Sequence[float] | None = None,
        guidance_scale: float | None = None,
    ) -> tuple[list[float], float]:
        """The noise levels and the guidance that a call with these arguments samples with.

        Raises:
            NasError: if there is no step, the guidance is no number, or the noise levels do not fall.
        """
        return plan_levels(self.sampling, num_inference_steps, sigmas, guidance_scale)

    def fingerprint(self) -> str:
        """12 hex characters of the weights of network and text encoder: which model it is, wherever it lies."""
        digest = hashlib.sha256()
        for part in (self.unet, self.text_encoder):
            for name, tensor in sorted(part.state_dict().items()):
                digest.update(name.encode())
                digest.update(tensor.detach().float().cpu().numpy().tobytes())
        return digest.hexdigest()[:12]

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """(B, L, D) text states of the prompts.

        Raises:
            NasError: if a prompt has more tokens than the encoder takes; nothing is cut silently.
        """
        return self.states(prompts)[0]

    def states(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(B, L, D) text states of the prompts and (B, D) of each prompt as a whole: its end mark's, as CLIP pools.

        Raises:
            NasError: if a prompt has more tokens than the encoder takes; nothing is cut silently.
        """
        self.check_prompts(prompts)
        limit = self.text_encoder.config.max_position_embeddings
        tokens = self.tokenizer(list(prompts), padding="max_length", max_length=limit, return_tensors="pt")
        found = self.text_encoder(tokens.input_ids.to(self.device))
        return found.last_hidden_state, found.pooler_output

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Whether every prompt fits the text encoder.

        Raises:
            NasError: with the prompt, its tokens and how many fit.
        """
        limit = self.text_encoder.config.max_position_embeddings
        for text in prompts:
            length = len(self.tokenizer(text, verbose=False).input_ids)
            if length > limit:
                raise NasError(f"the prompt has {length} tokens, the text encoder takes {limit}: {text!r}; shorten it")

    def unknown_words(self, prompt: str) -> list[str]:
        """Words of a prompt that the tokenizer has no token for: the model cannot know what they mean."""
        words = prompt.split()
        mark = self.tokenizer.unk_token_id
        return [word for word in words if mark in self.tokenizer(word, add_special_tokens=False).input_ids]

    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, T, h, w) latents -> (B, T, H, W, 3) frames in 0..1.

        Raises:
            NasError: if a value is not finite, which no picture shows.
        """
        pixels = latents.transpose(1, 2)
        if self.vae is not None:
            autoencoder = VideoAutoencoder(self.vae, "vae")
            pixels = torch.stack([autoencoder.decode(video) for video in pixels])
        check_finite(pixels, "the sampled frames", "check the model's weights, or sample with less guidance")
        return ((pixels.float().clamp(-1, 1) + 1) / 2).permute(0, 1, 3, 4, 2).cpu()


def save_pipeline(pipeline: TextToVideoPipeline, out: Path) -> None:
    """Write a model folder at one stroke; what else lies in ``out`` stays. Its weights carry a checksum.

    Raises:
        NasError: if ``out`` holds somebody else's model, another process writes there, or the disk is full; an earlier
            model in ``out`` is then as it was.
    """
    from nas.model.folder import is_model
    from nas.pretrained.files import seal
    from nas.pretrained.loading import no_bars

    out = Path(os.path.realpath(out))  # "." has no name to put something beside
    if (out / INDEX).exists() and not is_model(out):
        raise NasError(f"{out} holds a model of another kind, which is not overwritten; give another --out")
    with new_folder(out) as partial:
        with no_bars():
            pipeline.save_pretrained(str(partial), max_shard_size=SHARD)
        for weights in partial.rglob("*.safetensors"):
            seal(weights)


def load_pipeline(model: Path) -> Any:
    """The pipeline of a model folder.

    Raises:
        NasError: if the folder holds none, is damaged, or names classes or code that no model of ours has.
    """

    index = read_index(model)
    try:
        with loading(model, "model", "build it again"):
            parts = _parts(model, index)
            return TextToVideoPipeline(**parts, sampling=index.sampling.model_dump(exclude_defaults=True))
    except NasError as error:
        raise _damaged(model, str(error).rpartition("; ")[0] or str(error)) from error


def _parts(model: Path, index: Index) -> dict[str, Any]:
    import diffusers

    from nas.model.network import VideoUNet
    from nas.pretrained.autoencoder import load_model
    from nas.pretrained.text import load_text_model, load_tokenizer, probe

    read_config(model / "unet" / "config.json")
    unet = load_weights(VideoUNet, model / "unet", str(model / "unet"), allow_extra=False).eval()
    text = load_text_model(model / "text_encoder", str(model / "text_encoder"))
    tokenizer = load_tokenizer(model / "tokenizer")
    probe(tokenizer, text)
    read_config(model / "scheduler" / "scheduler_config.json")
    scheduler: Any = diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(
        str(model / "scheduler"), local_files_only=True
    )
    scheduler.set_timesteps(sigmas=[1.0, 0.5])  # what a wrong field of it breaks
    vae = None
    if index.vae[1] is not None:
        vae = load_model(model / "vae", str(model / "vae"), read_config(model / "vae" / "config.json"))
    return {"unet": unet, "text_encoder": text, "tokenizer": tokenizer, "scheduler": scheduler, "vae": vae}
