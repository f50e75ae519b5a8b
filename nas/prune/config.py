"""What pruning can be told."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nas.config import DataConfig
from nas.settings import Seed, Settings
from nas.training.config import LoopConfig

Unit = Literal["blocks", "heads", "channels"]


class PruneConfig(LoopConfig):
    """How a network is cut, and how what is left recovers.

    Attributes:
        units: what may be taken out: `blocks` (a stage, a layer of a stage, a stage's attention, the mid block),
            `heads` of attentions, inner `channels` of feed-forward layers.
        share: of all heads, or channels, that one cut takes.
            All three where blocks are chosen and none is named.
        calibration: images, or clips, that the sensitivity is measured on. batch: of them at a time.
        prediction: what the network answers; Stable Diffusion 1.5 predicts `epsilon`, a transformer `velocity`.
        method: of choosing blocks: `exact` solves for all cuts at once, `greedy` makes one after the other.
        score: what a cut of blocks is judged by: `distillation` (the answers on common noise), `magnitude` (of the
            weights), or `random`. inner_weight: weight of the places inside the network beside its answer.
        rounds: how often `exact` measures every cut anew around what it found.
        images: a step of recovery; `steps` 0 leaves it out.
        distillation: weight of following the uncut network; the rest is its own training loss.
        feature_weight: of the stages' outputs, beside the network's own, in following it.
        caption_dropout: share of captions replaced by the empty one.
    """

    steps: int = Field(2000, ge=0)
    units: tuple[Unit, ...] = ("blocks",)
    method: Literal["exact", "greedy"] = "exact"
    score: Literal["distillation", "magnitude", "random"] = "distillation"
    inner_weight: float = Field(0.5, ge=0.0)
    rounds: int = Field(3, ge=1, le=20)
    share: float = Field(1 / 16, gt=0.0, le=0.5)
    calibration: int = Field(16, ge=1)
    batch: int = Field(4, ge=1)
    prediction: Literal["epsilon", "v", "velocity"] = "epsilon"
    images: int = Field(8, ge=1)
    distillation: float = Field(0.8, ge=0.0, le=1.0)
    feature_weight: float = Field(0.5, ge=0.0)
    caption_dropout: float = Field(0.1, ge=0.0, le=1.0)


class PruneSettings(Settings):
    """Everything that a pruning depends on; stored in its folder."""

    seed: Seed = 0
    data: DataConfig = DataConfig()
    prune: PruneConfig = PruneConfig()
