"""The main job as stages: each goes on from what is there, each can be run alone, and what it took is written down."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.config import CONFIG_FILE, SUPERNET, RunConfig, check_warmup, load, store, with_search
from nas.console import progress, say
from nas.costs import cost_model, load_table, profile_space
from nas.errors import AnswerIsNo, NasError
from nas.files import read_json, write_whole
from nas.scores import open_scorer, rescorer, scored_by, with_scoring

if TYPE_CHECKING:
    from latency_tables.budget import Budget
    from latency_tables.cost import CostModel
    from nas.ranking.scoring import Scorer
    from nas.search.front import Choice
    from nas.search.problem import Problem
    from nas.search.studies import Evaluation
    from search_spaces.arrangement import Arrangement

METRICS = "metrics.json"
KEPT = ("done", "timings", "chosen")  # of it, what later stages add to
EXPLAIN = "explain.json"


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
        store(config, out)
        if "commit" not in read_metrics(out):
            note(out, **provenance(config))
        _run_stages(config, out, workers, storage)
        from nas.report import write_report

        say(f"report     {write_report(out)}")
        return read_metrics(out)


def _run_stages(config: RunConfig, out: Path, workers: int, storage: str | None) -> None:
    from device_profiler.device import Device
    from latency_tables.table import table_path
    from nas import stages as of
    from search_spaces.space import Space

    space, device, settings = Space.load(config.space), Device.load(config.device), config.model_dump_json()
    table, arrangement = table_path(out / "table", device.name, device.runtime), out / "arrangement.yaml"
    last, model, packages = out / SUPERNET / f"step-{config.train.steps:08d}", out / "model", out / "coreml"
    answer, samples = (arrangement, out / "front.csv", out / EXPLAIN), out / "samples"

    def refuse_at_once(stage: of.Stage) -> None:
        """An impossible budget is answered before hours of training."""
        if stage.name == "train":
            problem_or_refuse(config, out)

    of.run_stages(
        out,
        [
            of.Stage(
                "profile",
                [settings],
                lambda: of.has_rows(table, of.table_keys(space, device)),
                lambda: profile_space(config.space, config.device, out / "table"),
            ),
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
            of.Stage(
                "export", [arrangement, last], lambda: of.has_packages(packages), lambda: export(out), of.check_export
            ),
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
    from nas.cache import CacheConfig, Progress, build_cache
    from nas.config import resolve
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
    from nas.checkpoint import list_checkpoints, sole_writer
    from nas.data import open_data
    from nas.data.lengths import words_fit
    from nas.trained import Step, read_best
    from nas.trainer import check_data, check_source, train
    from nas.weights import check_unet
    from search_spaces.space import Space

    check_warmup(config.train)
    main = int(os.environ.get("RANK", "0")) == 0
    if main and (out / CONFIG_FILE).exists():
        store(config, out)  # another run is said before any video is decoded
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
        check_unet(config.train.init)
    if main:
        store(config, out)  # now that there is something to train on
    for skipped in data.skipped if main else ():
        say(f"  skipped {skipped}")
    with sole_writer(out / SUPERNET) if main else nullcontext(), progress("train") as report:

        def told(step: Step) -> None:
            best = f", validation {step.validation:.4f}" if step.validation is not None else ""
            report(
                step.step,
                config.train.steps,
                f"loss {step.loss:.4f}{best}, {1 / step.seconds:.1f} steps/s, {step.frames_per_s:.0f} frames/s of "
                f"{step.loader_frames_per_s:.0f} loadable, {step.memory_mb:.0f} MB",
            )

        draw, drawn_from = draw_within(config, out) if config.train.paths == "within_budget" else (None, "")
        train(
            space,
            data,
            config.train,
            out / "supernet",
            seed=config.seed,
            progress=told,
            warn=say,
            validation=validation,
            draw=draw,
            drawn_from=drawn_from,
        )
    best = read_best(out / "supernet")
    named = f"step {best['step']}, validation {best['loss']:.4f}" if best else "not validated"
    return {"run": str(out), "steps": config.train.steps, "best": named, "main": main}


def draw_within(config: RunConfig, out: Path) -> tuple[Callable[[int], list[Arrangement]], str]:
    """Paths of a step among the arrangements that meet the run's budget, and what they depend on.

    Raises:
        NasError: if the run has no table of the device, or nothing meets the budget.
    """
    from device_profiler.device import Device
    from latency_tables.table import table_path
    from nas.paths import WithinBudget

    device = Device.load(config.device)
    table = table_path(out / "table", device.name, device.runtime)
    if not table.exists():
        raise NasError(
            f"train.paths=within_budget needs the costs of {device.name}, and {table} is not there; measure them with "
            f"nas profile {config.space} --device {config.device} --table {out / 'table'}"
        )
    problem = make_problem(config, out)
    paths = WithinBudget(problem)
    limits = ", ".join(f"{name} {value:g}" for name, value in problem.budget.bounds.items())
    return (lambda step: paths(config.seed, step)), f"{limits}; table {table_digest(problem.costs)}"


@dataclass(frozen=True)
class Answer:
    """What a search says: the choice, or why there is none."""

    feasible: bool
    message: str
    front: tuple[dict[str, Any], ...] = ()
    chosen: dict[str, Any] | None = None
    picture: str = ""
    reasons: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "feasible": self.feasible,
            "message": self.message,
            "chosen": self.chosen,
            "front": list(self.front),
        }

    def render(self) -> str:
        lines = [f"{'loss':>9} {'+-':>7} {'ms':>9} {'MB':>9}  arrangement"]
        for row in self.front:
            mark = "*" if self.chosen and row["key"] == self.chosen["key"] else " "
            lines.append(
                f"{row['loss']:9.4f} {row['loss_stderr']:7.4f} {row['latency_ms']:9.2f} {row['peak_mb']:9.1f} "
                f"{mark}{row['layers']}"
            )
        return "\n".join([*(lines if self.front else []), self.message, self.picture]).strip()


def search_arrangement(
    out: Path,
    *,
    latency_ms: float | None = None,
    memory_mb: float | None = None,
    parameters_min: float | None = None,
    parameters_max: float | None = None,
    trials: int | None = None,
    sampler: str | None = None,
    workers: int = 1,
    storage: str | None = None,
    study: str | None = None,
    scoring: str | None = None,
    sets: Sequence[str] = (),
    helper_of: int | None = None,
) -> Answer:
    """Search the run's supernet under a budget, and write front.csv, arrangement.yaml and the metrics.

    Limits left out come from the run's configuration. A budget that nothing meets is answered at once.

    Args:
        workers: processes on this machine, this one included.
        storage: URL of a database that other machines search too; by default the run's own ``study.journal``.
        scoring: in place of the configured one; each has a journal of its own.
        sets: ``search.KEY=VALUE`` in place of the run's own.
        study: name of the study in it; by default it names the space and the device.
        helper_of: process that started this one beside it; it only evaluates, and writes no answer.
    """
    from latency_tables.budget import nearest
    from nas.quality import Quality
    from nas.search.samplers import NEED_WHOLE_SCORES, SAMPLERS
    from nas.search.study import search
    from nas.search.workers import Helpers, check_workers, helping, one_thread, one_writer

    check_workers(workers)
    if trials is not None and trials < 1:
        raise NasError(f"--trials must be 1 or more, but is {trials}; leave it out for the run's own number")
    config = with_scoring(with_search(load(out), sets), scoring)
    limits = {
        "latency_ms": latency_ms,
        "memory_mb": memory_mb,
        "parameters_min": parameters_min,
        "parameters_max": parameters_max,
    }
    problem = make_problem(config, out, limits)
    name = sampler or config.search.sampler
    if name not in SAMPLERS:
        raise NasError(f"sampler: unknown sampler {name!r}. Known samplers: {', '.join(sorted(SAMPLERS))}")
    refused = nearest(problem.costs, problem.budget)
    if refused is not None:
        return Answer(False, f"nothing meets the budget: {refused.message}")
    if storage:
        from nas.search.storage import shown

        shown(storage)  # what is no URL is said before anything is loaded
    with one_thread(workers) if workers > 1 else nullcontext():
        quality, steps = open_scorer(config, out)
        scored = scored_by(config, out, steps)
        identity = {
            "space": problem.space.fingerprint,
            "table": table_digest(problem.costs),
            **scored,
            "seed": str(config.seed),
        }
        words = ["search", str(out), "--trials", str(trials or config.search.trials), "--sampler", name]
        for option, limit in {**limits, "study": study, "scoring": scoring}.items():
            words += [f"--{option.replace('_', '-')}", str(limit)] if limit is not None else []
        words += [word for text in sets for word in ("--set", text)]
        same_table = table_watch(config, out, problem)
        left_out: list[str] = []
        with Helpers(words, workers - 1, storage) as helpers, progress("search") as report:

            def check() -> None:
                same_table()
                helpers.check()
                if helper_of is not None:
                    helping(helper_of)

            found = search(
                problem,
                quality.score,
                storage or out / (f"study.{scoring}.journal" if scoring else "study.journal"),
                identity=identity,
                details={"table": table_rows(problem.costs)},
                trials=trials or config.search.trials,
                sampler=name,
                seed=config.seed,
                study_name=study or (f"{config.space} on {config.device}" if storage else "search"),
                check=check,
                progress=lambda done, wanted, e: report(done, wanted, evaluation_line(e)),
                gradual=quality if isinstance(quality, Quality) else None,
                halving=config.search.halving and name not in NEED_WHOLE_SCORES,
                together=config.search.together,
                left_out=left_out.append,
                population=config.search.population,
            )
            if workers > 1:  # whoever had the last trial
                report(trials or config.search.trials, trials or config.search.trials, f"by {workers} workers")
    if helper_of is not None:
        return Answer(True, "")
    with one_writer(out):
        return write_answer(config, out, problem, found, quality, scored, left_out)


def write_answer(
    config: RunConfig,
    out: Path,
    problem: Problem,
    found: list[Evaluation],
    quality: Scorer,
    scored: dict[str, str],
    left_out: Sequence[str] = (),
) -> Answer:
    """Choose from what a search has found, and write it down; ``scored`` is what its scores depend on.

    Args:
        left_out: lines on arrangements that the search gave up; part of the answer.
    """
    from nas.ranking.evidence import sentence as ranking_evidence
    from nas.search.explain import explain, render
    from nas.search.front import choose, pareto_front, write_front
    from search_spaces.picture import picture

    front = pareto_front(found)
    finer, closer = rescorer(config, out, quality, scored)
    best_few = sorted(front, key=lambda e: e.loss)[: config.search.rescored]
    in_order = sorted(best_few, key=lambda e: e.latency_ms)
    choice = choose(in_order, finer.paired_difference, closer.paired_difference)
    chosen = choice.chosen
    write_front(out / "front.csv", found, chosen.arrangement.key)
    chosen.arrangement.save(out / "arrangement.yaml")
    evidence = ranking_evidence(out, scored)
    note_search(out, problem, found, choice, finer, evidence)
    reasons = explain(problem, found, chosen, finer.paired_difference)
    for scores in (finer, closer):
        scores.keep()
    write_json(out / EXPLAIN, reasons.to_json())
    costs = problem.costs.breakdown(np.array(chosen.choice))
    drawn = picture(
        problem.space,
        chosen.arrangement,
        {row["position"]: row["latency_ms"] for row in costs if row["position"] != "backbone" and row["layers"]},
    )
    told = "\n".join([sentence(choice, problem), f"ranking    {evidence}", *left_out])
    return Answer(True, told, tuple(map(_row, front)), _row(chosen), drawn, render(reasons))


def evaluation_line(e: Evaluation) -> str:
    """An evaluation as the progress line shows it."""
    early = f", stopped after {e.clips} clips" if e.pruned else ""
    return f"loss {e.loss:.4f} at {e.latency_ms:.1f} ms{early}"


def say_answer(answer: Answer) -> None:
    """Print the choice; a budget that nothing meets ends the run."""
    if not answer.feasible:
        raise AnswerIsNo(answer.message)
    say(f"search     {answer.message}")


def build(out: Path) -> None:
    """The chosen arrangement as a model folder."""
    from nas.build import build_model

    built = build_model(out, out / "model")
    say(f"build      {built['model']}: {built['parameters']:,} parameters")


def export(out: Path) -> None:
    """The model folder as a Core ML package."""
    from nas.export import export_model

    facts = export_model(out / "model", out / "coreml", "deployment")
    note(out, coreml=facts)
    say(f"export     {facts['package']}: {facts['operations']} operations in {facts['seconds']} s")


def show(config: RunConfig, out: Path) -> None:
    """The frames of the report."""
    from nas.showcase import write_samples

    write_samples(config, out)


def compare(config: RunConfig, out: Path) -> None:
    """The chosen network measured whole, beside the sum that chose it."""
    from nas import compare as comparing

    facts = comparing.measure_chosen(config, out)
    comparing.write(out, facts)
    measured = {name: value for name, value in facts.items() if name != "key"}
    note(out, chosen={**read_metrics(out).get("chosen", {}), **measured})


# The search's parts -----------------------------------------------------------------------------------


def make_problem(config: RunConfig, out: Path, limits: Mapping[str, float | None] | None = None) -> Problem:
    """Space, costs and budget of a run; ``limits`` go before the configured ones."""
    from device_profiler.device import Device
    from nas.search.problem import Problem
    from search_spaces.space import Space

    space, device = Space.load(config.space), Device.load(config.device)
    table = load_table(device, out / "table")
    costs = cost_model(space, table, allow_mixed=config.search.allow_estimated)
    if costs.source != "measured" and not config.search.allow_estimated:
        raise NasError(
            f"the table of {device.name} is {costs.source}, not measured; say --set search.allow_estimated=true to let "
            "estimates drive the search"
        )
    budget = make_budget(config, costs, device.memory_limit_mb, limits or {})
    return Problem(space, costs, budget, config.search.objectives)


def make_budget(
    config: RunConfig, costs: CostModel, device_memory_mb: float | None, limits: Mapping[str, float | None]
) -> Budget:
    """The limits that are given, else the configured ones, else a share over the bare backbone and the device's own.

    Latency is held with the margin that the table's evidence asks for, as ``nas table predict`` holds it.
    """
    from latency_tables.budget import LIMITS, Budget

    wanted = config.search
    asked = {name: getattr(wanted, name) if limits.get(name) is None else limits[name] for name in LIMITS}
    if asked["latency_ms"] is None:
        asked["latency_ms"] = round(costs.backbone_latency_ms * wanted.latency_ratio, 3)
    if asked["memory_mb"] is None:
        asked["memory_mb"] = device_memory_mb
    return Budget(**asked, margin=costs.audit.margin if wanted.margin is None else wanted.margin)


def problem_or_refuse(config: RunConfig, out: Path) -> Problem:
    """The problem, if something in the space meets the budget."""
    from latency_tables.budget import nearest

    problem = make_problem(config, out)
    refused = nearest(problem.costs, problem.budget)
    if refused is not None:
        raise AnswerIsNo(f"nothing meets the budget: {refused.message}")
    return problem


def table_digest(costs: CostModel) -> str:
    """12 hex characters of the rows that costs come from: a changed table is another question."""
    rows = [
        (row.key, row.status, row.latency_ms_median, row.weights_mb, row.activation_peak_mb)
        for row in costs.rows.values()
    ]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:12]


def table_rows(costs: CostModel) -> dict[str, str]:
    """Workload key -> its costs as words, to say which rows of a table changed."""
    return {
        row.key: f"{row.latency_ms_median} ms and {row.weights_mb} + {row.activation_peak_mb} MB"
        if row.ok
        else row.status
        for row in costs.rows.values()
    }


def table_watch(config: RunConfig, out: Path, problem: Problem) -> Callable[[], None]:
    """What a search calls before each trial: its table is still the one that it began with.

    Raises:
        NasError: when called, if it is not, naming what changed.
    """
    from device_profiler.device import Device
    from latency_tables.table import table_path
    from nas.search.studies import difference

    device = Device.load(config.device)
    path = table_path(out / "table", device.name, device.runtime)
    seen = [path.stat().st_mtime_ns]

    def check() -> None:
        now = path.stat().st_mtime_ns
        if now == seen[0]:
            return
        seen[0] = now
        costs = make_problem(config, out).costs
        if table_digest(costs) != table_digest(problem.costs):
            what = difference(table_rows(problem.costs), table_rows(costs))
            raise NasError(
                f"{path} changed while the search ran{what}; what was evaluated is kept. Put the table back to go on, "
                "or move study.journal away to search with the new one"
            )

    return check


def sentence(choice: Choice, problem: Problem) -> str:
    """Why this arrangement."""
    chosen, best = choice.chosen, choice.best
    words = {
        "latency_ms": "{:.1f} ms",
        "memory_mb": "{:.0f} MB",
        "parameters_min": "at least {:,.0f} parameters",
        "parameters_max": "at most {:,.0f} parameters",
    }
    limits = ", ".join(words[name].format(value) for name, value in problem.budget.given.items())
    if problem.budget.margin and problem.budget.latency_ms is not None:
        limits += f", latency with a margin of {problem.budget.margin:.1%}"
    text = (
        f"within {limits}: loss {chosen.loss:.4f} at {chosen.latency_ms:.1f} ms and {chosen.peak_mb:.1f} MB predicted"
    )
    if chosen is best:
        return text + ", the lowest loss found"
    return (
        f"{text}; cheaper than the lowest loss found ({best.latency_ms:.1f} ms), which cannot be told from it "
        f"(difference {choice.difference:+.4f} +- {choice.stderr:.4f})"
    )


def note_search(
    out: Path, problem: Problem, found: list[Evaluation], choice: Choice, finer: Scorer, evidence: str
) -> None:
    """What the report needs to know of a search."""
    costs, chosen = problem.costs, choice.chosen
    empty = problem.space.empty()
    before = read_metrics(out).get("chosen", {})
    kept = before if before.get("key") == chosen.arrangement.key else {}  # what was measured of the same network
    gained, stderr = finer.paired_difference(empty, chosen.arrangement)
    everything = [e for e in found if not e.is_reference]
    note(
        out,
        budget=dict(problem.budget.given),
        held={"margin": problem.budget.margin, "why": costs.audit.sentence, **problem.budget.bounds},
        reachable=reachable(costs),
        source=costs.source,
        search={
            "evaluated": len(everything),
            "references": len(found) - len(everything),
            "stopped_early": sum(e.pruned for e in found),
            "sentence": sentence(choice, problem),
            "ranking": evidence,
            "tied": [e.arrangement.key for e in choice.tied],
            "sampler": everything[-1].origin if everything else "",
        },
        empty={"loss": finer.score(empty).loss, "gain": gained, "gain_stderr": stderr},
        chosen={
            **kept,
            "key": chosen.arrangement.key,
            "loss": finer.score(chosen.arrangement).loss,
            "loss_stderr": finer.score(chosen.arrangement).stderr,
            "latency_ms_predicted": chosen.latency_ms,
            "peak_mb_predicted": chosen.peak_mb,
            "parameters": chosen.parameters,
            "backbone_latency_ms": costs.backbone_latency_ms,
        },
        breakdown=[{**row, "layers": list(row["layers"])} for row in costs.breakdown(np.array(chosen.choice))],
    )


def reachable(costs: CostModel) -> dict[str, list[float]]:
    """Lowest and highest latency and peak memory over the whole space, exactly."""
    from latency_tables.optimum import extremes

    found: dict[str, list[float]] = {}
    for column, ends in extremes(costs).items():
        values = [float(getattr(costs.cost(ends[end][None]), column)[0]) for end in ends if ends[end] is not None]  # type: ignore[index]
        found[column] = [min(values), max(values)] if values else []
    return found


def _row(e: Evaluation) -> dict[str, Any]:
    layers = "; ".join(f"{name}: {' + '.join(v.label for v in vs)}" for name, vs in e.arrangement.layers if vs)
    return {
        "key": e.arrangement.key,
        "loss": e.loss,
        "loss_stderr": e.loss_stderr,
        "latency_ms": e.latency_ms,
        "peak_mb": e.peak_mb,
        "parameters": e.parameters,
        "layers": layers or "no temporal layers",
    }


# What a run knows of itself -----------------------------------------------------------------------------


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
    here = Path(__file__).parent
    ask: Callable[[list[str]], str] = lambda args: subprocess.run(  # noqa: E731
        ["git", "-C", str(here), *args], capture_output=True, text=True, timeout=10, check=True
    ).stdout.strip()
    try:
        return ask(["rev-parse", "--short", "HEAD"]) + ("+" if ask(["status", "--porcelain"]) else "")
    except (OSError, subprocess.SubprocessError):
        return None
