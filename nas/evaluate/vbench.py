"""VBench, a program with an environment of its own: the folder of videos that it expects, and its results read back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.errors import NasError
from nas.finite import check_finite
from nas.media import write_video
from nas.training.checkpoint import write_whole

VIDEOS = "videos"  # of a folder for VBench: nothing but videos lies in there, it looks at the first name it finds
MADE = "made.json"  # beside them: what they were made with
SEEDS = "seeds.json"  # and the seed of every one
EACH = 5  # videos of one prompt that its standard mode reads
FLICKERING = "temporal_flickering"
FLICKERING_EACH = 25  # of its prompts: its static filter then keeps the first five in which nothing moves
FILTERED = "filtered_videos"  # the folder that the filter makes
PROTOCOL = (
    f"{EACH} videos a prompt, {FLICKERING_EACH} of {FLICKERING}'s, each with noise of its own (seeds.json); "
    f"{FLICKERING} is scored on what static_filter.py keeps"
)

QUALITY = (
    "subject_consistency",
    "background_consistency",
    "temporal_flickering",
    "motion_smoothness",
    "aesthetic_quality",
    "imaging_quality",
    "dynamic_degree",
)
SEMANTIC = (
    "object_class",
    "multiple_objects",
    "human_action",
    "color",
    "spatial_relationship",
    "scene",
    "appearance_style",
    "temporal_style",
    "overall_consistency",
)
#: Ranges that VBench stretches to 0..1 before it averages (its scripts/constant.py); 0..1 where none stands here.
RANGES = {
    "subject_consistency": (0.1462, 1.0),
    "background_consistency": (0.2615, 1.0),
    "temporal_flickering": (0.6293, 1.0),
    "motion_smoothness": (0.706, 0.9975),
    "scene": (0.0, 0.8222),
    "appearance_style": (0.0009, 0.2855),
    "temporal_style": (0.0, 0.364),
    "overall_consistency": (0.0, 0.364),
}
WEIGHTS = {"dynamic_degree": 0.5}  # 1 for the others


def read_counts(path: Path) -> dict[str, int]:
    """Prompts for VBench, and how many videos its protocol wants of each.

    ``VBench_full_info.json`` says which dimension a prompt is for; a text file, one prompt in each line, says so by its
    name, as VBench's own ``prompts_per_dimension/temporal_flickering.txt``.

    Raises:
        NasError: if the file is none, or a prompt cannot be a file name.
    """
    if not path.is_file():
        raise NasError(f"{path}: no such file; give VBench_full_info.json or a text file with one prompt in each line")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise NasError(f"{path}: is not text in UTF-8 (byte {error.start}); save it as UTF-8") from None
    if path.suffix == ".json":
        try:
            entries = [(_text(entry["prompt_en"]), entry.get("dimension", ())) for entry in json.loads(text)]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise NasError(
                f"{path}: is no list of prompts with prompt_en, as VBench_full_info.json is ({error})"
            ) from error
    else:
        entries = [(line.strip(), (path.stem,)) for line in text.split("\n") if line.strip()]
    found: dict[str, int] = {}
    for prompt, dimensions in entries:
        found[prompt] = max(found.get(prompt, 0), FLICKERING_EACH if FLICKERING in dimensions else EACH)
    if not found:
        raise NasError(f"{path}: names no prompt; write one in each line")
    for prompt in found:
        if "/" in prompt or "\0" in prompt or len(prompt.encode()) > 240:
            raise NasError(f"{path}: VBench names videos after prompts, and this cannot name a file: {prompt[:80]!r}")
    return found


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"prompt_en is a {type(value).__name__}")
    return value


def seed_of(seed: int, prompt: str, number: int) -> int:
    """The seed of one video's noise: of its own, whatever is sampled before it, and the same in every run."""
    return int.from_bytes(hashlib.sha256(f"{seed}\n{number}\n{prompt}".encode()).digest()[:7])


def claim(folder: Path, made: Mapping[str, Any]) -> None:
    """Write down what the folder's videos are made with, before the first one is.

    Raises:
        NasError: if it holds videos that were made with something else, or nobody knows with what.
    """
    path = folder / MADE
    remedy = "give another --vbench-out, or delete its videos and that file"
    if path.is_file():
        try:
            known = dict(json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise NasError(f"{path}: damaged ({error}); {remedy}") from None
        differs = [
            f"{name} is {known.get(name)}, now {value}" for name, value in made.items() if known.get(name) != value
        ]
        if differs:
            raise NasError(f"{path}: the videos there were made with other settings ({', '.join(differs)}); {remedy}")
    elif any((folder / VIDEOS).glob("*")):
        raise NasError(f"{folder / VIDEOS}: holds videos, but no {MADE} beside it says what made them; {remedy}")
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(dict(made), indent=1))


def write_folder(
    folder: Path,
    prompts: Sequence[str],
    sample: Callable[[str, int], NDArray[np.uint8]],
    fps: float,
    each: int | Mapping[str, int] = EACH,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """Sample ``videos/PROMPT-I.mp4`` for every prompt; what is there already stays, so that a stop loses nothing.

    Who made what is there is not asked here; see ``claim``.

    Args:
        sample: (prompt, number) to (T, H, W, 3) frames. each: videos of a prompt; by prompt, as ``read_counts`` says.

    Returns:
        Folder, how many videos, and the commands that VBench's own environment runs.
    """
    videos = folder / VIDEOS
    videos.mkdir(parents=True, exist_ok=True)
    counts = each if isinstance(each, Mapping) else dict.fromkeys(prompts, each)
    wanted = [(prompt, number) for prompt in prompts for number in range(counts[prompt])]
    for done, (prompt, number) in enumerate(wanted):
        target = videos / f"{prompt}-{number}.mp4"
        if not target.is_file():
            made = folder / target.name  # nothing but whole videos lies where VBench looks
            write_video(made, sample(prompt, number), fps)
            made.replace(target)
        if progress is not None:
            progress(done + 1, len(wanted), prompt[:40])
    write_whole(folder / "prompts.json", json.dumps(list(prompts), indent=1))
    evaluate = "vbench evaluate --videos_path {} --output_path {} --dimension {}"
    told = {
        "folder": str(folder),
        "videos": len(wanted),
        "command": evaluate.format(videos, folder / "results", "DIMENSION"),
        "protocol": PROTOCOL,
    }
    if FLICKERING_EACH in counts.values():
        kept = folder / "static"
        told["static_filter"] = f"python static_filter.py --videos_path {videos} --result_path {kept}"
        told["flickering_command"] = evaluate.format(kept / FILTERED, folder / "results", FLICKERING)
    return told


def read_results(path: Path) -> dict[str, Any]:
    """Scores from VBench's ``*_eval_results.json``, one file or a folder of them.

    Returns:
        ``dimensions``: each one's score as VBench prints it; ``quality``, ``semantic``, ``total``: its weighted means
        over stretched scores (total is (4 quality + semantic) / 5), None where a dimension is missing; ``protocol``: of
        each dimension how many videos it was read from, of flickering whether they were filtered, and what made them.

    Raises:
        NasError: if there is none, or a file is damaged, or names an unknown dimension.
    """
    files = sorted(path.glob("*_eval_results.json")) if path.is_dir() else [path] if path.is_file() else []
    if not files:
        raise NasError(f"{path}: no *_eval_results.json there; run vbench evaluate with --output_path {path} first")
    scores: dict[str, float] = {}
    done: dict[str, Any] = {}
    for file in files:
        try:
            for dimension, result in json.loads(file.read_text()).items():
                scores[dimension] = float(result[0] if isinstance(result, list) else result)
                done[dimension] = _read_from(dimension, result)
            check_finite(scores, f"{file}: the score of", "run vbench evaluate again")
        except (ValueError, TypeError, AttributeError, IndexError, RecursionError) as error:
            if isinstance(error, NasError):
                raise
            raise NasError(f"{file}: is no result of VBench ({error}); run vbench evaluate again") from error
    for dimension in scores:
        if dimension not in QUALITY + SEMANTIC:
            raise NasError(f"{path}: unknown dimension {dimension!r}; known: {', '.join(QUALITY + SEMANTIC)}")
    quality, semantic = _mean(scores, QUALITY), _mean(scores, SEMANTIC)
    total = (4 * quality + semantic) / 5 if quality is not None and semantic is not None else None
    folder = path if path.is_dir() else path.parent
    return {
        "dimensions": scores,
        "quality": quality,
        "semantic": semantic,
        "total": total,
        "protocol": {"dimensions": done, "sampled": _made(folder)},
    }


def _read_from(dimension: str, result: Any) -> dict[str, Any]:
    """How many videos a score was read from, and whether flickering was scored on filtered ones."""
    listed = result[1] if isinstance(result, list) and len(result) > 1 and isinstance(result[1], list) else []
    paths = [str(entry["video_path"]) for entry in listed if isinstance(entry, dict) and "video_path" in entry]
    told: dict[str, Any] = {"videos": len(paths) or None}
    if dimension == FLICKERING:
        filtered = bool(paths) and all(Path(path).parent.name == FILTERED for path in paths)
        told["static_filter"] = ("applied" if filtered else "not applied") if paths else "unknown"
    return told


def _made(results: Path) -> dict[str, Any] | None:
    """What the videos were made with, where the results lie beside them as ``write_folder`` says; else None."""
    for folder in (results, results.parent):
        try:
            return dict(json.loads((folder / MADE).read_text()))
        except (OSError, ValueError, TypeError, RecursionError):
            continue
    return None


def _mean(scores: dict[str, float], names: Sequence[str]) -> float | None:
    if any(name not in scores for name in names):
        return None
    weights = [WEIGHTS.get(name, 1.0) for name in names]
    stretched = [
        (scores[n] - RANGES.get(n, (0, 1))[0]) / (RANGES.get(n, (0, 1))[1] - RANGES.get(n, (0, 1))[0]) for n in names
    ]
    return sum(w * s for w, s in zip(weights, stretched, strict=True)) / sum(weights)
