"""What a model folder was made with: the data of its run, or of the fine-tuning that made it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nas.config import CONFIG_FILE, load
from nas.errors import NasError
from nas.files import read_yaml

FINETUNE = "finetune"  # inside a model folder that a fine-tuning made: checkpoints, log and configuration


def data_of(model: Path) -> dict[str, Any]:
    """The ``data`` settings that a model was made with, as ``{"data": ...}``; empty where nobody knows.

    A model inside the folder of a run, or of a pruning, was made with its data; one that was fine-tuned, with what is
    stored beside it.

    Raises:
        NasError: if what is stored is damaged.
    """
    model = Path(os.path.abspath(model))  # the parent of "." is no folder
    tuned = stored(model)
    if tuned is not None:
        return {"data": tuned["data"]}
    if (model.parent / CONFIG_FILE).is_file():
        around = read_yaml(model.parent / CONFIG_FILE)
        if isinstance(around, dict) and "prune" in around and "data" in around:
            return {"data": around["data"]}
        return {"data": load(model.parent).data.model_dump(mode="json")}
    return {}


def stored(model: Path) -> Mapping[str, Any] | None:
    """The configuration with which a model folder was fine-tuned; None for one that was not.

    Raises:
        NasError: if it is damaged.
    """
    path = model / FINETUNE / CONFIG_FILE
    if not path.is_file():
        return None
    try:
        found = read_yaml(path)
    except NasError as error:
        raise NasError(f"{error}; delete it, or fine-tune again") from None
    if not isinstance(found, dict) or "data" not in found:
        raise NasError(f"{path}: names no data; delete it, or fine-tune again")
    return found
