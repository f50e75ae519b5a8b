"""Train the supernet: images and videos together, along a few paths a step, killed and resumed without a trace."""

from __future__ import annotations

import hashlib
import json
import math
import os
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nas.config import QualityConfig, TrainConfig
from nas.data import Dataset
from nas.data.cached import check_data, text_encoder_of
from nas.data.clip import images_of
from nas.data.lengths import check_lengths
from nas.errors import NasError
from nas.pretrained.text import TextEncoder
from nas.supernet.held import FACT, Held, to_json
from nas.supernet.held import sentence as held_sentence
from nas.supernet.passes import Passed, Passes
from nas.supernet.paths import PATHS, fixed_paths
from nas.supernet.room import clips_at_once
from nas.supernet.supernet import Supernet
from nas.supernet.trained import TEXT, begun_held
from nas.tasks import trained_task
from nas.tasks.contract import weights_of
from nas.training.checkpoint import list_checkpoints
from nas.training.distributed import LAUNCHED, PEER_LOST, PeerLost, World
from nas.training.draws import Draws
from nas.training.engine import Engine
from nas.training.loader import Loader
from nas.training.log import Step
from nas.training.loop import Loop, Row, Stage
from nas.training.micro import AtOnce
from nas.training.optimizers import build_optimizer, set_rates
from nas.training.watch import Strip
from search_spaces.arrangement import Arrangement
from search_spaces.space import Space

VALIDATION = QualityConfig(clips=16, batch=8)
VALIDATED_PATHS = 4


def train(
    space: Space,
    data: Dataset,
    config: TrainConfig,
    folder: Path,
    *,
    seed: int = 0,
    progress: Callable[[Step], None] | None = None,
    warn: Callable[[str], None] = lambda message: None,
    tell: Callable[[str], None] = lambda line: None,
    validation: Dataset | None = None,
    draw: Callable[[int], list[Arrangement]] | None = None,
    drawn_from: str = "",
    weights: Mapping[str, float] | None = None,
    held: Held | None = None,
) -> None:
    """Train until ``config.steps``, from the newest checkpoint in ``folder`` if there is one.

    Every random choice (clips, captions dropped, noise, noise levels, path) is a pure function of the seed, the step
    and the item, so a run that was killed and started again repeats the uninterrupted one exactly on the same device
    and thread count; ``metrics.jsonl`` then holds each step once. Several processes (torchrun, accelerate,
    ``nas train --processes``) share each batch and make the losses of one process with the whole of it.

    Args:
        data: training clips of the space's training clip; for a space in latents, a cache of them.
        folder: receives checkpoints, ``metrics.jsonl`` and the tokenizer.
        progress: called after each step. warn: called with a sentence when a step is rolled back or skipped. tell:
            called with lines that say, before the first step, how it computes.
        validation: clips that the averaged weights are scored on every ``validate_every`` steps.
        draw, drawn_from: the paths of a step in place of those that ``config.paths`` names, and what they depend on: a
            checkpoint of other draws is not continued.
        weights: of the parts of a score, by which the best checkpoint is picked; the task's own where not given.
        held: the layers that are held and trained; all where not given. A training that goes on keeps what it began
            with.

    Raises:
        NasError: if the data does not fit the space, the folder holds another training, a step goes wrong again and
            again, another process ended, or training cannot be saved.
    """
    check_data(space, data)
    if config.threads:
        torch.set_num_threads(config.threads)
    world = World.open(config.device)
    try:
        if world.main:
            folder.mkdir(parents=True, exist_ok=True)
        how: dict[str, Any] = {"world": world, "validation": validation, "draw": draw, "drawn_from": drawn_from}
        loop = begin(space, data, config, folder, seed, warn, tell=tell, weights=weights, held=held, **how)
        with world.together():
            loop.run(None if progress is None else lambda step, row: progress(Step.of(row)))
    except PeerLost:
        if LAUNCHED in os.environ:  # who started us saw which process it was, and says so once
            raise SystemExit(PEER_LOST) from None
        raise
    finally:
        world.close()


def begin(
    space: Space,
    data: Dataset,
    config: TrainConfig,
    folder: Path,
    seed: int,
    warn: Callable[[str], None],
    *,
    tell: Callable[[str], None] = lambda line: None,
    world: World | None = None,
    validation: Dataset | None = None,
    draw: Callable[[int], list[Arrangement]] | None = None,
    drawn_from: str = "",
    start: tuple[Supernet, TextEncoder] | None = None,
    temporal: bool = False,
    weights: Mapping[str, float] | None = None,
    held: Held | None = None,
) -> Loop[SupernetStage]:
    """The loop of a training that has not begun; see ``train``.

    Args:
        start: whose shared weights to start from, and, where ``temporal``, whose temporal layers too.
    """
    engine = Engine(config, world or World.open(config.device))
    begun = bool(list_checkpoints(folder))
    if begun:
        held = begun_held(space, folder)
    told = warn if engine.world.main else lambda message: None
    how: dict[str, Any] = {"new": not begun, "weights": weights, "held": held}
    stage = SupernetStage(space, data, config, seed, told, engine, validation, draw, **how)
    if start is not None:
        stage.start_from(*start, temporal=temporal)
    facts = {**stage.facts, **({"paths drawn from": drawn_from} if drawn_from else {})}
    return Loop(stage, folder, facts, seed, warn, tell)


class SupernetStage(Stage):
    """Supernet and text encoder, their optimiser, and a step along a few paths.

    Args:
        draw: the paths of a step; by default those that ``config.paths`` names. validation: clips that are not trained
            on. new: whether nothing was trained yet, so that ``config.init`` counts. weights: of a score's parts.
        held: the layers that are held; all where not given.
    """

    key = "train"
    averaged = frozenset({"supernet", "text"})
    config: TrainConfig

    def __init__(
        self,
        space: Space,
        data: Dataset,
        config: TrainConfig,
        seed: int,
        warn: Callable[[str], None],
        engine: Engine,
        validation: Dataset | None = None,
        draw: Callable[[int], list[Arrangement]] | None = None,
        *,
        new: bool = True,
        weights: Mapping[str, float] | None = None,
        held: Held | None = None,
    ) -> None:
        if draw is None and config.paths not in PATHS:
            raise NasError(
                f"train.paths={config.paths} needs a table of costs; train with nas run, or after nas profile"
            )
        self.draw = draw or (lambda step: PATHS[config.paths](space, seed, step))
        self.space, self.data, self.config, self.seed, self.warn = space, data, config, seed, warn
        self.engine, self.validation, world = engine, validation, engine.world
        self.task = trained_task(space.backbone.family.task, config.model_dump())
        self.weights = weights_of(self.task, weights or {})
        for name, count in (("clips", config.clips), ("images", config.images)):
            if count % world.size:
                raise NasError(f"train.{name} must divide by the {world.size} processes that share it, but is {count}")
        self.videos = Loader(data, config.clips, world.share, config.workers)
        self.images = Loader(images_of(data, seed), config.images, world.share, config.workers)
        self.loaders = (self.videos, self.images)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.supernet = Supernet(space, config.prediction, held)
            self.text = self._text(space, data)
        if isinstance(self.text, TextEncoder):  # now, and not at the step that draws the caption
            check_lengths([(text, "") for text in data.captions], self.text.tokenizer, self.text.max_tokens)
        if config.init and new:
            from nas.pretrained.given import init_network

            self.warn(init_network(space.backbone.family, self.supernet, config.init).sentence())
        learning: dict[str, nn.Module] = {"supernet": self.supernet, "text": self.text}
        kept = {"task": self.task.state} if self.task.state is not None else {}
        self.modules = {**learning, **kept}
        for module in self.modules.values():
            module.to(engine.device).train()
        engine.prepare(self.supernet, self.supernet.blocks(), methods=("predict",))
        engine.prepare(self.text)
        temporal = {id(p) for p in self.supernet.temporal_parameters()}
        self.shared = [p for module in learning.values() for p in module.parameters() if id(p) not in temporal]
        groups = [{"params": self.shared}, {"params": list(self.supernet.temporal_parameters())}]
        self.optimizer = build_optimizer(config, groups, engine.device)
        self.optimizers = {"": self.optimizer}
        self.passes = Passes(
            *(self.supernet, self.task, self.text, self.videos, self.images, config, engine, self._generator),
            lambda: self.room.clips,
        )
        self._room: AtOnce | None = None
        self.step = self.salt = 0  # of the step that is made; all random numbers come of them

    def _text(self, space: Space, data: Dataset) -> Any:
        """The text side: of a small encoder, that of the built model to start from, if it is one."""
        from nas.pretrained.given import given_text

        text = text_encoder_of(space, data)
        if self.config.init is None or not isinstance(text, TextEncoder):
            return text
        return given_text(self.config.init, space, data.captions, self.warn) or text

    @property
    def facts(self) -> dict[str, Any]:
        """What a checkpoint must share with the training that continues it: captions, because words number tokens."""
        captions = hashlib.sha256(json.dumps(list(self.data.captions)).encode()).hexdigest()[:12]
        return {
            "space": self.space.fingerprint,
            "seed": self.seed,
            "captions": captions,
            **self.text.facts,
            **self.task.facts,
            **({FACT: to_json(self.supernet.held)} if self.supernet.held is not None else {}),
        }

    def fresh(self, folder: Path) -> None:
        self.text.save(folder / TEXT)

    # One step -----------------------------------------------------------------------------------------------------

    def advance(self, step: int, draws: Draws, sane: Callable[[float], bool]) -> Row | None:
        """One optimiser step; see ``loop.Stage``."""
        self.step, self.salt = step, draws.salt
        assert self.room.clips  # found before anything of this step stands
        config, engine, warming = self.config, self.engine, step < self.config.warmup_steps
        rate, everything = self._learning_rate(), warming or config.spatial_rate > 0
        for parameter in self.shared:
            parameter.requires_grad_(everything)
        set_rates(self.optimizer, [rate * (1.0 if warming else config.spatial_rate), rate])
        paths = [self.space.baseline()] if warming else self._learning_paths(everything)
        share = config.image_share if config.images and everything else 0.0
        passed = self._passed(paths, share)
        loss_video, loss_image = engine.world.mean(
            [statistics.fmean(p.video for p in passed), statistics.fmean(p.image or 0.0 for p in passed)]
        )
        total = (1 - share) * loss_video + share * loss_image
        norm = engine.norm(self.optimizer)
        if not engine.usable(total, norm, sane):
            return None
        engine.step(self.optimizer)
        self.task.settle(engine.world.mean)
        parts = [f"loss_{name}" for name in passed[0].parts]
        values = [statistics.fmean(p.parts[name] for p in passed) for name in passed[0].parts]
        return {
            "loss": total,
            "loss_video": loss_video,
            "loss_image": loss_image if share else None,
            "learning_rate": rate,
            "grad_norm": norm,
            "path": paths[0].key,
            **(dict(zip(parts, engine.world.mean(values), strict=True)) if parts else {}),
        }

    def _generator(self, micro: int, stream: int, item: int = 0) -> torch.Generator:
        mixed = (((self.seed * 1_000_003 + self.step * 97 + micro) * 31 + self.salt) * 7 + stream) * 8191 + item
        return torch.Generator().manual_seed(mixed % 2**63)

    def _passed(self, paths: list[Arrangement], share: float) -> list[Passed]:
        """The step's gradients and losses; where memory runs out, all of it again with half as many clips at once.

        Raises:
            NasError: if it runs out with one clip, or where all processes must run as many.
        """
        while True:
            self.optimizer.zero_grad(set_to_none=True)
            try:
                return [self._pass(paths, micro, share) for micro in range(self.config.accumulate)]
            except torch.OutOfMemoryError:
                had = self.room.clips
            if self.engine.sharded or not self.room.halve():
                raise NasError(
                    f"memory ran out at step {self.step + 1} with {had} clips at once; try "
                    f"train.activation_checkpoints=true, or {'fewer' if had > 1 else 'smaller'} clips"
                    + (f": train.micro_clips={had // 2}" if had > 1 else "")
                )
            if self.engine.device.type == "cuda":
                torch.cuda.empty_cache()
            self.warn(f"step {self.step + 1}: memory ran out with {had} clips at once; goes on with {self.room.clips}")

    @property
    def room(self) -> AtOnce:
        """How many clips go through the network at once; found when it is first asked for."""
        if self._room is None:
            self._room = clips_at_once(self)
        return self._room

    @property
    def sentence(self) -> str:
        told = f"{self.engine.sentence}; {self.room.sentence(len(self.engine.world.share(self.config.clips)))}"
        left_out = held_sentence(self.space, self.supernet.held) if self.supernet.held is not None else None
        return told + (f"; {left_out}" if left_out else "")

    def notes(self) -> dict[str, Any]:
        """The clips at once, so that a training that goes on adds up its gradients in the same order."""
        return {"micro_clips": self._room.clips} if self._room is not None else {}

    def take_up(self, notes: Mapping[str, Any]) -> None:
        if self.config.micro_clips == "auto" and "micro_clips" in notes:
            self._room = AtOnce(int(notes["micro_clips"]), "as it began")

    def _pass(self, paths: list[Arrangement], micro: int, image_share: float) -> Passed:
        """Add up the gradients of a micro-batch; see ``Passes``."""
        return self.passes(paths, self.step * self.config.accumulate + micro, micro, image_share)

    def _learning_paths(self, everything: bool) -> list[Arrangement]:
        """The step's paths that something learns along; if there is none, the first, for its loss."""
        paths = self.draw(self.step)
        if everything:
            return paths
        chosen = {position.name for position in self.space.positions if position.size > 1}
        return [path for path in paths if any(vs for name, vs in path.layers if name in chosen)] or paths[:1]

    def _learning_rate(self) -> float:
        """Linear ramp, then a cosine to a tenth; a second ramp where temporal paths begin."""
        config = self.config
        begun = self.step if self.step < config.warmup_steps else self.step - config.warmup_steps
        ramp = min(1.0, (begun + 1) / config.ramp_steps) if config.ramp_steps else 1.0
        done = self.step / config.steps
        return config.learning_rate * ramp * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))

    def start_from(self, supernet: Supernet, text: TextEncoder, *, temporal: bool) -> None:
        """Take up another supernet's shared weights, and its temporal layers too where ``temporal``."""
        keep = set() if temporal else {id(p) for p in self.supernet.temporal_parameters()}
        pairs: tuple[tuple[nn.Module, nn.Module], ...] = ((self.supernet, supernet), (self.text, text))
        with torch.no_grad():
            for mine, given in pairs:
                theirs = dict(given.named_parameters())
                for name, parameter in mine.named_parameters():
                    if id(parameter) not in keep:
                        parameter.copy_(theirs[name])

    # Looking at it ----------------------------------------------------------------------------------------------------

    def validate(self) -> float | None:
        """The score on validation clips, over the same few paths each time."""
        from nas.supernet.quality import Quality

        if self.validation is None:
            return None
        paths = [self.space.baseline(), *fixed_paths(self.space, VALIDATED_PATHS - 1)]
        if self.supernet.held is not None:  # then only those that are drawn
            paths[1:] = [self.draw(self.config.warmup_steps + turn)[0] for turn in range(VALIDATED_PATHS - 1)]
        config = VALIDATION.model_copy(update={"weights": self.weights})
        device, precision = str(self.engine.device), self.engine.precision
        quality = Quality(self.supernet, self.text, self.validation, config, device, precision=precision)
        return statistics.fmean(quality.score(path).loss for path in paths)

    def strip(self) -> Strip | None:
        from nas.supernet.strip import draw_strip

        path = fixed_paths(self.space, 1)[0] if self.supernet.held is None else self.draw(self.config.warmup_steps)[0]
        return draw_strip(self.supernet, self.text, self.data, path, self.engine.device, self.warn)
