"""What fine-tuning can be told: the data, and the settings of every recipe under its name."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import Field, create_model

from nas.config import DataConfig, named_file
from nas.errors import NasError
from nas.model.made_with import data_of
from nas.recipes.contract import find_recipe, known_recipes
from nas.settings import Seed, Settings, assignment, merge, parse_as, read_settings
from nas.training.config import StageConfig


class MotionConfig(Settings):
    """How the motion of the model's samples is measured before and after a fine-tuning.

    Attributes:
        prompts: how many are sampled of each, with the same noise; 0 measures nothing. batch: clips at a time.
        steps: of sampling; as each was made to be sampled, or 25. seed: of prompts and noise.
    """

    prompts: int = Field(24, ge=0, le=100_000)
    batch: int = Field(8, ge=1, le=100_000)
    steps: int | None = Field(None, ge=1, le=10_000)
    seed: Seed = 2025


class FinetuneConfig(Settings):
    """Everything that a fine-tuning depends on; stored beside its checkpoints.

    ``known_settings`` adds a field for every recipe, under its name.
    """

    seed: Seed = 0
    data: DataConfig = DataConfig()
    motion: MotionConfig = MotionConfig()

    def stage(self, name: str) -> StageConfig:
        """The settings of a recipe.

        Raises:
            NasError: if nobody knows it.
        """
        found: StageConfig = getattr(self, find_recipe(name).name)
        return found


def known_settings() -> type[FinetuneConfig]:
    """``FinetuneConfig`` with the settings of every recipe that is known here."""
    return _settings(tuple(known_recipes()))


@lru_cache
def _settings(names: tuple[str, ...]) -> type[FinetuneConfig]:
    fields: dict[str, Any] = {}
    for name in names:
        kind = find_recipe(name).config
        fields[name] = (kind, kind())
    made: type[FinetuneConfig] = create_model("FinetuneConfig", __base__=FinetuneConfig, **fields)
    return made


def resolve_finetune(
    model: Path, file: Path | None = None, sets: Sequence[str] = (), stage: str | None = None
) -> FinetuneConfig:
    """Defaults, with the data that ``model`` was made with, then ``file``, then each ``a.b=value``.

    Args:
        file: a YAML, or the name of a configuration that ships with the toolkit, such as ``one_step``.
        stage: the recipe that will run.

    Raises:
        NasError: on an unknown key or a value of the wrong kind; or if the settings of other recipes alone are given,
            which ``stage`` would never look at.
    """
    given: dict[str, Any] = {}
    if file is not None:
        given = merge(given, read_settings(named_file(file)))
    for text in sets:
        given = merge(given, assignment(text))
    told = [name for name in known_recipes() if name in given]
    if stage is not None and told and find_recipe(stage).name not in told:
        raise NasError(
            f"--stage is {stage}, but --config and --set say something of {', '.join(told)} alone; "
            f"add --stage {told[0]}, or set {stage}.*"
        )
    return parse_as(known_settings(), merge(data_of(model), given), str(file) if file is not None else "config")
