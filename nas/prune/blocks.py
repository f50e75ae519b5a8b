"""Chosen blocks are pruned: a space's baseline is the uncut network; what is left is another of its arrangements."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from nas.config import SUPERNET, QualityConfig, load
from nas.console import progress, say
from nas.errors import NasError
from nas.files import sole_writer, write_whole
from nas.prune.asked import Asked, settle_folder
from nas.prune.choose import Search, exact, give_back, greedy
from nas.prune.config import PruneConfig, Unit
from nas.prune.missed import Chance, Harm, Magnitude, Missed, Trials
from nas.prune.recover_blocks import RecoverBlocks
from nas.prune.space_cuts import Cuttable, changes, kept
from nas.supernet.supernet import Supernet
from nas.tasks import USUAL
from nas.training.distributed import World, usable_device
from nas.training.loop import Loop
from search_spaces.arrangement import Arrangement
from search_spaces.network import VideoNetwork
from search_spaces.planning import load_plan
from search_spaces.space import Space

ALL: tuple[Unit, ...] = ("blocks", "heads", "channels")
DECISIONS, TRIED, ARRANGEMENT, MODEL = "cuts.json", "sensitivity.csv", "arrangement.yaml", "model"
RECOVERY = "recovery"


@dataclass(frozen=True)
class Given:
    """What is pruned: a supernet that holds the uncut network and all that may be left, its text side, and clips."""

    supernet: Supernet
    text: Any
    clips: Any  # that cuts are judged on
    training: Any  # that what is left recovers on
    autoencoder: Any


def prune_blocks(asked: Asked) -> dict[str, Any]:
    """Cut blocks, heads and widths; ``out`` then holds ``model`` (as ``nas build`` makes one), ``arrangement.yaml``,
    ``cuts.json`` and ``sensitivity.csv``: every network tried, with its harm and cost.

    Raises:
        NasError: see ``prune_network``.
    """
    from nas.model.build import save_model
    from nas.model.network import VideoUNet

    if (Path(asked.source) / SUPERNET).is_dir():  # a run is judged on its own data
        data = load(Path(asked.source)).data
        asked = replace(asked, settings=asked.settings.model_copy(update={"data": data}))
    config, space, out = asked.settings.prune, asked.space, asked.out
    assert asked.target is not None
    units = config.units if "units" in config.model_fields_set else ALL
    cuttable, costs = Cuttable(space, units), _costs(asked)
    Search(cuttable, Trials(out / TRIED, lambda one: 0.0, costs, asked.cost), asked.target, _quiet).check(costs.tell)
    given = _open(asked)
    settle_folder(asked)
    with sole_writer(out), progress("prune") as report:
        missed = _missed(given, asked.settings.prune, space)
        trials = Trials(out / TRIED, _harm(given.supernet, config, missed, asked.settings.seed), costs, asked.cost)
        search = Search(cuttable, trials, asked.target, report)
        found = greedy(search) if config.method == "greedy" else exact(search, config.rounds)
        chosen = give_back(search, found)
        chosen.save(out / ARRANGEMENT)
        whole = space.baseline()
        told = _told(asked, costs, whole, chosen) | {
            "given_back": changes(found, chosen),
            "trials": len(trials.known),
            "missed_before_recovery": missed(chosen),
        }
        network = given.supernet.extract(chosen)
        if config.steps:
            _recover(asked, given, network)
        told["missed"] = missed.of(network.run) if config.steps else told["missed_before_recovery"]
        write_whole(out / DECISIONS, json.dumps(told, indent=1))
        if not (out / MODEL).is_dir():
            model = VideoUNet.of(space, network.to("cpu"), chosen, given.supernet.prediction)
            save_model(model, given.text.model, given.text.tokenizer, given.autoencoder, out / MODEL)
    return told


def _recover(asked: Asked, given: Given, network: VideoNetwork) -> None:
    """Train a pruned network, in place, to answer as the uncut one; goes on from its last checkpoint."""
    config, seed = asked.settings.prune, asked.settings.seed
    world = World.open(config.device, "prune.device")
    work = RecoverBlocks(given.supernet, network.requires_grad_(True), given.text, given.training, config, world)
    facts = {"arrangement": network.arrangement.key, **asked.facts()}
    loop = Loop(work, asked.out / RECOVERY, facts, seed, say, say)
    with progress("recover") as report:
        loop.run(lambda done, row: report(done, config.steps, f"loss {row['loss']:.4f}"))
    loop.load_average()
    network.eval().requires_grad_(False)


def _quiet(done: int, total: int, cut: str) -> None:
    """Nothing is shown of what takes no time."""


def _told(asked: Asked, costs: Costs, whole: Arrangement, chosen: Arrangement) -> dict[str, Any]:
    """What was cut, and how much each kind of cut saved."""
    only = chosen
    for place, variants in whole.layers:
        if chosen.at(place):
            only = only.replace(place, variants)  # the same blocks are gone, and nothing is narrower
    uncut, blocks, cost = (costs(one) for one in (whole, only, chosen))
    plan = load_plan(asked.space)
    return {
        "model": str(asked.out / MODEL),
        "arrangement": str(asked.out / ARRANGEMENT),
        "space": asked.space.name,
        "cuts": changes(whole, chosen),
        "kept": {name: list(counts) for name, counts in kept(whole, chosen).items()},
        "cost": asked.cost,
        "cost_before": uncut,
        "cost_after": cost,
        "saved": {"blocks": uncut - blocks, "widths": blocks - cost},
        "parameters": plan.parameters(chosen),
        "parameters_before": plan.parameters(whole),
    }


class Costs:
    """What an arrangement costs: its parameters by the space's plan, or latency or peak memory by a device's table."""

    def __init__(self, space: Space, name: str, model: Any = None) -> None:
        self.name, self.plan, self.model = name, load_plan(space), model

    def __call__(self, arrangement: Arrangement) -> float:
        if self.name == "parameters":
            return float(self.plan.parameters(arrangement))
        found = self.model.cost(self.model.encode(arrangement.labels())[None])
        return float((found.latency_ms if self.name == "latency_ms" else found.peak_mb)[0])

    def tell(self, value: float) -> str:
        """A cost for people."""
        return {"parameters": f"{value:,.0f}", "latency_ms": f"{value:,.4g} ms"}.get(self.name, f"{value:,.4g} MB")


def _costs(asked: Asked) -> Costs:
    """Raises: NasError, TableError: if the device's table cannot cost the space."""
    if asked.cost == "parameters":
        return Costs(asked.space, asked.cost)
    from device_profiler.device import Device
    from nas.run.costs import cost_model, load_table, profile_space

    profile_space(str(asked.space.source or asked.space.name), asked.device, asked.table)
    return Costs(asked.space, asked.cost, cost_model(asked.space, load_table(Device.load(asked.device), asked.table)))


def _open(asked: Asked) -> Given:
    """The supernet with the source's weights: a run's own, or a given model's in a new one.

    Raises:
        NasError: if the source, the text and the data do not fit the space.
    """
    from nas.data import open_data
    from nas.data.cached import CachedLatents, CachedText, check_data, load_autoencoder
    from nas.pretrained.given import init_network
    from nas.pretrained.text import TextEncoder
    from nas.supernet.trained import load_supernet

    space, settings, folder = asked.space, asked.settings, Path(asked.source)
    config, device = settings.prune, usable_device(settings.prune.device, "prune.device")
    trained = (folder / SUPERNET).is_dir()
    data = open_data(settings.data, space.clip("training"), "validation", settings.seed)
    check_data(space, data)
    text: Any
    if trained:
        supernet, text, _ = load_supernet(space, folder / SUPERNET)
    else:
        supernet = Supernet(space, config.prediction if "prediction" in config.model_fields_set else USUAL)
        say(f"prune      {init_network(space.backbone.family, supernet, asked.source).sentence()}")
        if isinstance(data, CachedLatents):
            text = CachedText(data.cache)
        elif asked.text is not None:
            text = TextEncoder.pretrained(asked.text)
        else:
            raise NasError(f"{asked.source}: has no text encoder; name one with --text, or cache the data first")
    vae = load_autoencoder(data.cache.header).model if isinstance(data, CachedLatents) else None
    training = open_data(settings.data, space.clip("training"), "train", settings.seed)
    for module in (supernet, text):
        module.to(device).eval().requires_grad_(False)
    return Given(supernet, text, data, training, vae)


def _missed(given: Given, config: PruneConfig, space: Space) -> Missed:
    clips = [given.clips[index] for index in range(min(config.calibration, len(given.clips)))]
    device = next(given.supernet.parameters()).device
    with torch.no_grad():
        questions = given.supernet.task.questions(clips, QualityConfig(batch=config.batch), given.text)
    asked = [question.to(device) for question in questions]
    return Missed(given.supernet, asked, space.baseline(), config.inner_weight)


def _harm(supernet: Supernet, config: PruneConfig, missed: Missed, seed: int) -> Harm:
    whole = supernet.space.baseline()
    if config.score == "magnitude":
        return Magnitude(supernet, whole)
    return Chance(whole, seed) if config.score == "random" else missed


def render_blocks(told: dict[str, Any]) -> str:
    """A pruning's result for people."""
    lines = [f"cut        {cut}" for cut in told["cuts"]]
    lines.append("kept       " + ", ".join(f"{name} {has} of {had}" for name, (has, had) in told["kept"].items()))
    saved = ", ".join(f"{name} {value / told['cost_before']:.0%}" for name, value in told["saved"].items())
    after, before = told["cost_after"], told["cost_before"]
    lines.append(f"{told['cost']:<10} {after:,.6g} of {before:,.6g} ({after / before:.0%}); saved by {saved}")
    lines.append(
        f"{told['model']}: {told['parameters']:,} parameters of {told['parameters_before']:,}; misses "
        f"{told['missed']:.4f} of the uncut network's answers, {told['missed_before_recovery']:.4f} before recovery; "
        f"{told['trials']} networks tried"
    )
    lines.append(f"next       nas finetune {told['model']} --stage joint --out MODEL")
    return "\n".join(lines)
