"""Pruning from end to end: what is missed least a unit of cost is cut, until the target is met; then it recovers."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml

from nas.config import CONFIG_FILE
from nas.console import progress, say
from nas.errors import NasError, why_full
from nas.files import folder_beside, only_leftovers, read_yaml, sole_writer, write_whole
from nas.pretrained.given import load_given
from nas.prune.config import PruneConfig, PruneSettings
from nas.prune.costs import Latency, Parameters, check_unet, space_text, space_with
from nas.prune.images import Images
from nas.prune.recover import Recover
from nas.prune.sensitivity import Sensitivity
from nas.training.distributed import usable_device
from nas.training.loop import Loop
from search_spaces.families.contract import Cut, Pruning
from search_spaces.space import Space

DECISIONS, TRIED, UNET, SPACE_FILE, RECOVERY = "cuts.json", "sensitivity.csv", "unet", "space.yaml", "recovery"


class Cost(Protocol):
    name: str

    def __call__(self, unet: Any) -> float: ...

    def tell(self, value: float) -> str: ...


@dataclass(frozen=True)
class Step:
    """One cut that was made.

    Attributes:
        cut: its name. loss: what the UNet misses after it, see ``Sensitivity.loss``. cost: what it costs then.
    """

    cut: str
    loss: float
    cost: float


def prune_unet(
    source: str,
    space: str | Path,
    out: Path,
    settings: PruneSettings,
    *,
    parameters: float | None = None,
    latency_ms: float | None = None,
    device: str = "host_cpu",
    table: Path = Path("tables"),
    text: str | None = None,
) -> dict[str, Any]:
    """Prune a diffusers UNet into ``out``; goes on where a part of that work is there.

    Cuts are tried one by one on the UNet as it is by then; the one that makes it miss least for what it saves is made,
    until the target is met. ``out`` then holds ``unet`` (diffusers), ``space.yaml`` (the space with that backbone),
    ``cuts.json`` and ``sensitivity.csv`` (every cut tried, with its loss and cost).

    Args:
        source: UNet or pipeline, hub id or folder. space: latents, text and clips; without a target, the backbone too.
        parameters, latency_ms: the target, one of them. device, table: where latency comes from.
        text: CLIP text model for data that is no cache; by default that of the source.

    Raises:
        NasError: if the source, the space and the data do not fit each other, or no cut leads to the target.
    """
    if parameters is not None and latency_ms is not None:
        raise NasError("--parameters and --latency-ms are two targets; give one")
    config, loaded = settings.prune, Space.load(space)
    if out.is_dir() and not (out / CONFIG_FILE).is_file() and not only_leftovers(out):
        raise NasError(f"{out} is not empty and holds no pruning; give a new or empty folder to --out")
    pruning = _pruning(loaded)
    if config.threads:
        torch.set_num_threads(config.threads)
    where = usable_device(config.device, "prune.device")
    whole = load_given(loaded.backbone.family, source).to(where).eval().requires_grad_(False)
    for note in check_unet(loaded, whole, source):
        say(f"prune      {source}: {note}")
    if parameters is None and latency_ms is None and not pruning.leads(whole.config, loaded.backbone.config):
        has, wants = pruning.stages(whole.config), pruning.stages(loaded.backbone.config)
        raise NasError(
            f"{source}: no cut leads from its stages ({has}) to those of space {loaded.name} ({wants}); give a target "
            "with --parameters or --latency-ms, or another space"
        )
    images = Images(loaded, settings, source, text)
    target: float | None = parameters if parameters is not None else latency_ms
    cost: Cost = Parameters()
    if latency_ms is not None:
        cost = Latency(loaded, device, table, out / "tried")
    asked = {"source": source, "space": loaded.fingerprint, "target": target, "cost": cost.name, "device": device}
    _settle_folder(out, settings, asked)
    with sole_writer(out):
        sensitivity = Sensitivity(whole, list(images.calibration()))
        unet, steps = _cut(whole, sensitivity, cost, target, loaded, config, settings.seed, out)
        made = space_with(loaded, unet)
        write_whole(out / SPACE_FILE, space_text(made))
        recovered = sensitivity.loss(unet)
        if config.steps:
            unet.requires_grad_(True)
            work = Recover(whole, unet, images, config)
            loop = Loop(work, out / RECOVERY, {"cuts": [step.cut for step in steps], **asked}, settings.seed, say)
            with progress("recover") as report:
                loop.run(lambda done, row: report(done, config.steps, f"loss {row['loss']:.4f}"))
            loop.load_average()
            recovered = sensitivity.loss(unet.eval())
        _save_unet(unet, out / UNET)
    count = Parameters()
    return {
        "unet": str(out / UNET),
        "space": str(out / SPACE_FILE),
        "cuts": [asdict(step) for step in steps],
        "parameters": int(count(unet)),
        "parameters_before": int(count(whole)),
        "cost": cost.name,
        "missed_before_recovery": steps[-1].loss if steps else 0.0,
        "missed": recovered,
        "positions": [position.name for position in made.positions],
    }


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
    """The pruned UNet and the cuts that made it; those of an earlier call are made again without trying others."""
    unet, steps = whole, []
    for name in _decided(out):
        unet = _find(_cuts(unet, sensitivity, config, seed, space, target), name, out).make(unet)
        steps.append(Step(name, sensitivity.loss(unet), cost(unet)))
    _forget(out / TRIED, len(steps))
    now, loss = cost(unet), sensitivity.loss(unet)
    first = now
    with progress("prune") as report:
        while target is None or now > target:
            cuts = _cuts(unet, sensitivity, config, seed, space, target)
            if not cuts and target is None:
                break
            best: tuple[float, Cut, float, float] | None = None
            for at, cut in enumerate(cuts):
                tried = cut.make(unet)
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
            unet = cut.make(unet)
            steps.append(Step(cut.name, loss, now))
            write_whole(out / DECISIONS, json.dumps([asdict(step) for step in steps], indent=1))
            say(
                f"prune      cut {cut.name}: {cost.name} {cost.tell(now)} ({now / first:.0%}), misses {loss:.4f} "
                "of its answer"
            )
    if unet is whole:
        import copy

        unet = copy.deepcopy(whole)
    return unet, steps


def _cuts(
    unet: Any, sensitivity: Sensitivity, config: PruneConfig, seed: int, space: Space, target: float | None
) -> list[Cut]:
    """What may be cut now: all of the configured units, or what the goal's backbone has no longer."""
    pruning = _pruning(space)
    cuts = pruning.block_cuts(unet.config)
    if target is None:
        return [cut for cut in cuts if pruning.leads({**unet.config, **cut.changed}, space.backbone.config)]
    found = list(cuts) if "blocks" in config.units else []
    fine = [unit for unit in ("heads", "channels") if unit in config.units]
    if fine:
        narrowable = pruning.narrowable(unet)
        scores = sensitivity.widths(unet, narrowable, torch.Generator().manual_seed(seed))
        spare = any(one.width > 1 for one in narrowable)
        found += [pruning.width_cut(unit, scores, config.share) for unit in fine if spare]
    return found


def _pruning(space: Space) -> Pruning:
    """How the space's family is pruned.

    Raises:
        NasError: if it is not.
    """
    pruning = space.backbone.family.pruning()
    if pruning is None:
        raise NasError(f"networks of family {space.backbone.family.name} have nothing that nas prune could take out")
    return pruning


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


# Folder ---------------------------------------------------------------------------------------------------------------


def _settle_folder(out: Path, settings: PruneSettings, asked: dict[str, Any]) -> None:
    """Write down what is asked for, or refuse a folder in which something else was.

    Raises:
        NasError: naming what differs.
    """
    path = out / CONFIG_FILE
    wanted = {"asked": asked, **settings.model_dump(mode="json")}
    if path.is_file():
        try:
            known = read_yaml(path)
        except NasError as error:
            raise NasError(f"{error}; give a new folder to --out") from None
        if isinstance(known, dict) and isinstance(known.get("prune"), dict):  # settings that came since are as ever
            known = {**known, "prune": {**PruneConfig().model_dump(mode="json"), **known["prune"]}}
        differs = [
            k for k in wanted if not isinstance(known, dict) or known.get(k) != json.loads(json.dumps(wanted[k]))
        ]
        if differs:
            raise NasError(
                f"{out} holds another pruning ({', '.join(differs)} differ); give another --out, or the same"
            )
        return
    out.mkdir(parents=True, exist_ok=True)
    write_whole(path, yaml.safe_dump(json.loads(json.dumps(wanted)), sort_keys=False))


def _save_unet(unet: Any, target: Path) -> None:
    from nas.pretrained.loading import no_bars

    with folder_beside(target) as partial:
        try:
            with no_bars():
                unet.to("cpu").save_pretrained(str(partial))
        except Exception as error:
            full = why_full(error)
            if full is None:
                raise
            raise NasError(f"{target}: {full[0]}; {full[1]} and run the same command again") from error
        if target.exists():
            shutil.rmtree(target)
        os.replace(partial, target)


def render(told: dict[str, Any]) -> str:
    """A pruning's result for people: the cuts in order, with a bar of what is missed after each."""
    cuts = told["cuts"]
    worst = max((step["loss"] for step in cuts), default=0.0) or 1.0
    lines = [f"{'cut':<28} {told['cost']:>14} {'missed':>8}"]
    for step in cuts:
        lines.append(
            f"{step['cut']:<28} {step['cost']:>14,.10g} {step['loss']:>8.4f} {'#' * round(30 * step['loss'] / worst)}"
        )
    kept = told["parameters"] / told["parameters_before"]
    lines.append(
        f"{told['unet']}: {told['parameters']:,} parameters, {kept:.0%} of {told['parameters_before']:,}; misses "
        f"{told['missed']:.4f} of the uncut answer, {told['missed_before_recovery']:.4f} before recovery"
    )
    lines.append(f"next       nas train {told['space']} --init {told['unet']} --out RUN")
    return "\n".join(lines)
