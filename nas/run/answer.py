"""The answer of a search: the arrangement, the sentence beside it, and the files that keep it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.config import RunConfig, load, with_search
from nas.console import progress
from nas.errors import NasError
from nas.ranking.scores import open_scorer, rescorer, scored_by, with_scoring
from nas.run.costs import held_problem, make_problem, table_digest, table_rows, table_watch
from nas.run.folder import EXPLAIN, note, read_metrics, write_json

if TYPE_CHECKING:
    from latency_tables.cost import CostModel
    from nas.ranking.scoring import Scorer
    from nas.search.front import Choice
    from nas.search.problem import Problem
    from nas.search.studies import Evaluation


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


@dataclass(frozen=True)
class _Asked:
    """A search as it was asked for, with the run's own values where nothing was said."""

    out: Path
    config: RunConfig
    limits: dict[str, float | None]
    trials: int
    sampler: str
    workers: int
    storage: str | None
    study: str | None
    scoring: str | None
    sets: Sequence[str]
    helper_of: int | None

    @property
    def where(self) -> Path | str:
        """The study's database or journal; each scoring that was asked for has a journal of its own."""
        return self.storage or self.out / (f"study.{self.scoring}.journal" if self.scoring else "study.journal")

    @property
    def study_name(self) -> str:
        """In a database it must tell spaces and devices apart."""
        return self.study or (f"{self.config.space} on {self.config.device}" if self.storage else "search")

    @property
    def words(self) -> list[str]:
        """The command of a helper."""
        found = ["search", str(self.out), "--trials", str(self.trials), "--sampler", self.sampler]
        for option, value in {**self.limits, "study": self.study, "scoring": self.scoring}.items():
            found += [f"--{option.replace('_', '-')}", str(value)] if value is not None else []
        return found + [word for text in self.sets for word in ("--set", text)]


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
    from nas.search.samplers import check_sampler
    from nas.search.workers import check_workers, one_thread, one_writer

    check_workers(workers)
    if trials is not None and trials < 1:
        raise NasError(f"--trials must be 1 or more, but is {trials}; leave it out for the run's own number")
    config = with_scoring(with_search(load(out), sets), scoring)
    limits = {"latency_ms": latency_ms, "memory_mb": memory_mb}
    limits |= {"parameters_min": parameters_min, "parameters_max": parameters_max}
    problem = held_problem(make_problem(config, out, limits), out)
    name = sampler or config.search.sampler
    check_sampler(name, "--sampler" if sampler else "search.sampler")
    refused = nearest(problem.costs, problem.budget)
    if refused is not None:
        return Answer(False, f"nothing meets the budget: {refused.message}")
    if storage:
        from nas.search.storage import shown

        shown(storage)  # what is no URL is said before anything is loaded
    wanted = trials or config.search.trials
    asked = _Asked(out, config, limits, wanted, name, workers, storage, study, scoring, sets, helper_of)
    left_out: list[str] = []
    with one_thread(workers) if workers > 1 else nullcontext():
        quality, steps = open_scorer(config, out)
        scored = scored_by(config, out, steps)
        found = _found(asked, problem, quality, scored, left_out.append)
    if helper_of is not None:
        return Answer(True, "")
    with one_writer(out):
        return write_answer(config, out, problem, found, quality, scored, left_out)


def _found(
    asked: _Asked, problem: Problem, quality: Scorer, scored: dict[str, str], left_out: Callable[[str], None]
) -> list[Evaluation]:
    """Search, with the helpers that were asked for."""
    from nas.search.samplers import NEED_WHOLE_SCORES
    from nas.search.study import search
    from nas.search.workers import Helpers, helping
    from nas.supernet.quality import Quality

    config = asked.config
    same_table = table_watch(config, asked.out, problem)
    identity = {"space": problem.space.fingerprint, "table": table_digest(problem.costs), **scored}
    with Helpers(asked.words, asked.workers - 1, asked.storage) as helpers, progress("search") as report:

        def check() -> None:
            same_table()
            helpers.check()
            if asked.helper_of is not None:
                helping(asked.helper_of)

        found = search(
            problem,
            quality.score,
            asked.where,
            identity={**identity, "seed": str(config.seed)},
            details={"table": table_rows(problem.costs)},
            trials=asked.trials,
            sampler=asked.sampler,
            seed=config.seed,
            study_name=asked.study_name,
            check=check,
            progress=lambda done, wanted, e: report(done, wanted, evaluation_line(e)),
            gradual=quality if isinstance(quality, Quality) else None,
            halving=config.search.halving and asked.sampler not in NEED_WHOLE_SCORES,
            together=config.search.together,
            left_out=left_out,
            population=config.search.population,
        )
        if asked.workers > 1:  # whoever had the last trial
            report(asked.trials, asked.trials, f"by {asked.workers} workers")
    return found


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
    return Answer(
        True,
        told,
        tuple(_row(e, problem.words.none) for e in front),
        _row(chosen, problem.words.none),
        drawn,
        render(reasons),
    )


def evaluation_line(e: Evaluation) -> str:
    """An evaluation as the progress line shows it."""
    early = f", stopped after {e.clips} clips" if e.pruned else ""
    return f"loss {e.loss:.4f} at {e.latency_ms:.1f} ms{early}"


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
    baseline = problem.space.baseline()
    before = read_metrics(out).get("chosen", {})
    kept = before if before.get("key") == chosen.arrangement.key else {}  # what was measured of the same network
    gained, stderr = finer.paired_difference(baseline, chosen.arrangement)
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
        baseline={
            "loss": finer.score(baseline).loss,
            "gain": gained,
            "gain_stderr": stderr,
            "layers": baseline.num_layers,
        },
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


def _row(e: Evaluation, none: str) -> dict[str, Any]:
    layers = "; ".join(f"{name}: {' + '.join(v.label for v in vs)}" for name, vs in e.arrangement.layers if vs)
    return {
        "key": e.arrangement.key,
        "loss": e.loss,
        "loss_stderr": e.loss_stderr,
        "latency_ms": e.latency_ms,
        "peak_mb": e.peak_mb,
        "parameters": e.parameters,
        "layers": layers or none,
    }
