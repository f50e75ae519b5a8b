"""Stage points: clips and the tracks of their points learnt together, so that bodies keep their shape."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from nas.data.tracks import positions
from nas.errors import NasError
from nas.model.widths import narrow, widened
from nas.recipes.contract import Materials, Recipe
from nas.tasks.noise import clean_estimate, mix, velocity
from nas.training.batches import Batch
from nas.training.config import StageConfig
from nas.training.draws import Draws
from nas.training.single import OneOptimizer

TINY = 1e-6


class PointsConfig(StageConfig):
    """Video and points together.

    Attributes:
        points_weight: of the points' own velocity error beside the video's.
        reconstruction_weight, rigidity_weight: of how far the estimated places of tracked points are from where they
            are, and of how much distances between neighbours change; both on the clean estimate, below `level`.
        neighbours: of each point, nearest in the first frame; they count the less the further away they are.
        level: the noise level under which the clean estimate is good enough to be held to that.
        drop: share of clips whose points are left out, so that the half of points can be left out of the model.
        caption_dropout, timestep_mean, timestep_std: as of `joint`.
    """

    images: int = Field(0, ge=0, le=0)
    points_weight: float = Field(1.0, ge=0.0)
    reconstruction_weight: float = Field(0.1, ge=0.0)
    rigidity_weight: float = Field(0.1, ge=0.0)
    neighbours: int = Field(8, ge=1, le=64)
    level: float = Field(0.5, gt=0.0, le=1.0)
    drop: float = Field(0.3, ge=0.0, lt=1.0)
    caption_dropout: float = Field(0.1, ge=0.0, le=1.0)
    timestep_mean: float = 0.0
    timestep_std: float = Field(1.0, gt=0.0)


class Points(OneOptimizer):
    """Flow matching on a clip and the map of its tracked points, joined in channels.

    The network is widened to read and to answer both halves; what is new starts at zero. The model that is kept has
    the video half alone, which is what the widened network computes for a clip whose points are dropped.

    Args:
        given: the pipeline's network gives the first weights and, at the end, takes the video half back.

    Raises:
        NasError: for a model of latents, for which there is no map of points, or together with sharding.

    Source: PointVid (arXiv 2502.03639): halves joined in channels, misalignment and rigidity penalties. Its weights and
    neighbours are not published; these are ours. Its cross-attention between the halves is not here: channels that are
    joined at the first layer are one stream.
    """

    key = "points"
    window = 1
    averaged = frozenset({"wide"})
    config: PointsConfig

    def __init__(self, given: Materials, config: PointsConfig) -> None:
        self.pipeline, self.batches, self.config, self.engine = given.pipeline, given.batches, config, given.engine
        self.loaders = self.batches.loaders
        if given.pipeline.vae is not None:
            raise NasError(
                "points are drawn in pixels, but the model works in latents; use a space without autoencoder"
            )
        if config.shard:
            raise NasError("points.shard cannot split a network that is narrowed again at the end; leave it false")
        given.pipeline.text_encoder.requires_grad_(False)
        self.wide = widened(given.pipeline.unet, 2).train()
        self.modules: dict[str, nn.Module] = {"wide": self.wide}
        self.engine.prepare(self.wide, self.wide.blocks())
        self.optimizer = torch.optim.AdamW(
            self.wide.parameters(), config.learning_rate, weight_decay=config.weight_decay
        )
        self.optimizers = {"generator": self.optimizer}

    def learn(self, turn: int, draws: Draws) -> dict[str, float]:
        """The errors of a batch, weighted; see ``OneOptimizer``."""
        config, losses = self.config, self._losses(self.batches.videos(turn), draws)
        total = (
            losses["video"]
            + config.points_weight * losses["points"]
            + config.reconstruction_weight * losses["reconstruction"]
            + config.rigidity_weight * losses["rigidity"]
        )
        self.engine.back(total)
        parts = {f"loss_{name}": float(value.detach()) for name, value in losses.items()}
        return {"loss": float(total.detach()), **parts}

    def _losses(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """The errors of a batch: of videos, of points as learnt, of where they stand, and of their distances."""
        config, channels = self.config, batch.video.shape[1]
        points = batch.extras["points"].transpose(1, 2)
        clean = torch.cat([batch.video, points], dim=1)
        noise = draws.normal(clean)
        level = draws.levels(len(clean), config.timestep_mean, config.timestep_std)
        kept = torch.tensor([bool(text) for text in draws.dropped(["kept"] * len(clean), config.drop)])
        kept = kept.to(clean).reshape(-1, 1, 1, 1, 1)
        noisy = mix(clean, noise, level)
        shown = torch.cat([noisy[:, :channels], kept * noisy[:, channels:]], dim=1)
        captions = draws.dropped(batch.captions, config.caption_dropout)
        with self.engine.autocast():
            with torch.no_grad():
                context = self.pipeline.encode(captions)
            answer = self.wide(shown, 1000.0 * level, context).sample.float()
        wanted = velocity(clean, noise)
        error = (answer - wanted).square()
        estimate = clean_estimate(noisy, answer, level)[:, channels:]
        told = kept.flatten() * (level < config.level)
        found, tracks = seen_at(estimate, batch.extras["tracks"]), batch.extras["tracks"]
        real = positions(tracks, *batch.video.shape[3:])
        shares = kept.sum().clamp(min=1)
        return {
            "video": error[:, :channels].mean(),
            "points": (kept * error[:, channels:]).sum() / (shares * error[0, channels:].numel()),
            "reconstruction": misplaced(found, real, tracks[..., 3], told),
            "rigidity": bent(found, real, tracks[..., 3], told, config.neighbours),
        }


def seen_at(points: Tensor, tracks: Tensor) -> Tensor:
    """(B, N, T, 3): what maps of points (B, 3, T, H, W) say on the pixels where tracked points (B, N, T, 4) are."""
    height, width = points.shape[3:]
    columns = tracks[..., 0].long().clamp(0, width - 1)
    rows = tracks[..., 1].long().clamp(0, height - 1)
    clips = torch.arange(len(points), device=points.device)[:, None, None]
    frames = torch.arange(points.shape[2], device=points.device)[None, None]
    return points[clips, :, frames, rows, columns]


def misplaced(found: Tensor, real: Tensor, seen: Tensor, told: Tensor) -> Tensor:
    """Mean squared distance of estimated places (B, N, T, 3) from the real ones, of points that are seen.

    Args:
        seen: (B, N, T) ones and zeros. told: (B,) how much each clip counts.
    """
    weight = seen * told[:, None, None]
    return (weight * (found - real).square().sum(-1)).sum() / weight.sum().clamp(min=1)


def bent(found: Tensor, real: Tensor, seen: Tensor, told: Tensor, neighbours: int) -> Tensor:
    """How much estimated distances between neighbours differ from those in the first frame: local rigidity.

    The mean over points, their ``neighbours`` nearest in the first frame and all later frames of
    exp(-d0^2 / s^2) | |p_i - p_j|_t - d0 |, where d0 is their real distance in the first frame and s the mean of d0.
    Points that are not seen in both frames do not count.
    """
    first = real[:, :, 0]
    apart = torch.cdist(first, first)
    both = seen[:, :, None, 0] * seen[:, None, :, 0]
    far = torch.where(both > 0, apart, torch.inf).clone()
    far.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    count = min(neighbours, far.shape[2] - 1)
    d0, which = far.topk(count, dim=2, largest=False)  # (B, N, k)
    valid = torch.isfinite(d0)
    d0 = torch.where(valid, d0, 0.0)
    scale = (d0.sum((1, 2)) / valid.sum((1, 2)).clamp(min=1)).clamp(min=TINY)[:, None, None]
    near = torch.exp(-((d0 / scale) ** 2)) * valid * told[:, None, None]
    clips = torch.arange(len(found), device=found.device)[:, None, None]
    gap = found[:, :, None] - found[clips, which]  # (B, N, k, T, 3)
    now = (gap.square().sum(-1) + TINY).sqrt()
    weight = near[..., None] * seen[:, :, None] * seen[clips, which]
    weight = torch.cat([torch.zeros_like(weight[..., :1]), weight[..., 1:]], dim=-1)
    return (weight * (now - d0[..., None]).abs()).sum() / weight.sum().clamp(min=TINY)


def _finish(stage: Any, pipeline: Any) -> Any:
    narrow(stage.wide, pipeline.unet)
    return pipeline


RECIPE = Recipe(
    name="points",
    summary="with the tracks of points, so that bodies keep their shape",
    config=PointsConfig,
    stage=Points,
    needs=frozenset({"tracks", "points"}),
    finish=_finish,
    improves="loss_rigidity",
)
