"""What do moving shapes show? A small classifier of kind, colour and direction, trained and checked here."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nas.config import DataConfig
from nas.data.clip import ClipLike
from nas.data.shapes import Cast, MovingShapes, Shape, parse_caption
from nas.errors import NasError
from nas.training.checkpoint import Checkpoint, list_checkpoints, load_checkpoint, save_checkpoint

WIDTH = 64
STEPS, BATCH = 600, 64
HELD_OUT = 512
VERSION = 1  # of network and training; part of the key under which it is kept


class ShapeClassifier(nn.Module):
    """For each colour: is there a shape of it, of which kind, moving where?

    It reads pairs of neighbouring frames, so clips of any length and size; the strongest answer over places, the mean
    over pairs. A picture is read as two equal frames, and then its directions mean nothing. Borders wrap, as the shapes
    do.

    Args:
        cast: what may appear.
    """

    def __init__(self, cast: Cast) -> None:
        super().__init__()
        self.cast = cast

        def layer(inside: int, outside: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(inside, outside, 3, padding=1, padding_mode="circular"), nn.ReLU())

        self.body = nn.Sequential(layer(6, 32), layer(32, WIDTH), nn.MaxPool2d(2), layer(WIDTH, WIDTH))
        self.answers = len(cast.kinds) + 1 + len(cast.directions)  # the last kind is "no such colour here"
        self.head = nn.Sequential(nn.Linear(2 * WIDTH, 96), nn.ReLU(), nn.Linear(96, len(cast.colours) * self.answers))

    def features(self, video: Tensor) -> Tensor:
        """(B, T, 3, H, W) in [-1, 1] to (B, 128): the strongest and the mean response, averaged over frame pairs."""
        before, after = (video[:, :-1], video[:, 1:]) if video.shape[1] > 1 else (video, video)
        pairs = torch.cat([before, after], dim=2)
        seen = self.body(pairs.flatten(0, 1))
        pooled = torch.cat([seen.amax((2, 3)), seen.mean((2, 3))], dim=1)
        return pooled.unflatten(0, pairs.shape[:2]).mean(1)

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Kinds (B, colours, kinds + 1) and directions (B, colours, directions), as logits."""
        both = self.head(self.features(video)).unflatten(1, (len(self.cast.colours), self.answers))
        return both[..., : len(self.cast.kinds) + 1], both[..., len(self.cast.kinds) + 1 :]

    @torch.no_grad()
    def read(self, video: Tensor) -> list[frozenset[Shape]]:
        """The shapes that each clip of (B, T, 3, H, W) in [-1, 1] shows."""
        found = []
        for part in video.split(64):
            kinds, directions = (logits.argmax(-1) for logits in self(part))
            for kind_row, direction_row in zip(kinds.tolist(), directions.tolist(), strict=True):
                found.append(
                    frozenset(
                        Shape(self.cast.kinds[kind], colour, self.cast.directions[direction])
                        for colour, kind, direction in zip(self.cast.colours, kind_row, direction_row, strict=True)
                        if kind < len(self.cast.kinds)
                    )
                )
        return found

    def targets(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Kinds and directions (B, colours) that captions name; the direction of an absent colour is -100 (ignored)."""
        kinds = torch.full((len(captions), len(self.cast.colours)), len(self.cast.kinds))
        directions = torch.full_like(kinds, -100)
        for row, caption in enumerate(captions):
            for shape in parse_caption(caption):
                column = self.cast.colours.index(shape.colour)
                kinds[row, column] = self.cast.kinds.index(shape.kind)
                directions[row, column] = self.cast.directions.index(shape.direction)
        return kinds, directions


def accuracies(found: Sequence[frozenset[Shape]], captions: Sequence[str], *, still: bool = False) -> dict[str, float]:
    """Shares of clips that show what their caption says: all of it, and by attribute (of its objects, by colour).

    A clip counts as right when it shows exactly the caption's shapes: right colours, kinds and directions, none more.
    A ``still`` picture shows no direction, so none is asked for.
    """

    def told(shapes: Iterable[Shape]) -> frozenset[tuple[str, ...]]:
        return frozenset((s.colour, s.kind) if still else (s.colour, s.kind, s.direction) for s in shapes)

    right = [told(shapes) == told(parse_caption(text)) for shapes, text in zip(found, captions, strict=True)]
    colour = kind = direction = total = 0
    for shapes, text in zip(found, captions, strict=True):
        seen = {shape.colour: shape for shape in shapes}
        for wanted in parse_caption(text):
            total += 1
            shown = seen.get(wanted.colour)
            colour += shown is not None
            kind += shown is not None and shown.kind == wanted.kind
            direction += shown is not None and shown.direction == wanted.direction
    return {
        "accuracy": float(np.mean(right)),
        "colour": colour / total,
        "kind": kind / total,
        **({} if still else {"direction": direction / total}),
    }


def chance(cast: Cast, objects: int, *, still: bool = False) -> float:
    """The probability that a scene of as many objects, drawn at random, is the one asked for."""
    each = len(cast.kinds) * (1 if still else len(cast.directions))
    return 1 / (math.comb(len(cast.colours), objects) * each**objects)


def prompts(cast: Cast, objects: int, count: int, seed: int = 0) -> list[str]:
    """Captions of scenes with as many objects: every one equally often where there are few, else a random choice.

    Raises:
        NasError: if the cast has too few colours.
    """
    if not 1 <= objects <= min(2, len(cast.colours)):
        raise NasError(f"prompts have 1 or 2 objects of different colours, but {objects} were asked for")
    single = cast.shapes()
    if objects == 1:
        scenes = [str(shape) for shape in single]
    else:
        scenes = [f"{a} and {b}" for a, b in itertools.permutations(single, 2) if a.colour != b.colour]
    order = np.random.default_rng([seed, objects]).permutation(len(scenes))
    return [scenes[order[i % len(scenes)]] for i in range(count)]


def trained_classifier(
    data: DataConfig,
    clip: ClipLike,
    folder: Path | None = None,
    *,
    steps: int = STEPS,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> tuple[ShapeClassifier, dict[str, float]]:
    """A classifier for the scenes of ``data`` at the shape of ``clip``, and its accuracy on held-out clips.

    It is trained once and kept in ``folder``, under a name made of everything that it depends on. Noise, blur and
    contrast are varied in training, so that it reads clips that a network made.

    Returns:
        The classifier, and its `accuracy`, `colour`, `kind`, `direction` on 512 clips of a random stream of their own.
    """
    keys = ("max_objects", "boundary", "kinds", "colours", "directions", "radius", "speed")
    scene = {key: value for key, value in data.model_dump(mode="json").items() if key in keys}
    scene |= {key: value for key in ("rotation", "approach") if any(value := getattr(data, key))}
    shape = {"frames": clip.frames, "height": clip.height, "width": clip.width, "fps": clip.fps}
    facts = {"scene": scene, "clip": shape, "steps": steps, "seed": seed, "version": VERSION}
    classifier = ShapeClassifier(Cast.of(data))
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
    kept = folder / f"shapes-{key}" if folder is not None else None
    if kept is not None and (known := list_checkpoints(kept)):
        try:
            checkpoint = load_checkpoint(known[-1])
            classifier.load_state_dict(dict(checkpoint.tensors["weights"]))
            return classifier.eval(), dict(checkpoint.state["held_out"])
        except (NasError, RuntimeError, KeyError):
            shutil.rmtree(kept)  # damaged: it is ours to make again
    classifier = _trained(data, clip, steps, seed, progress).eval()
    checked = _held_out(classifier, data, clip)
    if kept is not None:
        save_checkpoint(
            kept, steps, Checkpoint({"weights": classifier.state_dict()}, {**facts, "held_out": checked}), 1
        )
    return classifier, checked


def _trained(
    data: DataConfig, clip: ClipLike, steps: int, seed: int, progress: Callable[[int, int, str], None] | None
) -> ShapeClassifier:
    clips = MovingShapes(data.model_copy(update={"different_videos": 0}), clip, "train", seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = ShapeClassifier(Cast.of(data)).train()
        optimizer = torch.optim.AdamW(classifier.parameters(), lr=2e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
        for step in range(steps):
            items = [clips[step * BATCH + i] for i in range(BATCH)]
            video = _vary(torch.stack([item["video"] for item in items]))
            kinds, directions = classifier(video)
            kind, direction = classifier.targets([item["caption"] for item in items])
            loss = nn.functional.cross_entropy(kinds.flatten(0, 1), kind.flatten())
            if clip.frames > 1:
                loss = loss + nn.functional.cross_entropy(directions.flatten(0, 1), direction.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if progress is not None:
                progress(step + 1, steps, f"loss {float(loss.detach()):.3f}")
    return classifier


def _held_out(classifier: ShapeClassifier, data: DataConfig, clip: ClipLike) -> dict[str, float]:
    """How often it is right on clips that nobody trained on, and for each number of objects."""
    held = MovingShapes(data.model_copy(update={"validation_clips": HELD_OUT}), clip, "validation")
    items = [held[i] for i in range(HELD_OUT)]
    found = classifier.read(torch.stack([item["video"] for item in items]))
    captions = [item["caption"] for item in items]
    still = clip.frames == 1
    checked = accuracies(found, captions, still=still)
    for objects in range(1, data.max_objects + 1):
        which = [i for i, text in enumerate(captions) if len(parse_caption(text)) == objects]
        some = accuracies([found[i] for i in which], [captions[i] for i in which], still=still)
        checked[f"accuracy_{objects}"] = some["accuracy"]
    return checked


def classifier_features(classifier: ShapeClassifier) -> Callable[[NDArray[Any]], NDArray[np.float64]]:
    """The classifier's inside as features for a Frechet distance: (N, T, H, W, 3) in 0..1 to (N, 128)."""

    @torch.no_grad()
    def features(videos: NDArray[Any]) -> NDArray[np.float64]:
        video = torch.from_numpy(np.ascontiguousarray(videos.transpose(0, 1, 4, 2, 3), dtype=np.float32)) * 2 - 1
        return torch.cat([classifier.features(part) for part in video.split(64)]).double().numpy()

    return features


def _vary(video: Tensor) -> Tensor:
    """Noise, blur and contrast, a little of each, clip by clip."""
    count = len(video)
    soft = nn.functional.avg_pool3d(video.transpose(1, 2), (1, 3, 3), 1, (0, 1, 1), count_include_pad=False)
    video = torch.lerp(video, soft.transpose(1, 2), 0.5 * torch.rand(count, 1, 1, 1, 1))
    video = video * (0.85 + 0.25 * torch.rand(count, 1, 1, 1, 1))
    return (video + 0.15 * torch.rand(count, 1, 1, 1, 1) * torch.randn_like(video)).clamp(-1, 1)
