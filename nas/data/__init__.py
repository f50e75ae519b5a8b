"""Captioned clips: videos, shards, cached latents, moving shapes."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Literal

from nas.data.clip import Buckets, ClipLike, Dataset, Images, Item

if TYPE_CHECKING:
    from nas.config import DataConfig
    from nas.data.lengths import Check

__all__ = ["ClipLike", "Dataset", "Images", "Item", "open_data", "split_digest"]


def open_data(
    config: DataConfig,
    clip: ClipLike,
    split: Literal["train", "validation"] = "train",
    seed: int = 0,
    check: Check | None = None,
) -> Dataset:
    """The dataset that a configuration names, cut to a clip's shape and frame rate.

    Args:
        clip: frames, height, width in pixels and frames a second; one frame gives images.
        split: ``train`` is endless for practical purposes: every index is another random clip, a pure function of
            (seed, index). ``validation`` is ``config.validation_clips`` fixed clips that share no frame with training
            and do not depend on the seed, so that scores of different runs compare.
        seed: of the random clips.
        check: refuses captions, before any video is decoded; see ``nas.data.lengths``.

    Returns:
        A map-style dataset of ``{"video": (T, C, H, W) float32 in [-1, 1], "caption": str}`` with ``captions``, every
        caption it may show, and ``skipped``, what could not be used and why.

    Raises:
        NasError: if nothing is left to show, captions are missing, or the sample footage is not installed.
    """
    if config.source == "moving_shapes":
        from nas.data.shapes import MovingShapes
        from nas.data.videos import clip_buckets

        clips = clip_buckets(clip, config.buckets if split == "train" else ())
        shapes = [MovingShapes(config, bucket, split, seed) for bucket in clips]
        return shapes[0] if len(shapes) == 1 else Buckets(shapes, [1.0] * len(shapes), seed)
    if config.source == "cache":
        from nas.data.cached import open_cached

        return open_cached(config, split, seed)
    from nas.data.sources import SHARDS
    from nas.data.videos import open_videos, source_captions

    captions, skipped = source_captions(config, config.cache / SHARDS)
    if check is not None:
        check(captions)
    return open_videos(captions, config, clip, split, seed, skipped)


def split_digest(data: Dataset) -> str:
    """12 hex characters of what a split is cut from, and where; the same for copies elsewhere.

    Not of its pixels: decoders of two machines may round them otherwise, and scores would not be shared.
    """
    from nas.data.cached import Cached, CachedLatents
    from nas.data.shapes import MovingShapes
    from nas.data.videos import VideoClips

    made_of: list[Any] = [len(data)]
    if isinstance(data, CachedLatents):
        entries = (entry for part in data.parts if isinstance(part, Cached) for entry in part.entries)
        made_of += [(entry.name, entry.caption) for entry in entries]
    elif isinstance(data, VideoClips):
        said = [(run.frames.digest, run.caption.text, run.caption.x, run.caption.y) for run in data.runs]
        made_of += [data.room, *zip(said, [(run.first, run.count) for run in data.runs], strict=True)]
    elif isinstance(data, MovingShapes):
        scenes = [data.scene(i) for i in range(min(len(data), 64))]
        made_of += [data.config.boundary, *scenes]
        turns = [(placed.turn, placed.approach) for scene in scenes for placed in scene]
        made_of += turns if any(map(any, turns)) else []
    return hashlib.sha256(repr(made_of).encode()).hexdigest()[:12]
