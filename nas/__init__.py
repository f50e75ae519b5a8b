"""Choose, train and build: the supernet, the search and the model."""

from importlib import import_module
from typing import Any

# diffusers looks a saved pipeline's parts up by package and class name; they are imported only when asked for.
_PARTS = {"VideoUNet": "nas.model.network", "TextToVideoPipeline": "nas.model.pipeline"}


def __getattr__(name: str) -> Any:
    if name in _PARTS:
        return getattr(import_module(_PARTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
