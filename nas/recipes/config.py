"""What fine-tuning can be told, for both stages."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from nas.config import CONFIG_FILE, DataConfig, load, settle
from nas.errors import NasError
from nas.files import read_yaml
from nas.settings import Seed, Settings
from nas.training.config import StageConfig

FOLDER = "finetune"  # inside the model folder that is made: checkpoints, log and configuration


class JointConfig(StageConfig):
    """Flow matching on images and videos together.

    Attributes:
        text_rate: the share of the learning rate that the text encoder gets; 0 freezes it.
        caption_dropout: share of captions replaced by the empty one, for classifier-free guidance.
        timestep_mean, timestep_std: of the logit-normal noise level (Esser et al., arXiv 2403.03206, section 3.1).
    """

    text_rate: float = Field(0.0, ge=0.0, le=1.0)
    caption_dropout: float = Field(0.1, ge=0.0, le=1.0)
    timestep_mean: float = 0.0
    timestep_std: float = Field(1.0, gt=0.0)


class AdversarialConfig(StageConfig):
    """From many steps with guidance to few without.

    Attributes:
        levels: the noise levels of the generator, falling from 1: the steps that it will be sampled at.
        heads: `unified` (SnapGen-V), `separate` (a spatial and a temporal one, SF-V), `spatial` or `temporal` alone.
        head_stages: the family's features (a UNet's down blocks) that carry a head, counted from 0; all, if empty.
        head_width: channels inside a head. head_rate: learning rate of the heads. head_steps: their steps for each of
            the generator. head_warmup: first steps in which the heads alone learn, so that the generator does not
            begin by following a discriminator that knows nothing.
        adversarial_weight: of the generator's hinge loss beside its reconstruction; 0 trains without a discriminator.
        huber: c of the Pseudo-Huber reconstruction sqrt(error^2 + c^2) - c.
        noise_mean, noise_std: of the logarithm of the discriminator's noise-to-signal ratio (SF-V: -1 and 1).
        r1: how the discriminator's slope at real clips is held down: `exact` (squared gradient, R1), `finite` (its
            finite difference along random directions of size `r1_step`), or `off`: no weight from 1e-4 to 100 gained
            accuracy in a short benchmarks/four_steps.py of one seed, and a step took 1.4 times as long. r1_weight: of
            that term beside the hinge loss; there, the slope at 1 was a 37th of that at 1e-4.
        renoise: whether sampling draws fresh noise between steps, as the generator was trained, or follows the
            predicted noise.
        collapse_window, collapse_low: the discriminator counts as collapsed when its hinge loss, averaged over this
            many steps, falls below `collapse_low` (it tells every clip apart and teaches nothing more), or when its
            answers to real and generated clips no longer differ.
    """

    learning_rate: float = Field(5e-5, gt=0.0)
    gradient_clip: float = Field(1.0, gt=0.0)
    ema_decay: float = Field(0.95, ge=0.0, lt=1.0)
    levels: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25)
    heads: Literal["unified", "separate", "spatial", "temporal"] = "unified"
    head_stages: tuple[int, ...] = ()
    head_width: int = Field(64, ge=8, multiple_of=8)
    head_rate: float = Field(2e-4, gt=0.0)
    head_steps: int = Field(1, ge=1)
    head_warmup: int = Field(0, ge=0)
    adversarial_weight: float = Field(0.1, ge=0.0)
    huber: float = Field(0.03, gt=0.0)
    noise_mean: float = -1.0
    noise_std: float = Field(1.0, gt=0.0)
    r1: Literal["exact", "finite", "off"] = "off"
    r1_weight: float = Field(1.0, ge=0.0)
    r1_step: float = Field(0.02, gt=0.0)
    renoise: bool = True
    collapse_window: int = Field(100, ge=2)
    collapse_low: float = Field(0.02, ge=0.0)

    @field_validator("levels")
    @classmethod
    def _falling(cls, levels: tuple[float, ...]) -> tuple[float, ...]:
        if (
            not levels
            or levels[0] != 1
            or not all(a > b > 0 for a, b in zip(levels, [*levels[1:], 1e-12], strict=True))
        ):
            raise ValueError("must start at 1 and fall, staying above 0")
        return levels


class FinetuneConfig(Settings):
    """Everything that a fine-tuning depends on; stored beside its checkpoints."""

    seed: Seed = 0
    data: DataConfig = DataConfig()
    joint: JointConfig = JointConfig()
    adversarial: AdversarialConfig = AdversarialConfig()

    def stage(self, name: str) -> StageConfig:
        return {"joint": self.joint, "adversarial": self.adversarial}[name]


def resolve_finetune(model: Path, file: Path | None = None, sets: Sequence[str] = ()) -> FinetuneConfig:
    """Defaults, with the data that ``model`` was made with, then ``file``, then each ``a.b=value``.

    A model inside a run folder was made with the run's data; one that was fine-tuned, with what is stored beside it.
    """
    model = Path(os.path.abspath(model))  # the parent of "." is no folder
    base: dict[str, Any] = {}
    tuned = stored(model)
    if tuned is not None:
        base["data"] = tuned["data"]
    elif (model.parent / CONFIG_FILE).is_file():
        base["data"] = load(model.parent).data.model_dump(mode="json")
    return settle(FinetuneConfig, base, file, sets)


def stored(model: Path) -> Mapping[str, Any] | None:
    """The configuration with which a model folder was fine-tuned; None for one that was not.

    Raises:
        NasError: if it is damaged.
    """
    path = model / FOLDER / CONFIG_FILE
    if not path.is_file():
        return None
    try:
        found = read_yaml(path)
    except NasError as error:
        raise NasError(f"{error}; delete it, or fine-tune again") from None
    if not isinstance(found, dict) or "data" not in found:
        raise NasError(f"{path}: names no data; delete it, or fine-tune again")
    return found
