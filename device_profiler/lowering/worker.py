"""The child that lowers: it alone imports torch and the toolkits, so their memory and crashes stay here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from device_profiler.child import serve
from device_profiler.lowering import lower
from device_profiler.subject import Subject


def lower_one(subject: dict[str, Any], toolkit: str, lowering: str, cache: str, check: bool = True) -> str:
    """Lower, and answer with the artifact's folder."""
    import torch

    torch.set_num_threads(1)
    return str(lower(Subject.from_json(subject), toolkit, lowering, Path(cache), check).folder)


if __name__ == "__main__":
    serve({"lower": lower_one})
