"""A run folder's notes: metrics, where results come from, and what was done before."""

from __future__ import annotations

import json
import os
import platform
from functools import partial
from pathlib import Path
from typing import Any

from latency_tables.versions import git
from nas.config import RunConfig
from nas.errors import NasError
from nas.files import read_json, write_whole

METRICS = "metrics.json"
KEPT = ("done", "timings", "chosen")  # of it, what later stages add to
EXPLAIN = "explain.json"


def note(out: Path, **facts: Any) -> None:
    """Put facts into ``metrics.json``; written whole or not at all."""
    write_json(out / METRICS, {**read_metrics(out), **facts})


def write_json(path: Path, facts: dict[str, Any]) -> None:
    """Written whole or not at all."""
    write_whole(path, json.dumps(facts, indent=1, default=str))


def read_metrics(out: Path) -> dict[str, Any]:
    path = out / METRICS
    if not path.exists():
        return {}
    try:
        found = read_json(path)
        if not isinstance(found, dict) or not all(isinstance(found.get(name, {}), dict) for name in KEPT):
            raise NasError(f"{path}: is no mapping of facts")
        return found
    except NasError as error:
        raise NasError(f"{error}; delete it and run the same command to write it again") from None


def provenance(config: RunConfig) -> dict[str, Any]:
    """Where the run's numbers come from: machine, versions, commit, seeds."""
    from nas.doctor import PACKAGES, memory_bytes, processor, version

    return {
        "space": config.space,
        "device": config.device,
        "seeds": {"run": config.seed, "quality": config.quality.seed},
        "versions": {
            "temporal-nas": version("temporal-nas"),
            "python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
        },
        "commit": commit(),
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "memory_gb": round(memory_bytes() / 1e9, 1),
            "system": f"{platform.system()} {platform.release()}",
        },
    }


def commit() -> str | None:
    """The commit of the tree that this package is imported from, "+" if changed; None for an installed one."""
    here = Path(__file__)
    ask = partial(git, here.parent)
    head, ours = ask("rev-parse", "--short", "HEAD"), ask("ls-files", "--error-unmatch", here.name)
    if head is None or ours is None:
        return None
    return head.decode().strip() + ("+" if ask("status", "--porcelain") else "")
