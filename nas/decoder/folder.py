"""A searched autoencoder's folder: written whole, and loaded by our own class alone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from nas.errors import NasError

if TYPE_CHECKING:
    from nas.pretrained.searched import SearchedAutoencoder

CONFIG = "config.json"
DISTIL = "distil"  # of the model's folder: checkpoints, log and settings of a distillation
PLAN = "plan.json"  # of its space: what a table needs to cost it without torch


def is_autoencoder(folder: Path) -> bool:
    """Whether a folder's configuration says that it is a searched autoencoder."""
    try:
        return bool(json.loads((folder / CONFIG).read_text("utf-8"))["_class_name"] == "SearchedAutoencoder")
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def is_begun(folder: Path) -> bool:
    """Whether a folder holds a searched autoencoder, or a distillation that has not come to one yet."""
    return is_autoencoder(folder) or (folder / DISTIL).is_dir()


def save_autoencoder(model: SearchedAutoencoder, out: Path) -> None:
    """Write a folder that diffusers' own ``from_pretrained`` reads, at one stroke; its weights carry a checksum.

    Raises:
        NasError: if ``out`` holds somebody else's files, or the disk is full; what was there stays.
    """
    from nas.outputs import check_replaceable, new_folder
    from nas.pretrained.files import seal
    from nas.pretrained.loading import no_bars
    from search_spaces.planning import load_plan

    out = Path(os.path.realpath(out))
    check_replaceable(out, is_begun, "autoencoder")
    with new_folder(out) as partial:
        with no_bars():
            model.save_pretrained(str(partial))
        for weights in partial.rglob("*.safetensors"):
            seal(weights)
        load_plan(model.space).save(partial / PLAN)


def load_autoencoder(folder: Path) -> SearchedAutoencoder:
    """The searched autoencoder of a folder.

    Raises:
        NasError: if it holds none, or is damaged.
    """
    from nas.pretrained.autoencoder import load_model
    from nas.pretrained.hub import read_config
    from nas.pretrained.loading import loading
    from nas.pretrained.searched import SearchedAutoencoder

    if not is_autoencoder(folder):
        raise NasError(
            f"{folder}: holds no searched autoencoder; give the folder that nas build or nas distil-decoder wrote"
        )
    with loading(folder, "autoencoder", "build it again"):
        model = load_model(folder, str(folder), read_config(folder / CONFIG))
    assert isinstance(model, SearchedAutoencoder)
    return model
