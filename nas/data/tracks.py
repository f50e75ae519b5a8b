"""Tracks of points in three dimensions beside clips: moving shapes know theirs exactly."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nas.data.clip import Buckets, ClipLike, Dataset, Skip
from nas.data.shapes import MovingShapes, Placed, distance, turned
from nas.errors import NasError

GIVES = frozenset({"tracks", "points"})
POINTS = 16  # of one shape
GRID = 9  # a side, of the candidates inside it


def with_tracks(data: Dataset, needs: Collection[str]) -> Dataset:
    """The same clips with ``tracks (N, T, 4)``: x, y, depth and whether a point is seen; and ``points (T, 3, H, W)``.

    Raises:
        NasError: if the data gives no tracks, or something else is needed.
    """
    missing = sorted(set(needs) - GIVES)
    if missing:
        raise NasError(f"this stage needs {', '.join(missing)} beside every clip; no data of ours gives that")
    if isinstance(data, Buckets):
        return _TrackedBuckets([with_tracks(part, needs) for part in data.parts], data)
    if not isinstance(data, MovingShapes):
        raise NasError(
            f"this stage needs {', '.join(sorted(needs))} beside every clip, which only data.source=moving_shapes gives"
        )
    if data.config.boundary == "wrap":
        raise NasError("points of a shape that wraps are in two places at once; set data.boundary to inside or bounce")
    return TrackedShapes(data)


class TrackedShapes:
    """Moving shapes with the tracks of points that are fixed on them."""

    def __init__(self, shapes: MovingShapes) -> None:
        self.shapes = shapes
        self.captions = shapes.captions
        self.skipped: Sequence[Skip] = ()

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, index: int) -> Any:
        shapes = self.shapes
        scene, most = shapes.scene(index), shapes.config.max_objects * POINTS
        tracks = scene_tracks(scene, shapes.clip, shapes.config.boundary)
        kept = np.zeros((most, shapes.clip.frames, 4), np.float32)
        kept[: len(tracks)] = tracks
        whole = torch.from_numpy(kept)
        return {**shapes[index], "tracks": whole, "points": point_map(whole, shapes.clip.height, shapes.clip.width)}

    def stills(self, seed: int) -> Dataset:
        """Single frames, without tracks: a rigid body shows itself over time alone."""
        return self.shapes.stills(seed)


class _TrackedBuckets(Buckets):
    """Buckets whose parts have tracks; drawn as those without."""

    def __init__(self, parts: Sequence[Dataset], plain: Buckets) -> None:
        super().__init__(parts, plain._share.tolist(), plain.seed)


def scene_tracks(scene: Sequence[Placed], clip: ClipLike, boundary: Any) -> NDArray[np.float32]:
    """(N, T, 4) of a scene's points: x and y in pixels, depth, and 1 where the point is seen.

    A point is not seen where it has left the frame, or where a shape that lies above covers it.
    """
    frame = np.arange(clip.frames, dtype=np.float64)
    found = []
    for order, placed in enumerate(scene):
        x, y = placed.centre(frame, clip, boundary)
        depth = placed.depth(frame)
        u, v = (part[:, None] * (placed.radius / depth) for part in _fixed(placed.shape.kind))
        across, down = turned(u, v, placed.turn * frame)
        px, py = x + across, y + down
        seen = (px >= 0) & (px < clip.width) & (py >= 0) & (py < clip.height)
        for above in scene[order + 1 :]:
            ax, ay = above.centre(frame, clip, boundary)
            inside = turned(px - ax, py - ay, -above.turn * frame)
            seen &= distance(above.shape.kind, *inside, above.radius / above.depth(frame)) > 0
        found.append(np.stack([px, py, np.broadcast_to(depth, px.shape), seen], axis=-1))
    return np.concatenate(found).astype(np.float32)


def _fixed(kind: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(N,) places on a shape of radius 1, evenly chosen inside it."""
    side = np.linspace(-0.95, 0.95, GRID)
    u, v = (part.ravel() for part in np.meshgrid(side, side))
    inside = np.flatnonzero(distance(kind, u, v, 1.0) <= -0.02)
    which = inside[np.linspace(0, len(inside) - 1, POINTS).round().astype(int)]
    return u[which], v[which]


def positions(tracks: Tensor, height: int, width: int) -> Tensor:
    """(..., 3) places in space of tracks (..., 4): as far from the camera's axis as they look, times their depth.

    x and y run over -1..1 along the shorter side at depth 1, so distances on a rigid body do not change.
    """
    half = min(height, width) / 2
    depth = tracks[..., 2]
    x = (tracks[..., 0] - width / 2) / half * depth
    return torch.stack([x, (tracks[..., 1] - height / 2) / half * depth, depth], dim=-1)


def point_map(tracks: Tensor, height: int, width: int) -> Tensor:
    """(T, 3, H, W): every pixel on which a point is seen holds its place in space, all others zero.

    Args:
        tracks: (N, T, 4). Of two points on one pixel the later one stays.

    Source: PointVid (arXiv 2502.03639): the frame's pixels hold XYZ of tracked points.
    """
    frames = tracks.shape[1]
    drawn = torch.zeros(frames, 3, height, width)
    places = positions(tracks, height, width)
    for point, place in zip(tracks, places, strict=True):
        seen = torch.nonzero(point[:, 3] > 0)[:, 0]
        columns, rows = (point[seen, axis].long() for axis in (0, 1))
        drawn[seen, :, rows, columns] = place[seen]
    return drawn
