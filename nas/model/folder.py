"""A model folder of this toolkit: its index and parts, each of a class that is ours or named here, and nothing else.

diffusers imports whatever module a ``model_index.json`` names; so it is not asked: the parts are loaded one by one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nas.errors import NasError
from nas.pretrained.hub import MOST_BYTES

INDEX = "model_index.json"
Finite = Annotated[float, Field(allow_inf_nan=False)]
Class = tuple[str | None, str | None]  # module and class, or two nothings


class Sampling(BaseModel):
    """How a model was made to be sampled; see ``TextToVideoPipeline.set_sampling``."""

    model_config = ConfigDict(extra="ignore")

    sigmas: list[Finite] = Field([], max_length=10_000)
    guidance: Finite | None = None
    clips: list[Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=3, max_length=3)]] = []


class Index(BaseModel):
    """What ``model_index.json`` says: the class of each part, and the sampling."""

    model_config = ConfigDict(extra="ignore")

    unet: Class
    text_encoder: Class
    tokenizer: Class
    scheduler: Class
    vae: Class = (None, None)
    sampling: Sampling = Sampling()


def read_index(model: Path) -> Index:
    """The index of a model folder.

    Raises:
        NasError: if there is none, it has other fields than an index, or names a class that no model of ours has.
    """
    path = model / INDEX
    if not path.is_file():
        raise NasError(f"{model}: no {INDEX} there; give the folder that nas build wrote, such as RUN/model")
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError("too long")
        index = Index.model_validate(json.loads(path.read_text("utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise _damaged(model, f"{INDEX}: {place}: {first['msg'].lower()}") from None
    except (ValueError, RecursionError) as error:
        raise _damaged(model, f"{INDEX} is no JSON: {type(error).__name__}") from None
    if index.unet[1] != "VideoUNet":
        raise NasError(
            f"{model}: its unet is a {index.unet[1]}, not a VideoUNet; build a model over it with "
            f"nas build --init {model} and --space, --arrangement, --text, --autoencoder, --out"
        )
    _check_classes(model, index)
    return index


def _check_classes(model: Path, index: Index) -> None:
    from nas.pretrained.autoencoder import KINDS

    known: dict[str, tuple[tuple[str, ...], tuple[str, ...] | None]] = {
        "unet": (("nas", "nas.model.network"), ("VideoUNet",)),
        "text_encoder": (("transformers",), ("CLIPTextModel",)),
        "tokenizer": (("transformers",), None),  # which of transformers' own, its configuration says
        "scheduler": (("diffusers",), ("FlowMatchEulerDiscreteScheduler",)),
        "vae": (("diffusers", "nas", "nas.pretrained.searched"), tuple(KINDS)),
    }
    for part, (modules, classes) in known.items():
        module, name = getattr(index, part)
        if part == "vae" and name is None:
            continue
        if module not in modules or (classes is not None and name not in classes):
            raise _damaged(
                model, f"{INDEX}: {part} is {module}.{name}, not one of {modules[0]}'s {', '.join(classes or ())}"
            )


def is_model(folder: Path) -> bool:
    """Whether a folder's index says that it is a model of this toolkit, however damaged the rest is."""
    try:
        told = json.loads((folder / INDEX).read_text("utf-8"))
        return bool(told["_class_name"] == "TextToVideoPipeline" and told["unet"][1] == "VideoUNet")
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError):
        return False


def _damaged(model: Path, reason: str) -> NasError:
    return NasError(f"{model}: damaged, or of another version of the toolkit ({reason}); build it again")
