"""What a fine-tuning did: what its recipe improved, and beside it what became of motion."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.evaluate.motion import compared, sampled_motion, sentence
from nas.files import write_whole
from nas.model.made_with import FINETUNE
from nas.training.log import METRICS

if TYPE_CHECKING:
    from nas.recipes.config import FinetuneConfig, MotionConfig
    from nas.recipes.contract import Recipe, Source
    from nas.training.distributed import World

RESULT = "result.json"
EDGE = 20  # steps at either end of the log that are averaged, and no more than a quarter of it


def told_of(
    model: Path,
    out: Path,
    recipe: Recipe,
    config: FinetuneConfig,
    pipeline: Any,
    source: Source,
    world: World,
) -> dict[str, Any]:
    """What the fine-tuning of ``model`` into ``out`` did, kept in ``out/finetune/result.json``.

    Returns:
        ``improved``: the recipe's own column of the log, averaged over the first and the last steps. ``motion``: see
        ``nas.evaluate.motion.compared``; and ``motion_sentence``. The last two are absent where nothing is measured.
    """
    found: dict[str, Any] = {"improved": _improved(out / FINETUNE / METRICS, recipe)}
    if config.motion.prompts and any(clip.frames > 1 for clip in source.clips):
        found["motion"] = _motion(model, pipeline.to(world.device), source.captions, config.motion)
        found["motion_sentence"] = sentence(found["motion"])
    kept = {"stage": recipe.name, "summary": recipe.summary, "from": str(model), **found}
    write_whole(out / FINETUNE / RESULT, json.dumps(kept, indent=1))
    return found


def _motion(model: Path, tuned: Any, captions: Sequence[str], how: MotionConfig) -> dict[str, float]:
    """Motion of the model before and after, the same prompts and noise."""
    import numpy as np

    from nas.model.pipeline import load_pipeline

    order = np.random.default_rng(how.seed).permutation(len(captions))
    prompts = [captions[order[i % len(captions)]] for i in range(how.prompts)]
    told: dict[str, Any] = {"batch": how.batch, "steps": how.steps, "seed": how.seed}
    before = sampled_motion(load_pipeline(model).to(tuned.device), prompts, **told)
    return compared(before, sampled_motion(tuned, prompts, **told))


def _improved(log: Path, recipe: Recipe) -> dict[str, Any]:
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    values = [float(row[recipe.improves]) for row in rows if row.get(recipe.improves) is not None]
    if not values:
        return {}
    edge = max(1, min(EDGE, len(values) // 4))
    first, last = statistics.fmean(values[:edge]), statistics.fmean(values[-edge:])
    return {"what": recipe.improves, "first": first, "last": last, "better": "higher" if recipe.raises else "lower"}
