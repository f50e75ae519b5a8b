"""Moving shapes: procedural captioned clips whose content is known exactly, for controlled experiments."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from nas.data.clip import TRAIN_LENGTH, ClipLike, Dataset, Images, Item, Skip, check_index, generator
from nas.errors import NasError

if TYPE_CHECKING:
    from nas.config import DataConfig

KINDS = ("circle", "square", "triangle", "cross")
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.9, 0.1, 0.1),
    "green": (0.1, 0.75, 0.2),
    "blue": (0.15, 0.3, 0.95),
    "yellow": (0.95, 0.85, 0.1),
    "white": (0.95, 0.95, 0.95),
}
DIRECTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
BACKGROUND = 0.12
NEAREST = 0.25  # depth of a shape, of 1 at time zero
Boundary = Literal["wrap", "bounce", "inside"]
PHRASE = re.compile(rf"an? ({'|'.join(COLOURS)}) ({'|'.join(KINDS)}) moving ({'|'.join(DIRECTIONS)})")


@dataclass(frozen=True)
class Shape:
    """What a caption says of one object: the attributes that a sampled clip is checked for."""

    kind: str
    colour: str
    direction: str

    def __str__(self) -> str:
        return f"a {self.colour} {self.kind} moving {self.direction}"


@dataclass(frozen=True)
class Placed:
    """A shape in a scene: centre and radius at time zero in pixels, speed in pixels a frame.

    Attributes:
        turn: how far it rotates a frame, in radians. approach: what its depth, 1 at time zero, grows by a frame; it
            looks as large as its radius divided by its depth.
    """

    shape: Shape
    x: float
    y: float
    radius: float
    speed: float
    turn: float = field(default=0.0, repr=False)  # left out of what names a split where nothing turns
    approach: float = field(default=0.0, repr=False)

    def depth(self, frame: np.ndarray) -> np.ndarray:
        """Its distance at each frame, never less than a quarter of where it began."""
        return np.maximum(1 + self.approach * frame, NEAREST)

    def centre(self, frame: np.ndarray, clip: ClipLike, boundary: Boundary) -> tuple[np.ndarray, np.ndarray]:
        """(x, y) in pixels at each frame, where it does not wrap."""
        step_x, step_y = DIRECTIONS[self.shape.direction]
        x, y = self.x + step_x * self.speed * frame, self.y + step_y * self.speed * frame
        if boundary == "wrap":
            return x, y
        return _bounce(x, self.radius, clip.width), _bounce(y, self.radius, clip.height)


def parse_caption(caption: str) -> tuple[Shape, ...]:
    """The shapes that a caption names, in its order.

    >>> parse_caption("a red circle moving left and a blue square moving up")[1]
    Shape(kind='square', colour='blue', direction='up')
    """
    return tuple(Shape(kind, colour, direction) for colour, kind, direction in PHRASE.findall(caption))


@dataclass(frozen=True)
class Cast:
    """What may appear in a scene.

    Attributes:
        kinds, colours, directions: a part of those that are known, in their order. objects: the most in one scene.

    Raises:
        NasError: if a name is not known, or there are fewer colours than objects.
    """

    kinds: tuple[str, ...] = KINDS
    colours: tuple[str, ...] = tuple(COLOURS)
    directions: tuple[str, ...] = tuple(DIRECTIONS)
    objects: int = 2

    @classmethod
    def of(cls, config: DataConfig) -> Cast:
        """The cast that a configuration names."""
        for bounds, (low, high) in (("radius", config.radius), ("speed", config.speed)):
            if not 0 < low <= high:
                raise NasError(f"data.{bounds} must run from above 0 upwards, but is {low} to {high}")
        for bounds, (low, high) in (("rotation", config.rotation), ("approach", config.approach)):
            if low > high:
                raise NasError(f"data.{bounds} must run upwards, but is {low} to {high}")
        return cls(
            _some("kinds", config.kinds, KINDS),
            _some("colours", config.colours, tuple(COLOURS)),
            _some("directions", config.directions, tuple(DIRECTIONS)),
            config.max_objects,
        )

    def __post_init__(self) -> None:
        if len(self.colours) < self.objects:
            raise NasError(
                f"data.colours names {len(self.colours)}, but a scene has up to {self.objects} objects of different "
                "colours; name more, or lower data.max_objects"
            )

    def shapes(self) -> tuple[Shape, ...]:
        """Every object that may appear."""
        every = itertools.product(self.colours, self.kinds, self.directions)
        return tuple(Shape(kind, colour, direction) for colour, kind, direction in every)


def _some(field: str, wanted: Sequence[str], known: tuple[str, ...]) -> tuple[str, ...]:
    for name in wanted:
        if name not in known:
            raise NasError(f"data.{field}: {name!r} is not known; known: {', '.join(known)}")
    return tuple(name for name in known if name in wanted) or known


class MovingShapes:
    """One or two shapes of different colours, each moving straight at its own speed over a dark background.

    At the border a shape either wraps around (the default: its direction holds for the whole clip) or bounces (then
    the caption names the direction in which it starts); or its whole way lies inside the frame, so that where it starts
    tells something of where it goes (a shape too fast for its frame is slowed down to fit). Edges are anti-aliased; the
    second shape lies over the first.

    Training clips are a pure function of (seed, index); the validation clips are fixed and come from a random stream
    that training never draws from.
    """

    skipped: Sequence[Skip] = ()

    def __init__(
        self, config: DataConfig, clip: ClipLike, split: Literal["train", "validation"] = "train", seed: int = 0
    ) -> None:
        self.config, self.clip, self.split = config, clip, split
        self.cast = Cast.of(config)
        self.seed = seed if split == "train" else 0
        self._length = TRAIN_LENGTH if split == "train" else config.validation_clips

    def stills(self, seed: int) -> Dataset:
        """Single frames, of ever new scenes even where the clips come again."""
        endless = self.config.model_copy(update={"different_videos": 0})
        return Images(MovingShapes(endless, self.clip, self.split, self.seed), seed)

    @property
    def captions(self) -> Sequence[str]:
        """Every caption of one shape, and every word in every place of two: what a tokenizer needs to see."""
        single = [str(shape) for shape in self.cast.shapes()]
        if self.config.max_objects == 1:
            return tuple(single)
        return tuple(single + [f"{a} and {b}" for a, b in zip(single, reversed(single), strict=True)])

    def __len__(self) -> int:
        return self._length

    def scene(self, index: int) -> tuple[Placed, ...]:
        """What the clip at ``index`` shows, first the shape that lies below."""
        index = check_index(index, len(self))
        if self.split == "train" and self.config.different_videos:
            index %= self.config.different_videos
        rng = generator(self.seed, self.split, index)
        count = int(rng.integers(1, self.config.max_objects + 1))
        colours = rng.permutation(self.cast.colours)[:count]  # different, so that a caption is never ambiguous
        return tuple(self._place(str(colour), rng) for colour in colours)

    def __getitem__(self, index: int) -> Item:
        scene = self.scene(index)
        video = render(scene, self.clip, self.config.boundary)
        caption = " and ".join(str(placed.shape) for placed in scene)
        return {"video": torch.from_numpy(video * np.float32(2) - np.float32(1)), "caption": caption}

    def _place(self, colour: str, rng: np.random.Generator) -> Placed:
        direction = str(rng.choice(self.cast.directions))
        side = self.clip.width if DIRECTIONS[direction][0] else self.clip.height
        radius = float(rng.uniform(*self.config.radius)) * min(self.clip.height, self.clip.width)
        x, y = rng.uniform(0, 1, size=2)
        if self.config.boundary == "bounce":
            x, y = (radius + c * (n - 2 * radius) for c, n in ((x, self.clip.width), (y, self.clip.height)))
        elif self.config.boundary == "wrap":
            x, y = x * self.clip.width, y * self.clip.height
        speed = float(rng.uniform(*self.config.speed)) * side / self.clip.fps
        if self.config.boundary == "inside":
            rooms = [max(0.0, n - 2 * radius) for n in (self.clip.width, self.clip.height)]
            steps = max(1, self.clip.frames - 1)
            speed = min(speed, rooms[0 if DIRECTIONS[direction][0] else 1] / steps)
            starts = []
            for share, room, sign in zip((x, y), rooms, DIRECTIONS[direction], strict=True):
                way = speed * steps * abs(sign)
                starts.append(radius + share * (room - way) + (way if sign < 0 else 0.0))
            x, y = starts
        shape = Shape(str(rng.choice(self.cast.kinds)), colour, direction)
        turn, approach = (
            float(rng.uniform(*range_)) / self.clip.fps if any(range_) else 0.0  # no draw: scenes stay as they were
            for range_ in (self.config.rotation, self.config.approach)
        )
        return Placed(shape, float(x), float(y), radius, speed, 2 * math.pi * turn, approach)


def render(scene: Sequence[Placed], clip: ClipLike, boundary: Boundary = "wrap") -> np.ndarray:
    """Draw a scene: (T, 3, H, W) float32 in [0, 1]."""
    video = np.full((clip.frames, 3, clip.height, clip.width), BACKGROUND, dtype=np.float32)
    time = np.arange(clip.frames)[:, None, None]
    columns = np.arange(clip.width)[None, None, :] + 0.5
    rows = np.arange(clip.height)[None, :, None] + 0.5
    for placed in scene:
        x, y = placed.centre(time, clip, boundary)
        if boundary == "wrap":  # the nearest copy of the shape on the torus
            across = (columns - x + clip.width / 2) % clip.width - clip.width / 2
            down = (rows - y + clip.height / 2) % clip.height - clip.height / 2
        else:
            across, down = columns - x, rows - y
        radius: float | np.ndarray = placed.radius
        if placed.turn or placed.approach:
            across, down = turned(across, down, -placed.turn * time)
            radius = placed.radius / placed.depth(time)
        cover = np.clip(0.5 - distance(placed.shape.kind, across, down, radius), 0, 1)[:, None]
        colour = np.asarray(COLOURS[placed.shape.colour], dtype=np.float32)[None, :, None, None]
        video += (cover * (colour - video)).astype(np.float32)
    return video


def _bounce(centre: np.ndarray, radius: float, side: int) -> np.ndarray:
    """A centre that is reflected where the shape touches the border."""
    room = side - 2 * radius
    phase = np.mod(centre - radius, 2 * room)
    return radius + np.where(phase > room, 2 * room - phase, phase)


def turned(x: np.ndarray, y: np.ndarray, angle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points rotated about the origin."""
    cosine, sine = np.cos(angle), np.sin(angle)
    return cosine * x - sine * y, sine * x + cosine * y


def distance(kind: str, x: np.ndarray, y: np.ndarray, radius: float | np.ndarray) -> np.ndarray:
    """Distance in pixels to a shape's edge, negative inside; half a pixel either side of it is blended."""
    if kind == "circle":
        return np.hypot(x, y) - radius
    if kind == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.85 * radius
    if kind == "triangle":  # upright, as high as it is wide
        cosine, sine = 2 / math.sqrt(5), 1 / math.sqrt(5)
        return np.maximum(np.abs(x) * cosine - (y + radius) * sine, y - radius)
    long, short = radius, 0.35 * radius  # a cross: two bars
    upright = np.maximum(np.abs(x) - short, np.abs(y) - long)
    flat = np.maximum(np.abs(x) - long, np.abs(y) - short)
    return np.minimum(upright, flat)
