"""The contract of a recipe, a way to fine-tune a built model: one file with its settings and its stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from nas.errors import NasError
from nas.training.config import StageConfig
from search_spaces.registry import Registry

if TYPE_CHECKING:
    from pathlib import Path

    from nas.config import DataConfig
    from nas.data.clip import ClipLike
    from nas.training.distributed import World
    from nas.training.engine import Engine
    from nas.training.loader import Loader
    from nas.training.loop import Stage

#: Entry points of this group name a ``Recipe``; that is how another package adds one.
GROUP = "temporal_nas.recipes"

RECIPES = {
    "joint": "nas.recipes.joint:RECIPE",
    "adversarial": "nas.recipes.adversarial:RECIPE",
    "distribution_matching": "nas.recipes.distribution_matching:RECIPE",
    "points": "nas.recipes.points:RECIPE",
    "preference": "nas.recipes.preference:RECIPE",
}


class Source(Protocol):
    """Where a stage's clips come from; ``nas.training.batches.Batches`` is the usual one."""

    @property
    def loaders(self) -> Sequence[Loader]:
        """What reads ahead, to be closed at the end."""

    @property
    def clips(self) -> Sequence[ClipLike]:
        """The shapes of its clips, in pixels."""

    @property
    def captions(self) -> Sequence[str]:
        """Every caption that may come."""


@dataclass(frozen=True)
class Materials:
    """What a stage is made of.

    Attributes:
        pipeline: the model, on the device of ``engine``; trained in place. model: the folder that it came from.
        batches: its clips, as ``Recipe.source`` opened them.
    """

    pipeline: Any
    model: Path
    batches: Any
    seed: int
    engine: Engine


@dataclass(frozen=True)
class Opening:
    """What a source is opened with."""

    pipeline: Any
    data: DataConfig
    seed: int
    world: World


@dataclass(frozen=True)
class Recipe:
    """A way to fine-tune a built model.

    The one loop gives it accumulation, averages, precision, checkpoints, exact resume, roll-back, several processes,
    validation and trackers; a recipe says what one step is.

    Attributes:
        name: as ``nas finetune --stage`` knows it, and the key of its settings. summary: one phrase for people.
        config: its settings, with defaults. stage: makes the stage; see ``nas.training.loop.Stage``.
        needs: what an item of the data must hold beside a video and its caption, such as ``tracks``.
        source: opens its clips; where it is not given, those of ``data``.
        sampling: how the model that it makes is sampled, as ``TextToVideoPipeline.set_sampling`` takes it.
        finish: the pipeline to keep, of the stage and the pipeline with the averaged weights.
        improves: the column of its log that it is there to lower (or to raise, see ``raises``).
    """

    name: str
    summary: str
    config: type[StageConfig]
    stage: Callable[[Materials, Any], Stage]
    needs: frozenset[str] = frozenset()
    source: Callable[[Opening, Any], Source] | None = None
    sampling: Callable[[Any], Mapping[str, Any]] = lambda settings: {}
    finish: Callable[[Any, Any], Any] = lambda stage, pipeline: pipeline
    improves: str = "loss"
    raises: bool = False


REGISTRY: Registry[Recipe] = Registry("recipe", GROUP, RECIPES, Recipe, NasError)


def known_recipes() -> list[str]:
    """Names of our recipes, then of those that installed packages add."""
    return list(dict.fromkeys([*RECIPES, *REGISTRY.names()]))


def find_recipe(name: str) -> Recipe:
    """A recipe by its name: ours, or one that an installed package adds.

    Raises:
        NasError: if nobody knows it, or a package's entry point cannot be loaded or is no ``Recipe`` of that name.
    """
    recipe = REGISTRY.get(name)
    if recipe.name != name:
        raise NasError(f"recipe {name!r}: its entry point names the recipe {recipe.name!r}; give both one name")
    return recipe
