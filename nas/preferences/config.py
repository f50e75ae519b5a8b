"""How a preference set is made."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from nas.config import MANY, DataConfig
from nas.settings import Seed, Settings


class PreferConfig(Settings):
    """How clips are made and judged.

    Attributes:
        data: where prompts come from, and the real clips of guided pairs.
        kind: `samples`, k clips a prompt from independent noise; or `guided`, two clips by denoising two corrupted
            copies of one real clip, which therefore share its motion (DenseDPO, arXiv 2506.03517, section 3.2).
        prompts: how many groups of clips. clips: k, the clips of a group; guided groups are pairs.
        rewards: names of `nas.preferences.rewards`, `FILE.onnx`, `clip:FOLDER`, `labels:FILE.csv` (people's) or
            `judge:FILE.csv` (a model's, asked in both orders); their win rates are averaged.
        tie: two scores tie when they differ by no more than this share of the larger one.
        segment_s: seconds of a segment that guided pairs are labelled by.
        noise: from and to, the share of noise of a guided pair's corrupted copies; both members get the same.
        steps: of sampling; as the model was made to be sampled, or 25. guidance: 1 is off.
        seed: of prompts and noise; another one adds other groups to the same set.
        classifier_steps, classifiers: of the reward `prompt`; see `nas.evaluate`.
    """

    data: DataConfig = DataConfig()
    kind: Literal["samples", "guided"] = "samples"
    prompts: int = Field(64, ge=1, le=MANY)
    clips: int = Field(4, le=64)
    rewards: tuple[str, ...] = ("prompt", "motion", "flicker", "sharpness")
    tie: float = Field(0.02, ge=0.0, lt=1.0)
    segment_s: float = Field(1.0, gt=0.0)
    noise: tuple[float, float] = (0.65, 0.8)
    steps: int | None = Field(None, ge=1, le=10_000)
    guidance: float | None = Field(None, ge=0.0)
    seed: Seed = 0
    classifier_steps: int = Field(600, ge=1)
    classifiers: Path = Path("runs/.classifiers")

    @field_validator("clips")
    @classmethod
    def _several(cls, clips: int) -> int:
        if clips < 2:
            raise ValueError("must be 2 or more, or there is nothing to prefer")
        return clips

    @field_validator("noise")
    @classmethod
    def _rising(cls, noise: tuple[float, float]) -> tuple[float, float]:
        if not 0 < noise[0] <= noise[1] <= 1:
            raise ValueError("must rise within 0 to 1")
        return noise

    @field_validator("rewards")
    @classmethod
    def _each_once(cls, rewards: tuple[str, ...]) -> tuple[str, ...]:
        if not rewards or len(set(rewards)) != len(rewards):
            raise ValueError("must name one reward or more, each once")
        return rewards

    @model_validator(mode="after")
    def _pairs(self) -> PreferConfig:
        if self.kind == "guided" and self.clips != 2 and "clips" in self.model_fields_set:
            raise ValueError(f"kind=guided makes pairs; set clips=2, not {self.clips}")
        return self

    @property
    def members(self) -> int:
        """Clips of a group."""
        return 2 if self.kind == "guided" else self.clips
