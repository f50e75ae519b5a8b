"""What a network learns, and how an answer is judged: the tasks by name. No torch until one is opened."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from nas.errors import NasError
from search_spaces.registry import Registry

if TYPE_CHECKING:
    from nas.tasks.contract import Task

#: Entry points of this group name a class of a ``Task``; that is how another package adds one.
GROUP = "temporal_nas.tasks"

TASKS = {"denoise": "nas.tasks.denoise:Denoise", "reconstruct": "nas.tasks.reconstruct:Reconstruct"}

Prediction = Literal["velocity", "epsilon", "v"]  # what a denoiser may answer
USUAL: Prediction = "velocity"


REGISTRY: Registry[type[Task]] = Registry("task", GROUP, TASKS, type, NasError)


def task_class(name: str) -> type[Task]:
    """The class of a task: ours, or one that an installed package adds.

    Raises:
        NasError: if nobody knows it, or a package's entry point cannot be loaded.
    """
    return REGISTRY.get(name)


def open_task(name: str, settings: Mapping[str, Any] | None = None) -> Task:
    """A task with its settings.

    Args:
        settings: of the task, by name; what is left out is the task's own default.

    Raises:
        NasError: if nobody knows the task, or it does not know a setting.
    """
    return task_class(name).of(settings or {})


def trained_task(name: str, training: Mapping[str, Any]) -> Task:
    """The task as a training's settings have it: those of them that the task also has, and all of their ``task``.

    Raises:
        NasError: if nobody knows the task, or it does not know a setting of ``task``.
    """
    shared = task_class(name).shared
    return open_task(name, {**{key: training[key] for key in shared if key in training}, **training.get("task", {})})


def earlier_weights(quality: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of ``quality`` as version 0.1 wrote them, read as they are written now.

    There the score had two parts, and ``motion_weight`` was the share of the second.
    """
    found = dict(quality)
    share = found.pop("motion_weight", None)
    if isinstance(share, int | float) and not isinstance(share, bool) and 0 <= share <= 1 and share != 0.5:
        found.setdefault("weights", {"velocity": 1 - share, "motion": share})
    elif share not in (None, 0.5):
        found["motion_weight"] = share  # refused, as any key that is not known
    return found
