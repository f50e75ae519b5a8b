"""A frame is pruned: what is missed least a unit of cost is cut, until the target is met; then it recovers."""

from __future__ import annotations

import copy
import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from nas.console import progress, say
from nas.errors import NasError
from nas.files import sole_writer, write_whole
from nas.pretrained.given import load_given
from nas.prune.asked import Asked, save_network, settle_folder
from nas.prune.config import PruneConfig
from nas.prune.costs import Latency, Parameters, check_given, space_text, space_with
from nas.prune.images import Images
from nas.prune.recover import Recover
from nas.prune.sensitivity import Sensitivity
from nas.training.distributed import usable_device
from nas.training.loop import Loop
from search_spaces.families.contract import Cut, Pruning
from search_spaces.space import Space

DECISIONS, TRIED, NETWORK, SPACE_FILE, RECOVERY = "cuts.json", "sensitivity.csv", "unet", "space.yaml", "recovery"


class Cost(Protocol):
    name: str

    def __call__(self, frame: Any) -> float: ...

    def tell(self, value: float) -> str: ...


@dataclass(frozen=True)
class Step:
    """One cut that was made.

    Attributes:
        cut: its name. loss: what the network misses after it, see ``Sensitivity.loss``. cost: what it costs then.
    """

    cut: str
    loss: float
    cost: float


def prune_frame(asked: Asked, pruning: Pruning) -> dict[str, Any]:
    """Cut a frame; ``out`` then holds ``unet`` (diffusers), ``space.yaml`` (the space with that frame), ``cuts.json``
    and ``sensitivity.csv``: every cut tried, with its loss and cost.

    Cuts are tried one by one on the network as it is by then; the one that is missed least for what it saves is made.

    Raises:
        NasError: see ``prune_network``.
    """
    settings, space, out = asked.settings, asked.space, asked.out
    config = settings.prune
    if asked.cost == "memory_mb":
        raise NasError("--memory-mb is a target for whole networks; a frame is cut to --parameters or --latency-ms")
    where = usable_device(config.device, "prune.device")
    whole = load_given(space.backbone.family, asked.source).to(where).eval().requires_grad_(False)
    _check(asked, pruning, whole)
    images = Images(space, settings, asked.source, asked.text)
    cost: Cost = Parameters()
    if asked.cost == "latency_ms":
        cost = Latency(space, asked.device, asked.table, out / "tried")
    settle_folder(asked)
    with sole_writer(out):
        sensitivity = Sensitivity(whole, list(images.calibration()), pruning)
        frame, steps = _cut(whole, sensitivity, cost, asked.target, space, config, settings.seed, out)
        made = space_with(space, frame)
        write_whole(out / SPACE_FILE, space_text(made))
        recovered = sensitivity.loss(frame)
        if config.steps:
            frame.requires_grad_(True)
            work = Recover(whole, frame, images, config, pruning)
            told = {"cuts": [step.cut for step in steps], **asked.facts()}
            loop = Loop(work, out / RECOVERY, told, settings.seed, say, say)
            with progress("recover") as report:
                loop.run(lambda done, row: report(done, config.steps, f"loss {row['loss']:.4f}"))
            loop.load_average()
            recovered = sensitivity.loss(frame.eval())
        save_network(frame, out / NETWORK)
    count = Parameters()
    return {
        "unet": str(out / NETWORK),
        "space": str(out / SPACE_FILE),
        "cuts": [asdict(step) for step in steps],
        "parameters": int(count(frame)),
        "parameters_before": int(count(whole)),
        "cost": cost.name,
        "missed_before_recovery": steps[-1].loss if steps else 0.0,
        "missed": recovered,
        "positions": [position.name for position in made.positions],
    }


def _check(asked: Asked, pruning: Pruning, whole: Any) -> None:
    """Whether a given network fits the space, and leads to its frame where there is no target.

    Raises:
        NasError: if not.
    """
    space, source = asked.space, asked.source
    for note in check_given(space, pruning, whole, source):
        say(f"prune      {source}: {note}")
    if asked.target is None and not pruning.leads(whole.config, space.backbone.config):
        has, wants = pruning.stages(whole.config), pruning.stages(space.backbone.config)
        raise NasError(
            f"{source}: no cut leads from its stages ({has}) to those of space {space.name} ({wants}); give a target "
            "with --parameters or --latency-ms, or another space"
        )


# Cutting --------------------------------------------------------------------------------------------------------------


def _cut(
    whole: Any,
    sensitivity: Sensitivity,
    cost: Cost,
    target: float | None,
    space: Space,
    config: PruneConfig,
    seed: int,
    out: Path,
) -> tuple[Any, list[Step]]:
    """The pruned frame and the cuts that made it; those of an earlier call are made again without trying others."""
    frame, steps = whole, []
    for name in _decided(out):
        frame = _find(_cuts(frame, sensitivity, config, seed, space, target), name, out).make(frame)
        steps.append(Step(name, sensitivity.loss(frame), cost(frame)))
    _forget(out / TRIED, len(steps))
    now, loss = cost(frame), sensitivity.loss(frame)
    first = now
    with progress("prune") as report:
        while target is None or now > target:
            cuts = _cuts(frame, sensitivity, config, seed, space, target)
            if not cuts and target is None:
                break
            best: tuple[float, Cut, float, float] | None = None
            for at, cut in enumerate(cuts):
                tried = cut.make(frame)
                cheaper, missed = cost(tried), sensitivity.loss(tried)
                _note(out / TRIED, len(steps), cut.name, missed, cheaper, cost.name)
                report(at + 1, len(cuts), f"without {cut.name}: misses {missed:.4f} at {cost.tell(cheaper)}")
                price = (missed - loss) / max(now - cheaper, 1e-12)
                if cheaper < now and (best is None or price < best[0]):
                    best = (price, cut, cheaper, missed)
                del tried
            if best is None:
                assert target is not None
                raise NasError(
                    f"no cut leads to {cost.tell(target)}: {cost.tell(now)} is the least of {cost.name} that "
                    f"these units reach ({', '.join(config.units)}); add others with "
                    "--set prune.units=[blocks,heads,channels]"
                )
            _, cut, now, loss = best
            frame = cut.make(frame)
            steps.append(Step(cut.name, loss, now))
            write_whole(out / DECISIONS, json.dumps([asdict(step) for step in steps], indent=1))
            say(
                f"prune      cut {cut.name}: {cost.name} {cost.tell(now)} ({now / first:.0%}), misses {loss:.4f} "
                "of its answer"
            )
    if frame is whole:
        frame = copy.deepcopy(whole)
    return frame, steps


def _cuts(
    frame: Any, sensitivity: Sensitivity, config: PruneConfig, seed: int, space: Space, target: float | None
) -> list[Cut]:
    """What may be cut now: all of the configured units, or what the goal's backbone has no longer."""
    pruning = sensitivity.pruning
    cuts = pruning.block_cuts(frame.config)
    if target is None:
        return [cut for cut in cuts if pruning.leads({**frame.config, **cut.changed}, space.backbone.config)]
    found = list(cuts) if "blocks" in config.units else []
    fine = [unit for unit in ("heads", "channels") if unit in config.units]
    if fine:
        narrowable = pruning.narrowable(frame)
        scores = sensitivity.widths(frame, narrowable, torch.Generator().manual_seed(seed))
        spare = any(one.width > 1 for one in narrowable)
        found += [pruning.width_cut(unit, scores, config.share) for unit in fine if spare]
    return found


def _find(cuts: Sequence[Cut], name: str, out: Path) -> Cut:
    for cut in cuts:
        if cut.name == name:
            return cut
    raise NasError(f"{out / DECISIONS}: names a cut that is not there ({name}); delete the file to decide anew")


def _decided(out: Path) -> list[str]:
    path = out / DECISIONS
    if not path.is_file():
        return []
    try:
        return [str(step["cut"]) for step in json.loads(path.read_text())]
    except (ValueError, TypeError, KeyError) as error:
        raise NasError(f"{path}: damaged ({error}); delete it to decide anew") from None


def _forget(path: Path, decided: int) -> None:
    """Drop the trials of a step that was not decided: they are made again."""
    if path.is_file():
        lines = path.read_text().splitlines(keepends=True)
        if not lines:  # made, but stopped before its head was written
            path.unlink()
            return
        write_whole(path, "".join([lines[0], *(row for row in lines[1:] if int(row.split(",")[0]) < decided)]))


def _note(path: Path, step: int, cut: str, loss: float, cost: float, kind: str) -> None:
    new = not path.exists()
    with path.open("a", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        if new:
            writer.writerow(["cuts_before", "cut", "missed", kind])
        writer.writerow([step, cut, f"{loss:.6g}", f"{cost:.8g}"])
