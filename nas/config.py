"""What a run can be told, typed: an unknown key is an error with its path."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class DataConfig(BaseModel):
    """Where the clips come from.

    Attributes:
        source: `sample_clips` (real footage that a package ships), `folder` (your videos), or `moving_shapes` (drawn).
        path: of `folder`, the videos' folder.
        captions: of `folder`, a CSV or JSONL of path and caption, with optional seconds and place; see
            `nas.data.captions`. By default `captions.csv` or `captions.jsonl` in `path`.
        cache: where decoded, downscaled frames are kept, so that nothing is decoded twice.
        crop_margin: cached frames are this much larger than the clip on their tighter side; random crops move by it.
        holdout: `time` keeps the end of every captioned segment for validation, `video` keeps whole videos.
        validation_share: of the frames (`time`) or of the videos (`video`).
        validation_clips: how many fixed clips the validation split has.
        max_objects, boundary: of `moving_shapes`; see `nas.data.shapes`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Literal["sample_clips", "folder", "moving_shapes"] = "sample_clips"
    path: Path | None = None
    captions: Path | None = None
    cache: Path = Path("runs/.frames")
    crop_margin: float = Field(default=1.25, ge=1.0, le=4.0)
    holdout: Literal["time", "video"] = "time"
    validation_share: float = Field(default=0.2, gt=0.0, lt=1.0)
    validation_clips: int = Field(default=64, ge=1)
    max_objects: int = Field(default=2, ge=1, le=2)
    boundary: Literal["wrap", "bounce"] = "wrap"
