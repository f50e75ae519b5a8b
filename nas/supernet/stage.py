"""Train the supernet: images and videos together, along a few paths a step, killed and resumed without a trace."""

from __future__ import annotations

import hashlib
import json
import math
import os
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas.config import FREE_OF_TRAIN, QualityConfig, TrainConfig
from nas.data import Dataset
from nas.data.cached import check_data, text_encoder_of
from nas.data.clip import images_of
from nas.data.lengths import check_lengths
from nas.errors import NasError
from nas.files import append, write_whole
from nas.pretrained.text import TextEncoder
from nas.supernet.passes import Passed, Passes
from nas.supernet.paths import PATHS, fixed_paths
from nas.supernet.supernet import Supernet, compile_blocks
from nas.supernet.trained import TEXT
from nas.training.averages import Averages
from nas.training.checkpoint import (
    Checkpoint,
    checkpoint_path,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
    sync,
)
from nas.training.distributed import LAUNCHED, PEER_LOST, PeerLost, World, peak_memory_mb
from nas.training.loader import Loader
from nas.training.log import BEST, METRICS, Step, check_shapes, cut_metrics, newest_checkpoint, read_best
from nas.training.optimizers import build_optimizer, pack_state, set_rates, unpack_state
from nas.training.sharding import is_sharded, like, shard, split_again, whole
from search_spaces.arrangement import Arrangement
from search_spaces.space import Space

ROLLBACKS = 3  # of one step; more, and it will not get better
RECENT = 50  # losses that a spike is measured against
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
    validation: Dataset | None = None,
    draw: Callable[[int], list[Arrangement]] | None = None,
    drawn_from: str = "",
) -> None:
    """Train until ``config.steps``, from the newest checkpoint in ``folder`` if there is one.

    Every random choice (clips, captions dropped, noise, noise levels, path) is a pure function of the seed, the step
    and the item, so a run that was killed and started again repeats the uninterrupted one exactly on the same device
    and thread count; ``metrics.jsonl`` then holds each step once. Several processes (torchrun, accelerate,
    ``nas train --processes``) share each batch and make the losses of one process with the whole of it.

    Args:
        data: training clips of the space's training clip; for a space in latents, a cache of them.
        folder: receives checkpoints, ``metrics.jsonl`` and the tokenizer.
        progress: called after each step. warn: called with a sentence when a step is rolled back or skipped.
        validation: clips that the averaged weights are scored on every ``validate_every`` steps.
        draw, drawn_from: the paths of a step in place of those that ``config.paths`` names, and what they depend on: a
            checkpoint of other draws is not continued.

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
        trainer = Trainer(
            space,
            data,
            config,
            folder,
            seed,
            warn,
            world=world,
            validation=validation,
            draw=draw,
            drawn_from=drawn_from,
        )
        with world.together():
            trainer.run(progress)
    except PeerLost:
        if LAUNCHED in os.environ:  # who started us saw which process it was, and says so once
            raise SystemExit(PEER_LOST) from None
        raise
    finally:
        world.close()


class Trainer:
    """The state of a training: supernet, text encoder, their averages, the optimiser, and the step."""

    def __init__(
        self,
        space: Space,
        data: Dataset,
        config: TrainConfig,
        folder: Path,
        seed: int,
        warn: Callable[[str], None],
        *,
        world: World | None = None,
        validation: Dataset | None = None,
        draw: Callable[[int], list[Arrangement]] | None = None,
        drawn_from: str = "",
    ) -> None:
        if draw is None and config.paths not in PATHS:
            raise NasError(
                f"train.paths={config.paths} needs a table of costs; train with nas run, or after nas profile"
            )
        self.draw = draw or (lambda step: PATHS[config.paths](space, seed, step))
        self.drawn_from = drawn_from
        self.space, self.data, self.config, self.folder, self.seed = space, data, config, folder, seed
        self.world = world or World.open(config.device)
        self.warn = warn if self.world.main else lambda message: None
        self.device = self.world.device
        self.validation = validation
        for name, count in (("clips", config.clips), ("images", config.images)):
            if count % self.world.size:
                raise NasError(
                    f"train.{name} must divide by the {self.world.size} processes that share it, but is {count}"
                )
        self.videos = Loader(data, config.clips, self.world.share, config.workers)
        self.images = Loader(images_of(data, seed), config.images, self.world.share, config.workers)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.supernet = Supernet(space, config.prediction)
            self.text = text_encoder_of(space, data)
        if isinstance(self.text, TextEncoder):  # now, and not at the step that draws the caption
            check_lengths([(text, "") for text in data.captions], self.text.tokenizer, self.text.max_tokens)
        if config.init and not list_checkpoints(folder):
            from nas.pretrained.given import init_frame

            self.warn(init_frame(space.backbone.family, self.supernet.unet, config.init).sentence())
        self.supernet.to(self.device).train()
        self.text.to(self.device).train()
        if config.activation_checkpoints:
            self.supernet.checkpoint_activations()
        if config.shard and self.world.size > 1:
            shard(self.supernet, self.text, self.world)
        if config.compile:
            compile_blocks(self.supernet)
        self.ema = Averages(dict(self._named()), config.ema_decay)
        temporal = {id(p) for p in self.supernet.temporal_parameters()}
        self.shared = [p for _, p in self._named() if id(p) not in temporal]
        groups = [{"params": self.shared}, {"params": list(self.supernet.temporal_parameters())}]
        self.optimizer = build_optimizer(config, groups, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        self.passes = Passes(
            self.supernet, self.text, self.videos, self.images, config, self.world, self.scaler, self._generator
        )
        self.step = 0
        self.salt = 0  # grows with each roll-back, so that the same bad draw is not made again
        self.recent: deque[float] = deque(maxlen=RECENT)
        self.bad = 0  # the furthest step that went wrong, and how often it did
        self.rollbacks = 0

    def _named(self) -> Iterable[tuple[str, nn.Parameter]]:
        for name, parameter in self.supernet.named_parameters():
            yield f"supernet.{name}", parameter
        for name, parameter in self.text.named_parameters():
            yield f"text.{name}", parameter

    def run(self, progress: Callable[[Step], None] | None = None) -> None:
        """Train to the last step, logging, validating, drawing and saving on the way."""
        from nas.training.watch import Watch

        config = self.config
        self.resume()
        watch = Watch(self.folder, config.trackers, self.step) if self.world.main else None
        try:
            while self.step < config.steps:
                done = self.advance()
                if done is None:  # rolled back; the log was cut to the step it went back to
                    continue
                if self._due(config.validate_every) and self.validation is not None:
                    done = self.validate(done)
                if self.world.main:
                    with append(self.folder / METRICS) as metrics:
                        metrics.write(json.dumps(vars(done)) + "\n")
                if watch is not None:
                    watch.log(done)
                if progress is not None and self.world.main:
                    progress(done)
                if self._due(config.sample_every):
                    self._draw(watch)
                best = self._is_best(done)
                if best or self._due(config.checkpoint_every):
                    self.save()
        finally:
            self.videos.close()
            self.images.close()
            if watch is not None:
                watch.close()

    def _due(self, every: int) -> bool:
        return bool(every) and (self.step % every == 0 or self.step == self.config.steps)

    # One step -----------------------------------------------------------------------------------------------------

    def advance(self) -> Step | None:
        """One optimiser step; None when it went wrong and the last checkpoint was taken back."""
        started = time.perf_counter()
        config, warming = self.config, self.step < self.config.warmup_steps
        rate, everything = self._learning_rate(), warming or config.spatial_rate > 0
        for parameter in self.shared:
            parameter.requires_grad_(everything)
        set_rates(self.optimizer, [rate * (1.0 if warming else config.spatial_rate), rate])
        self.optimizer.zero_grad(set_to_none=True)
        paths = [self.space.baseline()] if warming else self._learning_paths(everything)
        share = config.image_share if config.images and everything else 0.0
        passed = [self._pass(paths, micro, share) for micro in range(config.accumulate)]
        if config.shard and self.world.size > 1:
            split_again(self.supernet, self.text)
        loss_video, loss_image = self.world.mean(
            [statistics.fmean(p.video for p in passed), statistics.fmean(p.image or 0.0 for p in passed)]
        )
        total = (1 - share) * loss_video + share * loss_image
        norm = self._gradient_norm()
        overflow = self.scaler.is_enabled() and math.isfinite(total) and not math.isfinite(norm)
        if not overflow and self._went_wrong(total, norm):
            self._roll_back(total)
            return None
        if self._with_gradient():  # none along an empty path of a frozen backbone: a scaler takes no such step
            self.scaler.step(self.optimizer)  # which leaves the weights alone on an overflow, and scales less after it
            self.scaler.update()
        self.ema.take(self.step)
        self.step += 1
        if self.step >= self.bad:  # past it; the steps before it, made again, are no progress
            self.rollbacks = 0
        self.recent.append(total)
        seconds = time.perf_counter() - started
        return Step(
            step=self.step,
            loss=total,
            loss_video=loss_video,
            loss_image=loss_image if share else None,
            learning_rate=rate,
            grad_norm=norm,
            seconds=seconds,
            path=paths[0].key,
            waited=round(sum(p.waited for p in passed), 6),
            frames_per_s=round(sum(p.frames for p in passed) * self.world.size / seconds, 3),
            loader_frames_per_s=round(self.videos.frames_per_s * max(1, config.workers), 1),
            memory_mb=peak_memory_mb(self.device),
        )

    def _with_gradient(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]

    def _gradient_norm(self) -> float:
        """Average the gradients over the processes and clip them; their norm before that."""
        active = self._with_gradient()
        if not active:
            return 0.0
        self.world.average_gradients(p for p in active if not is_sharded(p))
        self.scaler.unscale_(self.optimizer)
        return float(whole(nn.utils.clip_grad_norm_(active, self.config.gradient_clip)))

    def _generator(self, micro: int, stream: int, item: int = 0) -> torch.Generator:
        mixed = (((self.seed * 1_000_003 + self.step * 97 + micro) * 31 + self.salt) * 7 + stream) * 8191 + item
        return torch.Generator().manual_seed(mixed % 2**63)

    def _pass(self, paths: list[Arrangement], micro: int, image_share: float) -> Passed:
        """Add up the gradients of a micro-batch; see ``Passes``."""
        return self.passes(paths, self.step * self.config.accumulate + micro, micro, image_share)

    def _learning_paths(self, everything: bool) -> list[Arrangement]:
        """The step's paths that something learns along; if there is none, the first, for its loss."""
        paths = self.draw(self.step)
        if everything:
            return paths
        return [path for path in paths if any(variants for _, variants in path.layers)] or paths[:1]

    def _learning_rate(self) -> float:
        """Linear ramp, then a cosine to a tenth; a second ramp where temporal paths begin."""
        config = self.config
        begun = self.step if self.step < config.warmup_steps else self.step - config.warmup_steps
        ramp = min(1.0, (begun + 1) / config.ramp_steps) if config.ramp_steps else 1.0
        done = self.step / config.steps
        return config.learning_rate * ramp * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))

    def start_from(self, supernet: Supernet, text: TextEncoder, *, temporal: bool) -> None:
        """Take up another supernet's shared weights, and its temporal layers too where ``temporal``."""
        given = {f"supernet.{n}": p for n, p in supernet.named_parameters()}
        given |= {f"text.{n}": p for n, p in text.named_parameters()}
        keep = set() if temporal else {id(p) for p in self.supernet.temporal_parameters()}
        with torch.no_grad():
            for name, parameter in self._named():
                if id(parameter) not in keep:
                    parameter.copy_(given[name])
                    self.ema.values[name].copy_(given[name])

    def averages(self) -> tuple[Supernet, TextEncoder]:
        """The averaged weights, in evaluation mode; what was trained here is theirs from now on."""
        self.ema.swap()
        for module in (self.supernet, self.text):
            module.eval().requires_grad_(False)
        return self.supernet, self.text

    # Looking at it ----------------------------------------------------------------------------------------------------

    def validate(self, done: Step) -> Step:
        """The step with the averaged weights' loss on validation clips, over the same few paths each time."""
        from nas.supernet.quality import Quality

        assert self.validation is not None
        paths = [self.space.baseline(), *fixed_paths(self.space, VALIDATED_PATHS - 1)]
        with self.ema.shown(self.supernet, self.text):
            quality = Quality(self.supernet, self.text, self.validation, VALIDATION, str(self.device))
            loss = statistics.fmean(quality.score(path).loss for path in paths)
        return Step(**{**vars(done), "validation": loss})

    def _is_best(self, done: Step) -> bool:
        """Whether the step is the best validated one, which is then written down."""
        if done.validation is None:
            return False
        best = read_best(self.folder) if self.world.main else None
        better = best is None or best["step"] >= done.step or done.validation < best["loss"]
        if self.world.say(int(better)) and self.world.main:
            write_whole(self.folder / BEST, json.dumps({"step": done.step, "loss": done.validation}))
        return bool(self.world.say(int(better)))

    def _draw(self, watch: Any) -> None:
        from nas.supernet.strip import draw_strip

        with self.ema.shown(self.supernet, self.text):
            strip = draw_strip(self.supernet, self.text, self.data, self.space, self.device, self.warn)
        if strip is not None and watch is not None:
            watch.strip(*strip, self.step)

    # When it goes wrong ---------------------------------------------------------------------------------------------

    def _went_wrong(self, loss: float, norm: float) -> bool:
        if not math.isfinite(loss) or not math.isfinite(norm):
            return True
        return len(self.recent) == RECENT and loss > self.config.spike * statistics.median(self.recent)

    def _roll_back(self, loss: float) -> None:
        bad, salt = self.step + 1, self.salt + 1
        self.world.wait()  # whatever was being saved is there
        self.bad = max(self.bad, bad)
        self.rollbacks += 1
        if self.rollbacks > ROLLBACKS:
            raise NasError(
                f"{self.folder}: step {bad} went wrong (loss {loss:g}), and going back {ROLLBACKS} times did not help; "
                "train in another run folder with a lower train.learning_rate"
            )
        if not self.resume():
            raise NasError(
                f"{self.folder}: step {bad} went wrong (loss {loss:g}) and no checkpoint is left to go back to; train "
                "in another run folder"
            )
        self.salt = salt
        self.recent.clear()
        self.warn(f"step {bad}: loss {loss:g}; went back to step {self.step} and draws the noise anew")

    # Checkpoints ------------------------------------------------------------------------------------------------------

    def _facts(self) -> dict[str, Any]:
        """What a checkpoint must share with the training that continues it.

        The length too: the learning rate depends on it. Captions, because their words number the tokens.
        """
        captions = hashlib.sha256(json.dumps(list(self.data.captions)).encode()).hexdigest()[:12]
        return {
            "space": self.space.fingerprint,
            "seed": self.seed,
            "captions": captions,
            **self.text.facts,
            **({"paths drawn from": self.drawn_from} if self.drawn_from else {}),
            "settings": _settings(self.config),
        }

    def save(self) -> None:
        """Write a checkpoint; every process takes part, the main one writes."""
        named = dict(self._named())
        groups: dict[str, Mapping[str, Tensor]] = {
            "weights": {name: whole(p.detach()) for name, p in named.items()},
            "average": {name: whole(p) for name, p in self.ema.values.items()},
            "optimizer": pack_state(self.optimizer, {p: name for name, p in named.items()}),
        }
        if not self.world.main:
            return
        state = {**self._facts(), "salt": self.salt, "recent": list(self.recent), "scaler": self.scaler.state_dict()}
        if (self.folder / METRICS).exists():
            sync(self.folder / METRICS)  # never behind the checkpoint, even where the power fails
        best = read_best(self.folder)
        kept = frozenset() if best is None else frozenset({best["step"]})
        save_checkpoint(self.folder, self.step, Checkpoint(groups, state), self.config.keep, kept)

    def resume(self) -> bool:
        """Take up the newest readable checkpoint; a damaged one is passed over with a sentence.

        A fresh folder gets a checkpoint of step 0, so that there is always one to go back to. The main process looks;
        the others take what it found.
        """
        found: tuple[Checkpoint, Path] | None = None
        fresh = False
        if self.world.main:
            found = newest_checkpoint(self.folder, self._facts(), self.warn)
            fresh = found is None and not self.step
        answer = self.world.say(int(found[0].state["step"]) if found is not None else -1 - int(fresh))
        if answer == -2:
            if self.world.main:
                self.text.save(self.folder / TEXT)
                cut_metrics(self.folder / METRICS, 0)
                (self.folder / BEST).unlink(missing_ok=True)
            self.save()
            return True
        if answer == -1:
            return False
        if found is None:
            path = checkpoint_path(self.folder, answer)
            found = load_checkpoint(path), path
        self._restore(*found)
        if self.world.main:
            cut_metrics(self.folder / METRICS, self.step)
        return True

    def _restore(self, checkpoint: Checkpoint, path: Path) -> None:
        named = dict(self._named())
        for group in ("weights", "average"):
            check_shapes(checkpoint.tensors.get(group, {}), named, path)
        with torch.no_grad():
            for name, tensor in checkpoint.tensors["weights"].items():
                named[name].copy_(like(tensor, named[name]))
            for name, tensor in checkpoint.tensors["average"].items():
                self.ema.values[name].copy_(like(tensor, self.ema.values[name]))
        unpack_state(self.optimizer, checkpoint.tensors["optimizer"], named)
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(checkpoint.state["scaler"])
        self.step = int(checkpoint.state["step"])
        self.salt = int(checkpoint.state["salt"])
        self.recent = deque(checkpoint.state["recent"], maxlen=RECENT)


def _settings(config: TrainConfig) -> dict[str, Any]:
    """The settings that shape the loss curve."""
    return {name: value for name, value in config.model_dump(mode="json").items() if name not in FREE_OF_TRAIN}
