"""The loop of every training: averages, log, validation, exact resume, and roll-back of a step that went wrong."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from nas.errors import AnswerIsNo, NasError
from nas.files import append, write_whole
from nas.settings import FREE, marked
from nas.training.averages import Averages
from nas.training.checkpoint import (
    PREFIX,
    Checkpoint,
    checkpoint_path,
    drop_old,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
    sync,
)
from nas.training.config import AnyConfig, LoopConfig
from nas.training.distributed import peak_memory_mb
from nas.training.draws import Draws
from nas.training.engine import Engine
from nas.training.loader import Loader
from nas.training.log import BEST, METRICS, begun_settings, check_shapes, cut_metrics, newest_checkpoint, read_best
from nas.training.optimizers import pack_state, unpack_state
from nas.training.sharding import like, split_again, whole

if TYPE_CHECKING:
    from nas.training.watch import Strip

ROLLBACKS = 3  # of one step; more, and it will not get better
RECENT = 50  # losses that a spike is measured against
# Settings that earlier checkpoints do not hold, with what they were then: of every training, and of ``LoopConfig``.
SINCE: Mapping[str, Any] = {"tf32": False}
SINCE_LOOP: Mapping[str, Any] = {"accumulate": 1}

SINCE_TRAIN: Mapping[str, Any] = {"task": {}}  # the same of a supernet's training

Row = dict[str, Any]  # what one step reports; "loss" is what a spike is looked for in


class Stage(ABC):
    """What is trained: its modules and its step. How long, from where and what is kept of it is the loop's.

    Attributes:
        key: of its settings, for errors: ``train``. config: the settings. engine: how it computes.
        modules: what is trained, by name. averaged: the names whose average is the result. optimizers: by name.
        loaders: where its clips come from. window: how many of the latest steps ``trouble`` looks at.
    """

    key: str
    config: AnyConfig
    engine: Engine
    modules: Mapping[str, nn.Module]
    averaged: frozenset[str]
    optimizers: Mapping[str, torch.optim.Optimizer]
    loaders: Sequence[Loader] = ()
    window: int = 0

    @abstractmethod
    def advance(self, step: int, draws: Draws, sane: Callable[[float], bool]) -> Row | None:
        """One step, all randomness from ``draws``; None, before it changes a weight for good, if it went wrong.

        What it returns is the same on every process.
        """

    def trouble(self, rows: list[Row]) -> str | None:
        """What is wrong with the latest steps beyond repair by another draw, or None."""
        return None

    def validate(self) -> float | None:
        """The loss on clips that are not trained on, the averages in place of the weights; None if there are none."""
        return None

    def strip(self) -> Strip | None:
        """Sampled frames, the averages in place of the weights, or None."""
        return None

    @property
    def sentence(self) -> str:
        """How it computes; said before the first step, and asked by every process."""
        return self.engine.sentence

    def notes(self) -> dict[str, Any]:
        """What a checkpoint keeps for the training that goes on, beside weights and settings."""
        return {}

    def take_up(self, notes: Mapping[str, Any]) -> None:  # noqa: B027
        """Go on with what ``notes`` gave."""

    def fresh(self, folder: Path) -> None:  # noqa: B027
        """Leave in a new folder what its checkpoints are read with."""


Kind = TypeVar("Kind", bound=Stage)
Found = TypeVar("Found")


class Loop(Generic[Kind]):
    """The state of a training: the stage's weights, their averages, optimisers and the step.

    Args:
        folder: receives checkpoints and ``metrics.jsonl``. facts: what a checkpoint must share with the training that
            continues it, beside the settings. warn: called with a sentence when a step is rolled back or skipped.
        tell: called with lines that say, before the first step, how it computes.
    """

    def __init__(
        self,
        stage: Kind,
        folder: Path,
        facts: Mapping[str, Any],
        seed: int,
        warn: Callable[[str], None],
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.stage, self.folder, self.seed, self.world = stage, folder, seed, stage.engine.world
        self.warn = warn if self.world.main else lambda message: None
        self.tell = tell if self.world.main else lambda line: None
        stage.engine.begun_in(begun_settings(folder).get("precision"))
        self.facts = {**facts, "settings": {**_settings(stage.config), "precision": stage.engine.precision}}
        averaged = {name: p for name, p in self.named() if name.split(".")[0] in stage.averaged}
        self.average = Averages(averaged, stage.config.ema_decay)
        self.step = self.rollbacks = 0
        self.salt = 0  # grows with each roll-back, so that the same bad draw is not made again
        self.bad = 0  # the furthest step that went wrong
        self.judged = math.nan  # the latest loss that was looked at
        self.recent: deque[float] = deque(maxlen=RECENT)
        self.rows: deque[Row] = deque(maxlen=stage.window)

    def run(self, progress: Callable[[int, Row], None] | None = None) -> None:
        """Go on from the newest checkpoint until the stage's last step.

        Every random choice is a pure function of the seed and the step, so that a run which was killed and started
        again repeats the uninterrupted one exactly on the same device and thread count.

        Raises:
            NasError: if the folder holds another training, or a step goes wrong again and again.
            AnswerIsNo: if the stage finds itself in trouble; the weights are then those of the last good checkpoint.
        """
        from nas.training.watch import Watch

        config = self.stage.config
        watch: Watch | None = None
        try:
            self.resume()
            sentence = self.stage.sentence
            self.tell(f"{self.stage.key:<10} {sentence}")
            if self.world.main:
                watch = Watch(self.folder, config.trackers, self.step, f"{self.stage.key}.trackers")
            while self.step < config.steps:
                row = self.advance()
                if row is None:  # rolled back; the log was cut to the step it went back to
                    continue
                if self._due(getattr(config, "validate_every", 0)):
                    row["validation"] = self._shown(self.stage.validate)
                if self.world.main:
                    with append(self.folder / METRICS) as metrics:
                        metrics.write(json.dumps(row) + "\n")
                if watch is not None:
                    watch.log(self.step, row)
                if progress is not None and self.world.main:
                    progress(self.step, row)
                if self._due(getattr(config, "sample_every", 0)):
                    strip = self._shown(self.stage.strip)
                    if strip is not None and watch is not None:
                        watch.strip(*strip, self.step)
                trouble = self.stage.trouble(list(self.rows))
                if trouble is not None:
                    self._give_up(trouble)
                best = self._is_best(row["validation"])
                if best or self._due(config.checkpoint_every):
                    self.save()
        finally:
            self.close()
            if watch is not None:
                watch.close()

    def close(self) -> None:
        """Stop reading ahead."""
        for loader in self.stage.loaders:
            loader.close()

    def advance(self) -> Row | None:
        """One step; None when it went wrong and the last checkpoint was taken back.

        Returns:
            The stage's row and beside it ``step``; ``seconds``, of them ``waited`` for data; ``frames_per_s`` that all
            processes trained on and ``loader_frames_per_s`` that the workers of one can load; ``memory_mb`` at the
            peak so far; ``validation``, which is None so far.
        """
        started, loaders = time.perf_counter(), self.stage.loaders
        waited, frames = (sum(getattr(loader, what) for loader in loaders) for what in ("waited", "frames"))
        row = self.stage.advance(self.step, Draws(self._generator(), self.world, self.salt), self._sane)
        if row is None:
            self._roll_back()
            return None
        self.average.take(self.step)
        self.step += 1
        if self.step >= self.bad:  # past it; the steps before it, made again, are no progress
            self.rollbacks = 0
        self.recent.append(row["loss"])
        self.rows.append(row)
        seconds = time.perf_counter() - started
        seen = (sum(loader.frames for loader in loaders) - frames) * self.world.size
        return {
            "step": self.step,
            **row,
            "seconds": seconds,
            "waited": round(sum(loader.waited for loader in loaders) - waited, 6),
            "frames_per_s": round(seen / seconds, 3),
            "loader_frames_per_s": round(loaders[0].frames_per_s * loaders[0].workers, 1) if loaders else 0.0,
            "memory_mb": peak_memory_mb(self.world.device),
            "validation": None,
        }

    def _due(self, every: int) -> bool:
        return bool(every) and (self.step % every == 0 or self.step == self.stage.config.steps)

    def _shown(self, look: Callable[[], Found]) -> Found:
        """What is seen with the averages in place of the weights."""
        with self.average.shown(*(self.stage.modules[name] for name in sorted(self.stage.averaged))):
            found = look()
            split_again(*self.stage.engine.sharded)  # gathered weights are the averages'; the next step wants its own
        return found

    def _is_best(self, validation: float | None) -> bool:
        """Whether this step is the best validated one, which is then written down."""
        if validation is None:
            return False
        best = read_best(self.folder) if self.world.main else None
        better = bool(self.world.say(int(best is None or best["step"] >= self.step or validation < best["loss"])))
        if better and self.world.main:
            write_whole(self.folder / BEST, json.dumps({"step": self.step, "loss": validation}))
        self.world.wait()
        return better

    def load_average(self) -> None:
        """Put the averaged weights into the stage's modules: the result."""
        self.average.put()

    def whole_average(self) -> dict[str, Tensor]:
        """The averages by name, whole; where they are sharded, all processes must ask."""
        return {name: whole(value) for name, value in self.average.values.items()}

    def named(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Every parameter of the stage by its name in a checkpoint."""
        for prefix, module in self.stage.modules.items():
            for name, parameter in module.named_parameters():
                yield f"{prefix}.{name}", parameter

    def _generator(self) -> torch.Generator:
        digest = hashlib.sha256(f"{self.seed}/{self.step}/{self.salt}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))

    # When it goes wrong ---------------------------------------------------------------------------------------------

    def _sane(self, loss: float) -> bool:
        self.judged = loss
        if not math.isfinite(loss):
            return False
        return len(self.recent) < RECENT or loss <= self.stage.config.spike * statistics.median(self.recent)

    def _roll_back(self) -> None:
        bad, salt, loss = self.step + 1, self.salt + 1, self.judged
        self.world.wait()  # whatever was being saved is there
        self.bad = max(self.bad, bad)
        self.rollbacks += 1
        if self.rollbacks > ROLLBACKS:
            raise NasError(
                f"{self.folder}: step {bad} went wrong (loss {loss:g}), and going back {ROLLBACKS} times did not help; "
                f"give another --out and a lower {self.stage.key}.learning_rate"
            )
        if not self.resume():
            raise NasError(
                f"{self.folder}: step {bad} went wrong (loss {loss:g}) and no checkpoint is left to go back to; give "
                "another --out"
            )
        self.salt = salt
        self.recent.clear()
        self.warn(f"step {bad}: loss {loss:g}; went back to step {self.step} and draws the noise anew")

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
        """Write a checkpoint; every process takes part, the main one writes.

        Beside the newest ones stay the best validated one and, where a stage can be in trouble, the last that no
        trouble found from now on can reach back to, and the first after it, which will be that one later.
        """
        named = dict(self.named())
        groups: dict[str, Mapping[str, Tensor]] = {
            "weights": {name: whole(p.detach()) for name, p in named.items()},
            "average": self.whole_average(),
        }
        names: dict[Tensor, str] = {p: name for name, p in named.items()}
        for which, optimizer in self.stage.optimizers.items():
            groups[_group(which)] = pack_state(optimizer, names)
        if not self.world.main:
            return
        state = {
            **self.facts,
            "salt": self.salt,
            "recent": list(self.recent),
            "rows": list(self.rows),
            "scaler": self.stage.engine.scaler.state_dict(),
        }
        if notes := self.stage.notes():
            state["notes"] = notes
        if (self.folder / METRICS).exists():
            sync(self.folder / METRICS)  # never behind the checkpoint, even where the power fails
        save_checkpoint(self.folder, self.step, Checkpoint(groups, state), self.stage.config.keep, self._kept())

    def _kept(self) -> set[int]:
        best = read_best(self.folder)
        kept = set() if best is None else {best["step"]}
        if self.stage.window:
            sound = max(0, self.step - self.stage.window)
            earlier = [int(path.name.removeprefix(PREFIX)) for path in list_checkpoints(self.folder)]
            kept |= {*[step for step in earlier if step <= sound][-1:], *[step for step in earlier if step > sound][:1]}
        return kept

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
                self.stage.fresh(self.folder)
                cut_metrics(self.folder / METRICS, 0)
                (self.folder / BEST).unlink(missing_ok=True)
            self.save()
            return True
        if answer == -1:
            return False
        self._restore(found if found is not None else load_checkpoint(checkpoint_path(self.folder, answer)))
        if self.world.main:
            cut_metrics(self.folder / METRICS, self.step)
            if list_checkpoints(self.folder)[-1:] == [checkpoint_path(self.folder, self.step)]:  # none is damaged
                drop_old(self.folder, self.stage.config.keep, self._kept())  # which a kill may have left undone
        return True

    def _restore(self, checkpoint: Checkpoint) -> None:
        named, tensors = dict(self.named()), checkpoint.tensors
        path = checkpoint_path(self.folder, int(checkpoint.state["step"]))
        check_shapes(tensors.get("weights", {}), named, path)
        check_shapes(tensors.get("average", {}), self.average.values, path)
        for which in self.stage.optimizers:
            if _group(which) not in tensors:
                raise NasError(f"{path}: holds no {_group(which)}, so another version made it; give another --out")
        with torch.no_grad():
            for name, tensor in tensors["weights"].items():
                named[name].copy_(like(tensor, named[name]))
            for name, tensor in tensors["average"].items():
                self.average.values[name].copy_(like(tensor, self.average.values[name]))
        for which, optimizer in self.stage.optimizers.items():
            unpack_state(optimizer, tensors[_group(which)], named)
        state, scaler = checkpoint.state, self.stage.engine.scaler
        if scaler.is_enabled():
            scaler.load_state_dict(state["scaler"])
        self.step, self.salt = int(state["step"]), int(state["salt"])
        self.recent = deque(state["recent"], maxlen=self.recent.maxlen)
        self.rows = deque(state.get("rows", ()), maxlen=self.rows.maxlen)
        self.stage.take_up(state.get("notes", {}))


def _group(which: str) -> str:
    """A checkpoint's name for an optimiser's state; a stage's only one needs no name."""
    return f"optimizer-{which}" if which else "optimizer"


def warmed_rate(config: LoopConfig, step: int) -> float:
    """Share of the learning rate at a step: a linear ramp, then a cosine to a tenth."""
    ramp = min(1.0, (step + 1) / config.ramp_steps) if config.ramp_steps else 1.0
    return ramp * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * step / config.steps)))


def _settings(config: AnyConfig) -> dict[str, Any]:
    """The settings that shape the loss curve; one that came later counts once it is used."""
    since = {**SINCE, **(SINCE_LOOP if isinstance(config, LoopConfig) else SINCE_TRAIN)}
    free = marked(type(config), FREE)
    found = {name: value for name, value in config.model_dump(mode="json").items() if name not in free}
    return {name: value for name, value in found.items() if name not in since or value != since[name]}
