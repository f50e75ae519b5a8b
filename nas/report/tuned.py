"""Fine-tuned models that lie in a run folder: what each recipe improved, and beside it what became of motion."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nas.errors import NasError
from nas.evaluate.motion import fell, sentence
from nas.files import read_json
from nas.report.folder import as_mapping
from nas.report.texts import number

WANTED = ("before", "after", "change", "low", "high", "prompts")


def read_tuned(run: Path) -> tuple[Mapping[str, Any], ...]:
    """``RUN/*/finetune/result.json``, each with the ``name`` of its folder; one that cannot be read is left out."""
    found = []
    for path in sorted(run.glob("*/finetune/result.json")):
        try:
            told = read_json(path)
        except NasError:
            continue
        if isinstance(told, dict):
            found.append({"name": path.parent.parent.name, **told})
    return tuple(found)


def tuned_rows(run: Path) -> list[dict[str, Any]]:
    """One row a fine-tuned model, for the page."""
    rows = []
    for told in read_tuned(run):
        improved, motion = as_mapping(told.get("improved")), as_mapping(told.get("motion"))
        known = all(number(motion.get(name)) is not None for name in WANTED)
        first, last = number(improved.get("first")), number(improved.get("last"))
        what, better = improved.get("what", "loss"), improved.get("better", "")
        gain = "" if first is None or last is None else f"{what}: {first:.4g} to {last:.4g} ({better} is better)"
        rows.append(
            {
                "name": str(told.get("name")),
                "stage": str(told.get("stage", "")),
                "improved": gain,
                "motion": sentence(motion) if known else "was not measured",
                "fell": known and fell(motion),
            }
        )
    return rows
