"""The main job's stages: what each needs, what each leaves, and when it is done.

A stage is done when it ran to its end on the same inputs and all that it left is still there, piece by piece. What a
stage needs is looked at before the first one that has work to do: a wrong name is not found after hours of training.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.config import RunConfig
from nas.console import say
from nas.errors import NasError

if TYPE_CHECKING:
    from device_profiler.device import Device
    from search_spaces.space import Space


def nothing() -> None:
    """What a stage needs that needs nothing."""


@dataclass(frozen=True)
class Stage:
    """One part of the main job.

    Args:
        inputs: what its result depends on: texts, and files by their content.
        whole: whether all that the stage leaves is there.
        work: does it.
        check: raises ``NasError`` if something that the stage needs is wrong; costs seconds at most.
    """

    name: str
    inputs: Sequence[str | Path]
    whole: Callable[[], bool]
    work: Callable[[], object]
    check: Callable[[], object] = nothing

    def digest(self) -> str:
        """12 hex characters of the inputs as they are now."""
        found = hashlib.sha256()
        for part in self.inputs:
            if isinstance(part, Path) and part.is_file():
                found.update(part.read_bytes())
            else:
                found.update(str(part.name if isinstance(part, Path) else part).encode())
        return found.hexdigest()[:12]

    def done(self, recorded: str | None) -> bool:
        """Whether it ended on these inputs, as ``recorded``, and left everything that it names."""
        return recorded == self.digest() and self.whole()


def run_stages(out: Path, stages: Sequence[Stage], between: Callable[[Stage], None]) -> None:
    """Run the stages that are not done, in order, after all of them have been checked; note what each took.

    Args:
        between: called before each stage that has work to do.
    """
    from nas.run.folder import read_metrics

    done = read_metrics(out).get("done", {})
    first = next((at for at, stage in enumerate(stages) if not stage.done(done.get(stage.name))), len(stages))
    for stage in stages[first:]:
        stage.check()
    for stage in stages:
        if stage.done(read_metrics(out).get("done", {}).get(stage.name)):
            say(f"{stage.name:<10} done before")
            continue
        between(stage)
        _run(out, stage)


def _run(out: Path, stage: Stage) -> None:
    from nas.run.folder import note, read_metrics

    started = time.perf_counter()
    metrics = read_metrics(out)
    earlier = metrics.get("timings", {}).get(stage.name, 0.0) if stage.name not in metrics.get("done", {}) else 0.0
    try:
        stage.work()
    finally:
        took = round(earlier + time.perf_counter() - started, 1)  # with the tries that were stopped
        note(out, timings={**read_metrics(out).get("timings", {}), stage.name: took})
    if not stage.whole():
        raise NasError(f"{out}: {stage.name} ended without all that it should leave; run the same command again")
    note(out, done={**read_metrics(out).get("done", {}), stage.name: stage.digest()})


# What a stage leaves ------------------------------------------------------------------------------------


def has_files(*paths: Path) -> bool:
    """Whether all of them are files that hold something."""
    return all(path.is_file() and path.stat().st_size > 0 for path in paths)


def has_rows(path: Path, keys: Iterable[str]) -> bool:
    """Whether the table there can be read and has a row, with a number or a reason, of every workload."""
    from latency_tables.errors import TableError
    from latency_tables.table import Table

    try:
        return path.is_file() and {row.key for row in Table.load(path)}.issuperset(keys)
    except TableError:
        return False


def has_checkpoint(folder: Path) -> bool:
    """Whether every file that a checkpoint's state names is there, at its size."""
    from nas.training.checkpoint import STATE

    sizes = _mapping(folder / STATE).get("bytes")
    if not isinstance(sizes, dict) or not sizes:
        return False
    files = ((folder / f"{name}.safetensors", size) for name, size in sizes.items())
    return all(file.is_file() and file.stat().st_size == size for file, size in files)


def has_model(folder: Path) -> bool:
    """Whether every part that ``model_index.json`` names is there with its configuration and its weights.

    Without an index, the folder is one part.
    """
    if not (folder / "model_index.json").is_file():
        return _has_part(folder)
    parts = {name: kind for name, kind in _mapping(folder / "model_index.json").items() if not name.startswith("_")}
    named = [folder / name for name, kind in parts.items() if isinstance(kind, list) and None not in kind]
    return bool(named) and all(_has_part(part) for part in named)


def _has_part(folder: Path) -> bool:
    if not any(folder.glob("*config.json")):
        return False
    if not (folder / "config.json").is_file():  # a tokenizer's or a scheduler's: no weights
        return True
    for index in folder.glob("*.index.json"):
        shards = _mapping(index).get("weight_map")
        return isinstance(shards, dict) and has_files(*(folder / str(name) for name in set(shards.values())))
    return any(has_files(file) for file in folder.glob("*.safetensors") if "-of-" not in file.name)  # a shard is a part


def has_packages(folder: Path) -> bool:
    """Whether every Core ML package that ``export.json`` tells of is there, with the files of its manifest."""
    told = _mapping(folder / "export.json")
    named = ["unet"] if "package" in told else []
    named += [name for name, facts in told.items() if isinstance(facts, dict) and "package_mb" in facts]
    return bool(named) and all(_has_package(folder / f"{name}.mlpackage") for name in named)


def _has_package(package: Path) -> bool:
    entries = _mapping(package / "Manifest.json").get("itemInfoEntries")
    if not isinstance(entries, dict) or not entries:
        return False
    paths = [entry.get("path") for entry in entries.values() if isinstance(entry, dict)]
    return all(isinstance(path, str) and (package / "Data" / path).exists() for path in paths)


def has_comparison(path: Path, arrangement: Path) -> bool:
    """Whether the comparison there is of the arrangement that stands chosen."""
    from search_spaces.arrangement import Arrangement
    from search_spaces.errors import SpaceError

    try:
        return bool(_mapping(path)) and _mapping(path).get("key") == Arrangement.load(arrangement).key
    except (SpaceError, OSError):
        return False


def _mapping(path: Path) -> dict[str, Any]:
    """A JSON mapping; empty where there is none, or a damaged one."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


# What a stage needs -------------------------------------------------------------------------------------


def table_keys(space: Space, device: Device) -> set[str]:
    """Workloads that the device's table needs of a space."""
    return {row.key for row in (*space.workloads(device.precision), *space.ends(device.precision))}


def check_training(config: RunConfig, space: Space) -> None:
    """Data that is there and fits the space, and weights to begin with.

    Raises:
        NasError: naming what is wrong.
    """
    from nas.data.cached import check_source
    from nas.pretrained.given import check_given

    check_source(space, config.data.source)
    for name, path in (("data.path", config.data.path), ("data.captions", config.data.captions)):
        if path is not None and "{" not in str(path) and not path.exists():
            raise NasError(f"{name}: {path} does not exist, and training needs it; correct it and run again")
    if config.train.init:
        check_given(space.backbone.family, config.train.init)


def check_search(config: RunConfig, storage: str | None) -> None:
    """A sampler that there is, and a database that answers.

    Raises:
        NasError: naming what is wrong.
    """
    from nas.search.samplers import check_sampler

    check_sampler(config.search.sampler)
    if storage is not None:
        check_storage(storage)


def check_storage(url: str) -> None:
    """Whether a database answers at the URL, now; a search that has begun waits for one that goes away.

    Raises:
        NasError: if it is no URL, its driver is not here, or it does not let this user in.
    """
    from sqlalchemy import create_engine
    from sqlalchemy.exc import SQLAlchemyError

    from device_profiler.errors import one_line
    from nas.search.storage import shown

    name = shown(url)

    try:
        engine = create_engine(url)
        try:
            engine.connect().close()
        finally:
            engine.dispose()
    except (SQLAlchemyError, OSError, TypeError, ValueError) as error:
        told = one_line(getattr(error, "orig", None) or error, 200)
        raise NasError(f"{name}: {told}; the search needs this database, so correct --storage") from None


def check_export() -> None:
    """coremltools, which writes the packages.

    Raises:
        NasError: if it is not installed.
    """
    import importlib.util

    if importlib.util.find_spec("coremltools") is None:
        raise NasError("export needs coremltools, which is not installed; pip install temporal-nas installs it")
