"""The loop of both stages: averaged weights, exact resume, roll-back of a step that went wrong."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nas.errors import AnswerIsNo, NasError
from nas.files import append
from nas.training.averages import Averages
from nas.training.checkpoint import (
    PREFIX,
    Checkpoint,
    checkpoint_path,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
    sync,
)
from nas.training.config import LoopConfig
from nas.training.distributed import World
from nas.training.draws import Draws
from nas.training.log import METRICS, cut_metrics, newest_checkpoint

ROLLBACKS = 3  # of one step; more, and it will not get better
RECENT = 50  # losses that a spike is measured against

Row = dict[str, float]  # what one step reports; "loss" is what a spike is looked for in


class Stage(Protocol):
    """What a stage brings to the loop.

    Attributes:
        config: its settings. modules: what is trained, by name. averaged: the names whose average is the result.
        optimizers: by name. window: how many of the latest steps ``trouble`` looks at.
    """

    @property
    def config(self) -> LoopConfig: ...
    @property
    def modules(self) -> Mapping[str, nn.Module]: ...
    @property
    def averaged(self) -> frozenset[str]: ...
    @property
    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]: ...
    @property
    def window(self) -> int: ...

    def advance(self, step: int, draws: Draws, sane: Callable[[float], bool]) -> Row | None:
        """One step, all randomness from ``draws``; None, before it changes a weight for good, if it went wrong.

        What it returns is the same on every process.
        """

    def trouble(self, rows: list[Row]) -> str | None:
        """What is wrong with the latest steps beyond repair by another draw, or None."""


class Loop:
    """The state of a fine-tuning: the stage's weights, their averages, optimisers and the step."""

    def __init__(
        self,
        stage: Stage,
        folder: Path,
        facts: Mapping[str, Any],
        seed: int,
        warn: Callable[[str], None],
        world: World,
    ) -> None:
        self.stage, self.folder, self.seed, self.world = stage, folder, seed, world
        self.warn = warn if world.main else lambda message: None
        self.facts = {**facts, "settings": _settings(stage.config)}
        averaged = {name: p for name, p in self._named() if name.split(".")[0] in stage.averaged}
        self.average = Averages(averaged, stage.config.ema_decay)
        self.step = self.salt = self.rollbacks = self.bad = 0
        self.recent: deque[float] = deque(maxlen=RECENT)
        self.rows: deque[Row] = deque(maxlen=stage.window)

    def run(self, progress: Callable[[int, Row], None] | None = None) -> None:
        """Go on from the newest checkpoint until the stage's last step.

        Every random choice is a pure function of the seed and the step, so that a run which was killed and started
        again repeats the uninterrupted one exactly on the same device and thread count.

        Raises:
            NasError: if the folder holds another fine-tuning, or a step goes wrong again and again.
            AnswerIsNo: if the stage finds itself in trouble; the weights are then those of the last good checkpoint.
        """
        config = self.stage.config
        self.resume()
        while self.step < config.steps:
            started = time.perf_counter()
            row = self.stage.advance(self.step, Draws(self._generator(), self.world), self._sane)
            if row is None:
                self._roll_back()
                continue
            self.step += 1
            self.average.take(self.step)
            if self.step >= self.bad:
                self.rollbacks = 0
            self.recent.append(row["loss"])
            self.rows.append(row)
            if self.world.main:
                told = {"step": self.step, **row, "seconds": time.perf_counter() - started}
                with append(self.folder / METRICS) as metrics:
                    metrics.write(json.dumps(told) + "\n")
                if progress is not None:
                    progress(self.step, row)
            trouble = self.stage.trouble(list(self.rows))
            if trouble is not None:
                self._give_up(trouble)
            if self.step % config.checkpoint_every == 0 or self.step == config.steps:
                self.save()

    def load_average(self) -> None:
        """Put the averaged weights into the stage's modules: the result."""
        self.average.put()

    def _named(self) -> Iterator[tuple[str, nn.Parameter]]:
        for prefix, module in self.stage.modules.items():
            for name, parameter in module.named_parameters():
                yield f"{prefix}.{name}", parameter

    def _generator(self) -> torch.Generator:
        digest = hashlib.sha256(f"{self.seed}/{self.step}/{self.salt}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))

    # When it goes wrong ---------------------------------------------------------------------------------------------

    def _sane(self, loss: float) -> bool:
        if not math.isfinite(loss):
            return False
        return len(self.recent) < RECENT or loss <= self.stage.config.spike * statistics.median(self.recent)

    def _roll_back(self) -> None:
        bad, salt = self.step + 1, self.salt + 1
        self.world.wait()  # whatever was being saved is there
        self.bad = max(self.bad, bad)
        self.rollbacks += 1
        if self.rollbacks > ROLLBACKS:
            raise NasError(
                f"{self.folder}: step {bad} went wrong, and going back {ROLLBACKS} times did not help; "
                "fine-tune into another folder with a lower learning_rate"
            )
        if not self.resume():
            raise NasError(
                f"{self.folder}: step {bad} went wrong and no checkpoint is left; fine-tune into a new folder"
            )
        self.salt = salt  # so that the same bad draw is not made again
        self.recent.clear()
        self.warn(f"step {bad} went wrong; went back to step {self.step} and draws the noise anew")

    def _give_up(self, trouble: str) -> None:
        """Return to the newest checkpoint from before the trouble can have begun; to the oldest if none is left."""
        found, began = self.step, self.step - len(self.rows)
        self.world.wait()
        kept = list_checkpoints(self.folder)
        good = [path for path in kept if int(path.name.removeprefix(PREFIX)) <= began] or kept[:1]
        self._restore(load_checkpoint(good[-1]))
        when = "from before it began" if self.step <= began else "the oldest that is left, perhaps from amid it"
        raise AnswerIsNo(f"at step {found} {trouble}; kept step {self.step}, {when}")

    # Checkpoints ------------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint; the main process does.

        Beside the newest ones stays the last that no trouble found from now on can reach back to, and the first after
        it, which will be that one later.
        """
        if not self.world.main:
            return
        sound = max(0, self.step - self.stage.window)
        earlier = [int(path.name.removeprefix(PREFIX)) for path in list_checkpoints(self.folder)]
        also = [step for step in earlier if step <= sound][-1:] + [step for step in earlier if step > sound][:1]
        names: dict[Tensor, str] = {parameter: name for name, parameter in self._named()}
        groups: dict[str, Mapping[str, Tensor]] = {"weights": dict(self._named()), "average": self.average.values}
        for which, optimizer in self.stage.optimizers.items():
            groups[f"optimizer-{which}"] = {
                f"{names[p]}/{entry}": value for p, state in optimizer.state.items() for entry, value in state.items()
            }
        state = {**self.facts, "salt": self.salt, "recent": list(self.recent), "rows": list(self.rows)}
        if (self.folder / METRICS).exists():
            sync(self.folder / METRICS)
        save_checkpoint(self.folder, self.step, Checkpoint(groups, state), self.stage.config.keep, also)

    def resume(self) -> bool:
        """Take up the newest readable checkpoint; a damaged one is passed over with a sentence.

        A fresh folder gets a checkpoint of step 0, so that there is always one to go back to. The main process looks;
        the others take what it found.
        """
        found: Checkpoint | None = None
        fresh = False
        if self.world.main:
            self.folder.mkdir(parents=True, exist_ok=True)
            newest = newest_checkpoint(self.folder, self.facts, self.warn)
            found = newest[0] if newest is not None else None
            fresh = found is None and not self.step
        answer = self.world.say(int(found.state["step"]) if found is not None else -1 - int(fresh))
        if answer == -2:
            if self.world.main:
                cut_metrics(self.folder / METRICS, 0)
            self.save()
            return True
        if answer == -1:
            return False
        self._restore(found if found is not None else load_checkpoint(checkpoint_path(self.folder, answer)))
        if self.world.main:
            cut_metrics(self.folder / METRICS, self.step)
        return True

    def _restore(self, checkpoint: Checkpoint) -> None:
        named = dict(self._named())
        with torch.no_grad():
            for name, tensor in checkpoint.tensors["weights"].items():
                named[name].copy_(tensor)
            for name, tensor in checkpoint.tensors["average"].items():
                self.average.values[name].copy_(tensor)
        for which, optimizer in self.stage.optimizers.items():
            optimizer.state.clear()
            for name, tensor in checkpoint.tensors[f"optimizer-{which}"].items():
                parameter, _, entry = name.rpartition("/")
                device = "cpu" if entry == "step" else named[parameter].device
                optimizer.state[named[parameter]][entry] = tensor.to(device)
        state = checkpoint.state
        self.step, self.salt = int(state["step"]), int(state["salt"])
        self.recent = deque(state["recent"], maxlen=self.recent.maxlen)
        self.rows = deque(state["rows"], maxlen=self.rows.maxlen)


def warmed_rate(config: LoopConfig, step: int) -> float:
    """Share of the learning rate at a step: a linear ramp, then a cosine to a tenth."""
    ramp = min(1.0, (step + 1) / config.ramp_steps) if config.ramp_steps else 1.0
    return ramp * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * step / config.steps)))


def _settings(config: LoopConfig) -> dict[str, Any]:
    """The settings that shape the result; how often to save, and where to run, do not."""
    free = {"checkpoint_every", "keep", "threads", "device", "spike"}
    return {name: value for name, value in config.model_dump(mode="json").items() if name not in free}
