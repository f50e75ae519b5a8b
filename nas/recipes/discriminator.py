"""The discriminator: the model's own first half, frozen, with a small head at each place that its family lets be read;
heads judge space and time."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nas.errors import NasError
from nas.model.network import VideoUNet
from search_spaces.network import module_name

Kind = Literal["unified", "separate", "spatial", "temporal"]


class Encoder(nn.Module):
    """The first half of a video network, frozen: what it sees at the features of its family.

    Args:
        model: its network is copied, as far as the last feature.

    Raises:
        NasError: if its family names no features.
    """

    def __init__(self, model: VideoUNet) -> None:
        super().__init__()
        backbone, network = model.space.backbone, model.network
        self.diffusion = model.diffusion
        self.family = backbone.family
        self.features = dict(self.family.features(network.unet))
        if not self.features:
            raise NasError(
                f"the adversarial stage needs features that a discriminator can read, but family {self.family.name} "
                "names none"
            )
        self.channels = list(self.features.values())
        self.unet: Any = self.family.encoder(network.unet)
        places = [place.name for place in backbone.layout.places]
        last = max(places.index(name) for name in self.features)
        names = {module_name(name) for name in places[: last + 1]}
        self.temporal = nn.ModuleDict(
            {name: copy.deepcopy(layers) for name, layers in network.temporal.items() if name in names}
        )
        self.reads = dict(network.reads)
        self.divided = {place.name: place.time_scale for place in backbone.layout.places}
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Encoder:
        """Stays in evaluation mode: it is frozen."""
        return super().train(False)

    def forward(self, video: Tensor, level: Tensor, context: Tensor) -> list[Tensor]:
        """Features of noisy clips.

        Args:
            video: (B, C, T, H, W). level: (B,) noise levels in 0..1. context: (B, L, D) text.

        Returns:
            For each feature of the family, in order, (B*T, C_i, H_i, W_i).
        """
        frames = video.shape[2]
        found: list[Tensor] = []

        def at(place: str, x: Tensor, beside: Mapping[str, Tensor]) -> Tensor:
            name = module_name(place)
            if name in self.temporal:
                layers: Any = self.temporal[name]
                for layer, reads in zip(layers, self.reads[name], strict=True):
                    x = layer(x, frames // self.divided[place], **{read: beside[read] for read in reads})
            if place in self.features:
                found.append(x)
            return x

        def look(noisy: Tensor, timestep: Tensor) -> Tensor:
            x = noisy.transpose(1, 2).flatten(0, 1)
            self.family.run(self.unet, {"x": x, "timestep": timestep, "context": context, "frames": frames}, at)
            return noisy

        self.diffusion.as_velocity(video, level, look)  # noise and timestep as this network knows them
        return found


class Residual2D(nn.Module):
    """Two convolutions over space with a skip, time in the batch."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(_groups(channels), channels),
            nn.SiLU(),
            nn.Conv2d(channels, width, 3, padding=1),
            nn.GroupNorm(_groups(width), width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )
        self.skip = nn.Conv2d(channels, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.body(x)


class TimeAttention(nn.Module):
    """Self-attention along time, space in the batch; the order of frames enters as sines."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """(B*T, C, H, W) to the same shape."""
        _, channels, height, width = x.shape
        tokens = x.unflatten(0, (-1, frames)).permute(0, 3, 4, 1, 2).reshape(-1, frames, channels)
        normed = self.norm(tokens) + _sines(frames, channels).to(tokens)
        q, k, v = self.qkv(normed).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, dim=-1)  # plain: R1 differentiates twice
        tokens = tokens + self.out((scores @ v).transpose(1, 2).flatten(2))
        return tokens.reshape(-1, height, width, frames, channels).permute(0, 3, 4, 1, 2).flatten(0, 1)


class Head(nn.Module):
    """One judge of one feature map: real or generated, at every place and frame.

    ``spatial`` is a 2D residual block with time folded into the batch; ``temporal`` is self-attention along time with
    space folded into the batch; ``unified`` is the one after the other. The answer is conditioned on the pooled text
    by projection: a linear layer of it is multiplied with the features and added (Miyato and Koyama, arXiv 1802.05637).

    Source: the unified head of SnapGen-V (arXiv 2412.10494, figure 2); one spatial and one temporal head are SF-V's
    (arXiv 2406.04324). Widths are ours.
    """

    def __init__(self, channels: int, width: int, text: int, kind: Literal["unified", "spatial", "temporal"]) -> None:
        super().__init__()
        self.enter = nn.Conv2d(channels, width, 1) if kind == "temporal" else Residual2D(channels, width)
        self.time = None if kind == "spatial" else TimeAttention(width)
        self.norm = nn.GroupNorm(_groups(width), width)
        self.answer = nn.Conv2d(width, 1, 1)
        self.text = nn.Linear(text, width)

    def forward(self, x: Tensor, frames: int, pooled: Tensor) -> Tensor:
        """(B*T, C, H, W) features and (B, D) pooled text to (B, T*H*W) answers; above 0 is "real"."""
        x = self.enter(x)
        if self.time is not None:
            x = self.time(x, frames)
        x = nn.functional.silu(self.norm(x))
        wanted = self.text(pooled)[:, None].expand(-1, frames, -1).flatten(0, 1)
        answers = self.answer(x) + (x * wanted[:, :, None, None]).mean(1, keepdim=True)
        return answers.unflatten(0, (-1, frames)).flatten(1)


class Heads(nn.Module):
    """The heads of a discriminator: all that is trained of it.

    Args:
        channels: of each feature. stages: which of them are judged; all, where it is empty.
        kind: see ``Head``; ``separate`` has a spatial and a temporal one each.
        text: width of the pooled text. width: channels inside a head.

    Raises:
        NasError: if a stage does not exist.
    """

    def __init__(self, channels: list[int], stages: tuple[int, ...], kind: Kind, text: int, width: int) -> None:
        super().__init__()
        for stage in stages:
            if not 0 <= stage < len(channels):
                raise NasError(f"adversarial.head_stages: there is no feature {stage}, only 0 to {len(channels) - 1}")
        self.stages = tuple(sorted(set(stages))) or tuple(range(len(channels)))
        kinds: tuple[Any, ...] = ("spatial", "temporal") if kind == "separate" else (kind,)
        self.heads = nn.ModuleDict(
            {f"{stage}-{one}": Head(channels[stage], width, text, one) for stage in self.stages for one in kinds}
        )

    def forward(self, features: list[Tensor], frames: int, pooled: Tensor) -> list[Tensor]:
        """Answers of every head, each (B, N)."""
        return [head(features[int(name.split("-")[0])], frames, pooled) for name, head in self.heads.items()]


def _groups(channels: int) -> int:
    return next(groups for groups in (32, 16, 8, 4, 2, 1) if channels % groups == 0 and channels // groups >= 4)


def _sines(frames: int, channels: int) -> Tensor:
    half = channels // 2
    angles = torch.arange(frames)[:, None] * torch.exp(-torch.arange(half) / half * torch.log(torch.tensor(1000.0)))
    return torch.cat([angles.sin(), angles.cos()], dim=1)
