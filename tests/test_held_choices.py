"""What no budget allows is neither held nor trained, which is said; a training that goes on and a search keep to it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from search_problems import tiny_problem
from training_fixtures import clips, losses, run, short, tiny

from latency_tables.budget import Budget
from latency_tables.table import Table, table_path
from nas.config import RunConfig, resolve, store
from nas.errors import NasError
from nas.run.answer import search_arrangement
from nas.run.costs import draw_within, held_problem, make_problem
from nas.run.job import train_supernet
from nas.search.problem import Problem
from nas.search.within import WithinBudget, layers_within, possible
from nas.supernet.held import deepest, from_json, holds, sentence, to_json, whole
from nas.supernet.stage import begin
from nas.supernet.supernet import Supernet
from nas.supernet.trained import begun_held, load_supernet
from nas.training.log import Step
from search_spaces.planning import load_plan

TIGHT = 47.0  # ms; the backbone takes 40, a layer 1 to 30
SMALL = ["data.source=moving_shapes", "data.validation_clips=4", "train.steps=2", "train.warmup_steps=1"]
SMALL += ["train.clips=1", "train.images=0", "train.threads=1", "train.trackers=[]", "train.workers=0"]
SMALL += ["quality.clips=2", "quality.batch=2", "search.rescore_clips=2", "search.rescored=1", "search.trials=3"]


def tight(**limits: float) -> Problem:
    return tiny_problem(Budget(**(limits or {"latency_ms": TIGHT})))


def made(tmp_path: Path) -> tuple[RunConfig, Path]:
    """A run of `tiny` within a tight budget, by a made-up table."""
    out, costs = tmp_path / "run", tight().costs
    header = replace(costs.header, device="host_cpu", runtime="onnxruntime")
    Table(header, costs.rows.values()).save(table_path(out / "table", "host_cpu", "onnxruntime"))
    sets = [*SMALL, "train.paths=within_budget", f"search.latency_ms={TIGHT}"]
    return resolve("tiny", "host_cpu", None, sets), out


@pytest.mark.parametrize(
    "limits", [{"latency_ms": TIGHT}, {"memory_mb": 22.0}, {"parameters_max": 200e3}, {"parameters_min": 0.99}]
)
def test_an_option_is_possible_where_the_best_of_everything_else_leaves_room(limits: dict[str, float]) -> None:
    drawn = tight().costs.random(20_000, np.random.default_rng(0))
    if "parameters_min" in limits:  # of the most of all
        limits = {"parameters_min": 0.99 * load_plan(tiny()).parameters(deepest(tiny(), None))}
    problem = tight(**limits)
    feasible = drawn[problem.feasible(drawn)]
    found = possible(problem)
    assert not all(usable.all() for usable in found)
    for p, usable in enumerate(found):
        assert usable[np.unique(feasible[:, p])].all()  # never one that is needed
    if "latency_ms" in limits:  # one limit on a sum: exactly those
        cheapest = np.array([int(np.argmin(option.latency_ms)) for option in problem.costs.option_costs])
        for p, usable in enumerate(found):
            rows = np.repeat(cheapest[None], len(usable), 0)
            rows[:, p] = np.arange(len(usable))
            assert np.array_equal(problem.feasible(rows), usable)


def test_all_paths_within_the_budget_are_held_and_the_baseline_too() -> None:
    problem = tight()
    held, paths = layers_within(problem), WithinBudget(problem)
    assert all(holds(held, paths(0, step)[0]) for step in range(200)) and holds(held, problem.space.baseline())
    assert not holds(held, deepest(problem.space, None)) and holds(held, deepest(problem.space, held))
    assert from_json(problem.space, to_json(held)).keys() == held.keys()
    assert to_json(from_json(problem.space, to_json(held))) == to_json(held)
    assert sentence(problem.space, whole(problem.space)) is None
    assert "layers are neither held nor trained" in str(sentence(problem.space, held))
    with pytest.raises(NasError, match="does not have"):
        from_json(problem.space, {**to_json(held), "down.0.0": [["Nonsense()"]]})


def test_a_supernet_holds_what_it_was_told_and_refuses_other_paths_in_one_line() -> None:
    held = layers_within(tight())
    some, all_of_it = Supernet(tiny(), held=held), Supernet(tiny())
    count = [sum(p.numel() for p in net.temporal_parameters()) for net in (some, all_of_it)]
    assert count[0] < 0.8 * count[1]
    with pytest.raises(NasError, match="its layers are not all in this supernet") as caught:
        some.path(deepest(tiny(), None))
    assert "\n" not in str(caught.value)
    with pytest.raises(NasError, match="not all in this supernet"):
        some.extract(deepest(tiny(), None))


def test_a_training_that_goes_on_holds_what_it_began_with(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(done: Step) -> None:
        if done.step == 3:
            raise Stop

    held, paths = layers_within(tight()), WithinBudget(tight())
    config = short(clips=1, images=0, steps=4)
    draw = lambda step: paths(5, step)  # noqa: E731
    for folder, last in (("whole", None), ("cut", stop)):
        try:
            run(tmp_path / folder, config, draw=draw, held=held, progress=last)
        except Stop:
            run(tmp_path / folder, config, draw=draw, held=whole(tiny()))
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert to_json(begun_held(tiny(), tmp_path / "cut") or {}) == to_json(held)
    supernet, _, _ = load_supernet(tiny(), tmp_path / "cut")
    assert supernet.held is not None and supernet.path(paths(5, 3)[0])


def test_a_training_that_began_with_everything_keeps_everything(tmp_path: Path) -> None:
    run(tmp_path, short(clips=1, images=0, steps=2, warmup_steps=0))
    config = short(clips=1, images=0, steps=2, warmup_steps=0)
    loop = begin(tiny(), clips(), config, tmp_path, 5, lambda message: None, held=layers_within(tight()))
    assert loop.stage.supernet.held is None and loop.resume()


def test_a_run_within_a_budget_says_what_it_leaves_out_and_is_searched_within_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, out = made(tmp_path)
    train_supernet(config, out)
    told = capsys.readouterr().err
    assert "layers are neither held nor trained, as nothing within the budget has them" in told
    supernet, _, _ = load_supernet(tiny(), out / "supernet")
    assert supernet.held is not None
    assert to_json(supernet.held) == to_json(draw_within(config, out).layers)
    answer = search_arrangement(out)
    assert answer.feasible and answer.chosen is not None
    with pytest.raises(NasError, match="does not hold: it was trained within latency_ms 42.7") as caught:
        search_arrangement(out, latency_ms=2 * TIGHT)
    assert "\n" not in str(caught.value)
    assert search_arrangement(out, latency_ms=TIGHT - 2).feasible


def test_designs_that_are_not_held_are_not_asked_for(tmp_path: Path) -> None:
    problem = tight()
    limited = replace(problem, held=layers_within(problem))
    assert set(limited.hand_made()) < set(problem.hand_made())
    config, out = made(tmp_path)
    store_only(config, out)
    assert held_problem(make_problem(config, out), out).held is None  # nothing was trained yet


def store_only(config: RunConfig, out: Path) -> None:
    store(config, out)
    torch.set_num_threads(1)
