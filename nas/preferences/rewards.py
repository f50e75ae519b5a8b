"""Rewards: numbers that say which of several clips of one prompt is better, and the labels of people or of a judge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nas.errors import NasError
from nas.evaluate.motion import motion_energy
from nas.preferences.config import PreferConfig
from search_spaces.errors import unknown
from search_spaces.registry import Registry

#: Entry points of this group name a function from ``PreferConfig`` and a clip's shape to a ``Reward``.
GROUP = "temporal_nas.rewards"

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Judged:
    """Clips of one prompt.

    Attributes:
        videos: (k, T, H, W, 3) in 0..1. real: (T, H, W, 3), the clip that a guided pair was made from, or None.
        group: their name in the set.
    """

    group: str
    prompt: str
    videos: NDArray[Any]
    real: NDArray[Any] | None = None


class Reward(Protocol):
    """Scores clips; higher is better, and only the order among clips of one prompt counts."""

    def __call__(self, judged: Judged) -> Numbers:
        """(k,) finite numbers. For a set in segments it is called with every segment's frames by themselves."""


Make = Callable[[PreferConfig, Any], Reward]


def motion(judged: Judged) -> Numbers:
    """More motion is better."""
    return motion_energy(judged.videos)


def flicker(judged: Judged) -> Numbers:
    """Less brightness that comes and goes: minus the mean absolute second difference in time; 0 under 3 frames."""
    if judged.videos.shape[1] < 3:
        return np.zeros(len(judged.videos))
    return -np.abs(np.diff(judged.videos.astype(np.float64), n=2, axis=1)).reshape(len(judged.videos), -1).mean(1)


def sharpness(judged: Judged) -> Numbers:
    """Mean absolute difference of neighbouring pixels within a frame."""
    videos = judged.videos.astype(np.float64)
    parts = [np.abs(np.diff(videos, axis=axis)).reshape(len(videos), -1).mean(1) for axis in (2, 3)]
    return np.asarray(sum(parts))


def fidelity(judged: Judged) -> Numbers:
    """Nearness to the real clip that a guided pair was made from: minus the mean squared difference.

    Raises:
        NasError: for clips that were not made from a real one.
    """
    if judged.real is None:
        raise NasError("reward fidelity compares with the real clip that a pair was made from; use it with kind=guided")
    return -np.square(judged.videos.astype(np.float64) - judged.real).reshape(len(judged.videos), -1).mean(1)


def _prompt(config: PreferConfig, clip: Any) -> Reward:
    """How sure the classifier of moving shapes is of what the caption says, colour by colour."""
    if config.data.source != "moving_shapes":
        raise NasError(
            f"reward prompt reads moving shapes, but data.source is {config.data.source}; leave it out of rewards, or "
            "score prompts with an ONNX network or clip:FOLDER"
        )
    import torch

    from nas.evaluate.classifier import trained_classifier

    classifier, _ = trained_classifier(config.data, clip, config.classifiers, steps=config.classifier_steps)

    @torch.no_grad()
    def prompt(judged: Judged) -> Numbers:
        if judged.videos.shape[1] < 2:
            return np.zeros(len(judged.videos))
        video = torch.from_numpy(judged.videos.transpose(0, 1, 4, 2, 3)).float() * 2 - 1
        kinds, directions = (logits.softmax(-1) for logits in classifier(video))
        kind, direction = classifier.targets([judged.prompt])
        columns = torch.arange(kind.shape[1])
        right = kinds[:, columns, kind[0]].mean(1)
        named = direction[0] >= 0
        towards = directions[:, columns[named], direction[0][named]].mean(1)
        return np.asarray((right + towards).double().numpy())

    return prompt


REWARDS: Mapping[str, Make] = {
    "prompt": _prompt,
    "motion": lambda config, clip: motion,
    "flicker": lambda config, clip: flicker,
    "sharpness": lambda config, clip: sharpness,
    "fidelity": lambda config, clip: fidelity,
}
REGISTRY: Registry[Make] = Registry("reward", GROUP, REWARDS, error=NasError)


def open_reward(name: str, config: PreferConfig, clip: Any) -> Reward:
    """A reward by its name, ours or another package's, or by the path of what scores.

    Args:
        clip: frames, height, width and frames a second of what will be scored.

    Raises:
        NasError: if nobody knows it, or what it needs is not there.
    """
    if name.endswith(".onnx"):
        return _onnx(Path(name))
    if name.startswith("clip:"):
        return _clip(Path(name.removeprefix("clip:")))
    if name not in REGISTRY.names():
        others = "Or FILE.onnx, clip:FOLDER, labels:FILE.csv, judge:FILE.csv."
        raise NasError(f"rewards: {unknown('reward', name, REGISTRY.names())} {others}")
    return REGISTRY.get(name)(config, clip)


def _onnx(path: Path) -> Reward:
    """A scorer in an ONNX file: (1, 3, T, H, W) floats in 0..1 to one number."""
    from nas.evaluate.frechet import onnx_features

    scores = onnx_features(path)

    def scored(judged: Judged) -> Numbers:
        found = scores(judged.videos)
        if found.shape[1] != 1:
            raise NasError(f"{path}: gives {found.shape[1]} numbers a clip; a reward must give one")
        return found[:, 0]

    return scored


def _clip(folder: Path) -> Reward:
    """Cosine similarity of CLIP's images of the frames, averaged, and its text of the prompt."""
    import torch
    from transformers import CLIPModel, CLIPProcessor

    try:
        model: Any = CLIPModel.from_pretrained(str(folder), local_files_only=True).eval()
        processor: Any = CLIPProcessor.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise NasError(f"reward clip:{folder}: no CLIP model with its processor can be read there ({reason})") from None

    @torch.no_grad()
    def similarity(judged: Judged) -> Numbers:
        text = processor(text=[judged.prompt], return_tensors="pt", truncation=True)
        words = model.get_text_features(**text)
        words = torch.nn.functional.normalize(getattr(words, "pooler_output", words), dim=-1)
        found = []
        for video in judged.videos:
            frames = [(frame * 255).round().astype(np.uint8) for frame in video]
            seen = model.get_image_features(**processor(images=frames, return_tensors="pt"))
            seen = torch.nn.functional.normalize(getattr(seen, "pooler_output", seen), dim=-1)
            found.append(float((seen @ words[0]).mean()))
        return np.asarray(found)

    return similarity


# What scores mean -----------------------------------------------------------------------------------------------------


def checked(scores: Any, name: str, judged: Judged) -> Numbers:
    """The scores, if there is one finite number a clip.

    Raises:
        NasError: naming reward, group and what it answered.
    """
    found = np.asarray(scores, dtype=np.float64)
    if found.shape != (len(judged.videos),) or not np.isfinite(found).all():
        raise NasError(
            f"reward {name}: answers {np.array2string(found, threshold=8)} for group {judged.group} "
            f"({judged.prompt!r}); it must give one finite number for each of {len(judged.videos)} clips"
        )
    return found


def wins_of(scores: Numbers, tie: float) -> Numbers:
    """(k, S) win rates in 0..1 of (k, S) scores: the share of the other clips that each beats, ties counted half."""
    gap = scores[:, None] - scores[None]
    size = np.maximum(np.abs(scores)[:, None], np.abs(scores)[None])
    beats = np.where(np.abs(gap) <= tie * size, 0.5, (gap > 0).astype(np.float64))
    return np.asarray((beats.sum(1) - 0.5) / (len(scores) - 1))  # itself ties with itself


def averaged(wins: Sequence[Numbers]) -> Numbers:
    """(k, S) win rates averaged over rewards, each (k, S); where a reward says nothing (NaN) the others speak alone."""
    stacked = np.stack(wins)
    said = ~np.isnan(stacked)
    count = said.sum(0)
    total = np.where(said, stacked, 0.0).sum(0)
    return np.where(count > 0, total / np.maximum(count, 1), 0.5)
