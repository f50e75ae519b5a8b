"""What a training leaves in its folder: the log, the best step, and a supernet to load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nas.data.cached import open_text
from nas.errors import NasError
from nas.pretrained.text import NoText, TextEncoder
from nas.supernet.held import FACT, Held, from_json
from nas.supernet.supernet import Supernet
from nas.tasks import USUAL
from nas.training.checkpoint import check_belongs, list_checkpoints, load_checkpoint
from nas.training.log import begun_settings, begun_state, check_shapes
from nas.training.precision import FULL
from search_spaces.space import Space

TEXT = "text"


def _text_of(space: Space, folder: Path) -> Any:
    return open_text(folder / TEXT) if space.text else NoText()


def load_supernet(space: Space, folder: Path) -> tuple[Supernet, TextEncoder, int]:
    """The averaged supernet and text encoder of the newest checkpoint, in evaluation mode, and its step.

    What it was trained to predict stands in the checkpoint.

    Raises:
        NasError: if there is none, it is damaged, or it is of another space.
    """
    found = list_checkpoints(folder)
    if not found:
        raise NasError(f"{folder}: no checkpoint of a supernet there; train it with nas train {space.name} --out RUN")
    checkpoint = load_checkpoint(found[-1])
    check_belongs(checkpoint.state, {"space": space.fingerprint}, found[-1])
    settings = checkpoint.state.get("settings", {})
    held = from_json(space, checkpoint.state[FACT]) if FACT in checkpoint.state else None
    supernet, text = Supernet(space, settings.get("prediction", USUAL), held), _text_of(space, folder)
    average = checkpoint.tensors.get("average", {})
    parts = (("supernet.", supernet), ("text.", text))
    check_shapes(average, {prefix + n: p for prefix, module in parts for n, p in module.named_parameters()}, found[-1])
    for prefix, module in parts:
        module.load_state_dict(
            {name.removeprefix(prefix): tensor for name, tensor in average.items() if name.startswith(prefix)}
        )
        module.eval().requires_grad_(False)
    return supernet, text, int(checkpoint.state["step"])


def begun_held(space: Space, folder: Path) -> Held | None:
    """The layers that the training in a folder holds; None where it holds all of its space."""
    state = begun_state(folder)
    return from_json(space, state[FACT]) if FACT in state else None


def trained_precision(folder: Path) -> str:
    """The precision of the training in a folder, in which its paths are scored too."""
    return str(begun_settings(folder).get("precision", FULL))
