"""The main job as stages: each goes on from what is there, each can be run alone, and what it took is written down."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.config import CONFIG_FILE, SUPERNET, RunConfig, as_begun, check_warmup, store
from nas.console import progress, say
from nas.errors import AnswerIsNo, NasError
from nas.run.answer import Answer, search_arrangement
from nas.run.costs import draw_within, problem_or_refuse, profile_space
from nas.run.folder import EXPLAIN, note, provenance, read_metrics
from nas.run.makers import build_run, maker

if TYPE_CHECKING:
    pass


def run_all(config: RunConfig, out: Path, *, workers: int = 1, storage: str | None = None) -> dict[str, Any]:
    """All stages; the finished ones are not repeated, and the report is written last.

    A stage is finished when it ran to its end on the same inputs and all that it left is still there. What the stages
    need is checked before the first that has work to do. ``workers`` and ``storage`` are the search's, and change
    nothing of what the run is.

    Raises:
        NasError: if ``out`` holds another run, or another process works on it. AnswerIsNo: if nothing meets the budget.
    """
    from device_profiler.device import Device
    from nas.files import sole_writer
    from nas.search.workers import check_workers
    from search_spaces.space import Space

    check_workers(workers)
    check_warmup(config.train)
    Space.load(config.space), Device.load(config.device)  # what is misspelt leaves no folder behind
    if not (out / CONFIG_FILE).is_file():
        store(config, out)  # a folder that is somebody else's is refused before anything stands in it
    with sole_writer(out):
        config = store(config, out)
        if "commit" not in read_metrics(out):
            note(out, **provenance(config))
        _run_stages(config, out, workers, storage)
        from nas.report import write_report

        say(f"report     {write_report(out)}")
        return read_metrics(out)


def _run_stages(config: RunConfig, out: Path, workers: int, storage: str | None) -> None:
    from device_profiler.device import Device
    from latency_tables.table import table_path
    from nas.run import stages as of
    from search_spaces.space import Space

    space, device, settings = Space.load(config.space), Device.load(config.device), config.model_dump_json()
    table, arrangement = table_path(out / "table", device.name, device.runtime), out / "arrangement.yaml"
    last, model, coreml = out / SUPERNET / f"step-{config.train.steps:08d}", out / "model", out / "coreml"
    answer, samples = (arrangement, out / "front.csv", out / EXPLAIN), out / "samples"

    def refuse_at_once(stage: of.Stage) -> None:
        """An impossible budget is answered before hours of training."""
        if stage.name == "train":
            problem_or_refuse(config, out)

    def is_profiled() -> bool:
        return of.has_rows(table, of.table_keys(space, device))

    profiled, exported = (
        partial(profile_space, config.space, config.device, out / "table"),
        partial(export, config, out),
    )
    of.run_stages(
        out,
        [
            of.Stage("profile", [settings], is_profiled, profiled),
            of.Stage(
                "train",
                [settings],
                lambda: of.has_checkpoint(last),
                lambda: train_supernet(config, out),
                lambda: of.check_training(config, space),
            ),
            of.Stage(
                "search",
                [settings, table, last],
                lambda: of.has_files(*answer),
                lambda: say_answer(search_arrangement(out, workers=workers, storage=storage)),
                lambda: of.check_search(config, storage),
            ),
            of.Stage("build", [arrangement, last], lambda: of.has_model(model), lambda: build(out)),
            of.Stage(
                "compare",
                [arrangement, table],
                lambda: of.has_comparison(out / "compare.json", arrangement),
                lambda: compare(config, out),
            ),
            of.Stage("export", [arrangement, last], lambda: of.has_packages(coreml), exported, of.check_export),
            of.Stage(
                "samples",
                [arrangement, last, settings],
                lambda: of.has_files(samples / "samples.npz", samples / "captions.json"),
                lambda: show(config, out),
            ),
        ],
        refuse_at_once,
    )


# Stages -----------------------------------------------------------------------------------------------


def cache_latents(
    data: Path, space: str, out: Path, file: Path | None, sets: Sequence[str], models: dict[str, Any]
) -> dict[str, Any]:
    """Make, or go on making, a cache of the latents and text states of ``data``."""
    from nas.config import resolve
    from nas.data.caching import CacheConfig, Progress, build_cache
    from search_spaces.space import Space

    if not data.exists() and "{" not in data.name:
        raise NasError(f"{data}: no such folder or shard; give a folder with captions.csv, or webdataset's tar files")
    tars = data.suffix == ".tar" or (data.is_dir() and any(data.glob("*.tar")))
    source = "shards" if tars else "folder"
    config = resolve(space, None, file, [*sets, f"data.source={source}", f"data.path={json.dumps(str(data))}"])
    with progress("cache") as report:

        def told(p: Progress) -> None:
            report(p.done, p.total, f"{p.clips} clips, {p.frames_per_s:.1f} frames/s")

        how = CacheConfig(**models, device=config.train.device)
        summary = build_cache(config.data, Space.load(space), how, out, progress=told)
    for skipped in summary["skipped"]:
        say(f"  skipped {skipped}")
    return summary


def train_supernet(config: RunConfig, out: Path) -> dict[str, Any]:
    """Train, or go on training, the supernet of ``out``."""
    from nas.data import open_data
    from nas.data.cached import check_data, check_source
    from nas.data.lengths import words_fit
    from nas.pretrained.given import check_given
    from nas.supernet.stage import train
    from nas.training.checkpoint import list_checkpoints, sole_writer
    from nas.training.log import Step, read_best
    from search_spaces.space import Space

    check_warmup(config.train)
    main = int(os.environ.get("RANK", "0")) == 0
    if main and (out / CONFIG_FILE).exists():
        config = store(config, out)  # another run is said before any video is decoded
    config = as_begun(config, out)
    space = Space.load(config.space)
    clip = space.clip("training")
    check_source(space, config.data.source)
    data = open_data(config.data, clip, "train", config.seed, words_fit(space))
    validation = open_data(config.data, clip, "validation", config.seed) if config.train.validate_every else None
    check_data(space, data)
    if validation is not None and len(validation) < 2:
        raise NasError(
            f"validation needs 2 clips or more, but the data gives {len(validation)}; give it more or longer videos, "
            "or a larger data.validation_share"
        )
    if config.train.init and not list_checkpoints(out / SUPERNET):
        check_given(space.backbone.family, config.train.init)
    if main:
        config = store(config, out)  # now that there is something to train on
    for skipped in data.skipped if main else ():
        say(f"  skipped {skipped}")
    with sole_writer(out / SUPERNET) if main else nullcontext(), progress("train") as report:

        def told(step: Step) -> None:
            report(step.step, config.train.steps, step.sentence)

        report(0, config.train.steps, "the first batch is made")  # which may take its time
        within = draw_within(config, out) if config.train.paths == "within_budget" else None
        train(
            space,
            data,
            config.train,
            out / "supernet",
            seed=config.seed,
            progress=told,
            warn=say,
            tell=say,
            validation=validation,
            **(within.told if within is not None else {}),
            weights=config.quality.weights,
        )
    best = read_best(out / "supernet")
    named = f"step {best['step']}, validation {best['loss']:.4f}" if best else "not validated"
    return {"run": str(out), "steps": config.train.steps, "best": named, "main": main}


def say_answer(answer: Answer) -> None:
    """Print the choice; a budget that nothing meets ends the run."""
    if not answer.feasible:
        raise AnswerIsNo(answer.message)
    say(f"search     {answer.message}")


def build(out: Path) -> None:
    """The chosen arrangement as a model folder."""
    built = build_run(out, out / "model")
    say(f"build      {built['model']}: {built['parameters']:,} parameters")


def export(config: RunConfig, out: Path) -> None:
    """The model folder as Core ML packages."""
    facts = maker(config.space, "export")(out / "model", out / "coreml", "deployment")
    note(out, coreml=facts)
    parts = {out / "coreml" / name: part for name, part in facts.items() if isinstance(part, dict)}
    told = {facts["package"]: facts} if "package" in facts else parts
    for package, part in told.items():
        say(f"export     {package}: {part['operations']} operations")
    say(f"export     in {facts['seconds']} s")


def show(config: RunConfig, out: Path) -> None:
    """The frames of the report."""
    maker(config.space, "show")(config, out)


def compare(config: RunConfig, out: Path) -> None:
    """The chosen network measured whole, beside the sum that chose it."""
    from nas.run import compare as comparing

    facts = comparing.measure_chosen(config, out)
    comparing.write(out, facts)
    measured = {name: value for name, value in facts.items() if name != "key"}
    note(out, chosen={**read_metrics(out).get("chosen", {}), **measured})


# The search's parts -----------------------------------------------------------------------------------


# What a run knows of itself -----------------------------------------------------------------------------
