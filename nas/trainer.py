"""Train the supernet: images and videos together, one path a step, killed and resumed without a trace."""

from __future__ import annotations

import hashlib
import json
import math
import os
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas.checkpoint import (
    Checkpoint,
    check_belongs,
    checkpoint_path,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
    sync,
)
from nas.config import FREE_OF_TRAIN, QualityConfig, TrainConfig
from nas.data import Dataset
from nas.data.clip import images_of
from nas.data.lengths import check_lengths
from nas.distributed import LAUNCHED, PEER_LOST, PeerLost, World
from nas.errors import NasError
from nas.loader import Batch, Loader
from nas.optimizers import build_optimizer, pack_state, set_rates, unpack_state
from nas.paths import PATHS
from nas.sharding import is_sharded, like, shard, split_again, whole
from nas.supernet import Supernet, compile_blocks
from nas.text import TextEncoder, drop_captions, open_text, text_encoder_of
from search_spaces.arrangement import Arrangement
from search_spaces.space import Space

METRICS = "metrics.jsonl"
TEXT = "text"
BEST = "best.json"
ROLLBACKS = 3  # of one step; more, and it will not get better
RECENT = 50  # losses that a spike is measured against
VALIDATION = QualityConfig(clips=16, batch=8)
VALIDATED_PATHS = 4


@dataclass(frozen=True)
class Step:
    """What one step reports.

    Attributes:
        loss, loss_video, loss_image: means over its paths and over all processes.
        path: the largest-first path's key. seconds: all of the step. waited: of them, for data.
        frames_per_s: video frames and images trained on, over all processes. loader_frames_per_s: what the workers of
            one process can load; training waits where that is less than its share.
        memory_mb: peak on the device so far; of a CPU, of the process. validation: loss of the averaged weights.
    """

    step: int
    loss: float
    loss_video: float
    loss_image: float
    learning_rate: float
    grad_norm: float
    seconds: float
    path: str
    waited: float = 0.0
    frames_per_s: float = 0.0
    loader_frames_per_s: float = 0.0
    memory_mb: float = 0.0
    validation: float | None = None


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


def check_source(space: Space, source: str) -> None:
    """Refuse pixels for a space of latents, before any video is decoded.

    Raises:
        NasError: with the command that makes the cache.
    """
    if source != "cache" and (space.autoencoder.space != 1 or space.autoencoder.time != 1):
        raise NasError(
            f"space {space.name} works in the latents of an autoencoder; encode the data first "
            f"(nas cache DATA --space {space.name} --autoencoder MODEL --text MODEL --out CACHE) and train with "
            "--set data.source=cache --set data.path=CACHE"
        )


def check_data(space: Space, data: Dataset) -> None:
    """Refuse latents of another space, and pixels for a space of latents.

    Raises:
        NasError: naming what differs.
    """
    from nas.data.cached import CachedLatents

    if isinstance(data, CachedLatents):
        data.check_fits(space)
    else:
        check_source(space, "pixels")


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
        self.diffusion = self.supernet.diffusion
        if config.init and not list_checkpoints(folder):
            from nas.weights import init_backbone

            self.warn(init_backbone(self.supernet.unet, config.init).sentence())
        self.supernet.to(self.device).train()
        self.text.to(self.device).train()
        if config.activation_checkpoints:
            self.supernet.checkpoint_activations()
        if config.shard and self.world.size > 1:
            shard(self.supernet, self.text, self.world)
        if config.compile:
            compile_blocks(self.supernet)
        self.ema = {name: p.detach().clone() for name, p in self._named()}
        temporal = {id(p) for p in self.supernet.temporal_parameters()}
        self.shared = [p for _, p in self._named() if id(p) not in temporal]
        groups = [{"params": self.shared}, {"params": list(self.supernet.temporal_parameters())}]
        self.optimizer = build_optimizer(config, groups, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
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
        from nas.watch import Watch

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
                    with (self.folder / METRICS).open("a") as metrics:
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
        paths = [self.space.empty()] if warming else self.draw(self.step)
        rate = self._learning_rate()
        frozen = not warming and config.spatial_rate == 0
        for parameter in self.shared:
            parameter.requires_grad_(not frozen)
        set_rates(self.optimizer, [rate * (1.0 if warming else config.spatial_rate), rate])
        self.optimizer.zero_grad(set_to_none=True)
        videos, images, frames, waited = [], [], 0, 0.0
        share = config.image_share if config.images else 0.0
        for micro in range(config.accumulate):
            video_loss, image_loss = self._losses(paths, micro)
            videos.append(float(video_loss.detach()))
            images.append(float(image_loss.detach()))
            frames += self._frames
            waited += self._waited
            loss = (1 - share) * video_loss + share * image_loss
            if loss.requires_grad:
                self.scaler.scale(loss / config.accumulate).backward()
        if config.shard and self.world.size > 1:
            split_again(self.supernet, self.text)
        loss_video, loss_image = self.world.mean([statistics.fmean(videos), statistics.fmean(images)])
        total = (1 - share) * loss_video + share * loss_image
        norm = self._gradient_norm()
        overflow = self.scaler.is_enabled() and math.isfinite(total) and not math.isfinite(norm)
        if not overflow and self._went_wrong(total, norm):
            self._roll_back(total)
            return None
        if self._with_gradient():  # none along an empty path of a frozen backbone: a scaler takes no such step
            self.scaler.step(self.optimizer)  # which leaves the weights alone on an overflow, and scales less after it
            self.scaler.update()
        self._average()
        self.step += 1
        if self.step >= self.bad:  # past it; the steps before it, made again, are no progress
            self.rollbacks = 0
        self.recent.append(total)
        seconds = time.perf_counter() - started
        return Step(
            step=self.step,
            loss=total,
            loss_video=loss_video,
            loss_image=loss_image,
            learning_rate=rate,
            grad_norm=norm,
            seconds=seconds,
            path=paths[0].key,
            waited=round(waited, 6),
            frames_per_s=round(frames * self.world.size / seconds, 3),
            loader_frames_per_s=round(self.videos.frames_per_s * max(1, config.workers), 1),
            memory_mb=_memory_mb(self.device),
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

    def _losses(self, paths: list[Arrangement], micro: int) -> tuple[Tensor, Tensor]:
        """Mean loss over the paths on this micro-batch's videos, and the loss on its images (no path: T = 1)."""
        config = self.config
        turn = self.step * config.accumulate + micro
        batch = self.videos(turn)
        self._frames, self._waited = batch.frames, self.videos.waited
        kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.precision)
        with torch.autocast(self.device.type, kind or torch.bfloat16, enabled=kind is not None):
            noisy, level, target, context = self._noised(batch, micro, 0, config.clips)
            losses, teacher = [], None
            for path in paths:
                predicted = self._predict(noisy, level, context, path)
                loss = nn.functional.mse_loss(predicted.float(), target)
                if teacher is not None and config.distillation:
                    taught = nn.functional.mse_loss(predicted.float(), teacher)
                    loss = (1 - config.distillation) * loss + config.distillation * taught
                elif len(paths) > 1:
                    teacher = predicted.detach().float()
                losses.append(loss)
            video_loss = torch.stack(losses).mean()
            if not config.images:
                return video_loss, torch.zeros((), device=self.device)
            pictures = self.images(turn)
            self._frames += pictures.frames
            self._waited += self.images.waited
            noisy, level, target, context = self._noised(pictures, micro, 1, config.images)
            predicted = self._predict(noisy, level, context, self.space.empty())
            return video_loss, nn.functional.mse_loss(predicted.float(), target)

    def _noised(self, batch: Batch, micro: int, stream: int, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Noisy samples, levels, targets and text of this process's share of ``count`` items.

        Levels and dropped captions are drawn for the whole batch, noise item by item, so that who computes what
        changes nothing.
        """
        config, mine = self.config, self.world.share(count)
        draws = self._generator(micro, stream)
        levels = self.diffusion.levels(count, config.timestep_mean, config.timestep_std, draws)
        level = levels[mine.start : mine.stop].to(self.device)
        shown = [*[""] * mine.start, *batch.captions, *[""] * (count - mine.stop)]
        captions = drop_captions(shown, config.caption_dropout, draws)[mine.start : mine.stop]
        shape = batch.video.shape[1:]
        noise = torch.stack([torch.randn(shape, generator=self._generator(micro, 2 + stream, i)) for i in mine])
        noise, video = noise.to(self.device), batch.video.to(self.device)
        target = self.diffusion.target(video, noise, level)
        return self.diffusion.noised(video, noise, level), level, target, self.text(captions)

    def _predict(self, noisy: Tensor, level: Tensor, context: Tensor, path: Arrangement) -> Tensor:
        frames = noisy.shape[1]
        told = self.diffusion.timestep(level)
        out = self.supernet.predict(noisy.flatten(0, 1), told, context, frames, path)
        return out.unflatten(0, (-1, frames))

    def _learning_rate(self) -> float:
        """Linear ramp, then a cosine to a tenth; a second ramp where temporal paths begin."""
        config = self.config
        begun = self.step if self.step < config.warmup_steps else self.step - config.warmup_steps
        ramp = min(1.0, (begun + 1) / config.ramp_steps) if config.ramp_steps else 1.0
        done = self.step / config.steps
        return config.learning_rate * ramp * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))

    def _average(self) -> None:
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, parameter in self._named():
                self.ema[name].lerp_(parameter, 1 - decay)

    def start_from(self, supernet: Supernet, text: TextEncoder, *, temporal: bool) -> None:
        """Take up another supernet's shared weights, and its temporal layers too where ``temporal``."""
        given = {f"supernet.{n}": p for n, p in supernet.named_parameters()}
        given |= {f"text.{n}": p for n, p in text.named_parameters()}
        keep = set() if temporal else {id(p) for p in self.supernet.temporal_parameters()}
        with torch.no_grad():
            for name, parameter in self._named():
                if id(parameter) not in keep:
                    parameter.copy_(given[name])
                    self.ema[name].copy_(given[name])

    def averages(self) -> tuple[Supernet, TextEncoder]:
        """The averaged weights, in evaluation mode; what was trained here is theirs from now on."""
        self._swap()
        for module in (self.supernet, self.text):
            module.eval().requires_grad_(False)
        return self.supernet, self.text

    # Looking at it ----------------------------------------------------------------------------------------------------

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The averaged weights in place of the trained ones, ready to be scored or sampled, while this lasts."""
        self._swap()
        self.supernet.eval()
        self.text.eval()
        try:
            yield
        finally:
            self._swap()
            self.supernet.train()
            self.text.train()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._named():
            held = parameter.detach().clone()
            parameter.copy_(self.ema[name])
            self.ema[name].copy_(held)

    def validate(self, done: Step) -> Step:
        """The step with the averaged weights' loss on validation clips, over the same few paths each time."""
        from nas.quality import Quality

        assert self.validation is not None
        paths = [self.space.empty(), *fixed_paths(self.space, VALIDATED_PATHS - 1)]
        with self.averaged():
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
            partial = self.folder / f".{BEST}.partial"
            partial.write_text(json.dumps({"step": done.step, "loss": done.validation}))
            os.replace(partial, self.folder / BEST)
        return bool(self.world.say(int(better)))

    def _draw(self, watch: Any) -> None:
        from nas.watch import draw_strip

        with self.averaged():
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
            "average": {name: whole(p) for name, p in self.ema.items()},
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
            found, last_error = self._newest()
            if found is None and last_error is not None:
                raise last_error
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

    def _newest(self) -> tuple[tuple[Checkpoint, Path] | None, NasError | None]:
        last_error: NasError | None = None
        for path in reversed(list_checkpoints(self.folder)):
            try:
                checkpoint = load_checkpoint(path)
            except NasError as error:
                last_error = error
                self.warn(f"{error}. Going on from an earlier one")
                continue
            check_belongs(checkpoint.state, self._facts(), path)
            return (checkpoint, path), None
        return None, last_error

    def _restore(self, checkpoint: Checkpoint, path: Path) -> None:
        named = dict(self._named())
        for group in ("weights", "average"):
            _check_shapes(checkpoint.tensors.get(group, {}), named, path)
        with torch.no_grad():
            for name, tensor in checkpoint.tensors["weights"].items():
                named[name].copy_(like(tensor, named[name]))
            for name, tensor in checkpoint.tensors["average"].items():
                self.ema[name].copy_(like(tensor, self.ema[name]))
        unpack_state(self.optimizer, checkpoint.tensors["optimizer"], named)
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(checkpoint.state["scaler"])
        self.step = int(checkpoint.state["step"])
        self.salt = int(checkpoint.state["salt"])
        self.recent = deque(checkpoint.state["recent"], maxlen=RECENT)


def fixed_paths(space: Space, count: int) -> list[Arrangement]:
    """The same few arrangements of a space whenever they are asked for."""
    import numpy as np

    return [space.sample(np.random.default_rng([2024, i])) for i in range(count)]


def read_best(folder: Path) -> dict[str, Any] | None:
    """Step and loss of the best validated checkpoint, if there is one."""
    try:
        best = json.loads((folder / BEST).read_text())
        return {"step": int(best["step"]), "loss": float(best["loss"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def load_supernet(space: Space, folder: Path) -> tuple[Supernet, TextEncoder, int]:
    """The averaged supernet and text encoder of the newest checkpoint, in evaluation mode, and its step.

    What it was trained to predict stands in the checkpoint; called, the supernet gives a velocity.

    Raises:
        NasError: if there is none, it is damaged, or it is of another space.
    """
    found = list_checkpoints(folder)
    if not found:
        raise NasError(f"{folder}: no checkpoint of a supernet there; train it with nas train {space.name} --out RUN")
    checkpoint = load_checkpoint(found[-1])
    check_belongs(checkpoint.state, {"space": space.fingerprint}, found[-1])
    settings = checkpoint.state.get("settings", {})
    supernet, text = Supernet(space, settings.get("prediction", "velocity")), open_text(folder / TEXT)
    average = checkpoint.tensors.get("average", {})
    parts = (("supernet.", supernet), ("text.", text))
    _check_shapes(average, {prefix + n: p for prefix, module in parts for n, p in module.named_parameters()}, found[-1])
    for prefix, module in parts:
        module.load_state_dict(
            {name.removeprefix(prefix): tensor for name, tensor in average.items() if name.startswith(prefix)}
        )
        module.eval().requires_grad_(False)
    return supernet, text, int(checkpoint.state["step"])


def _check_shapes(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path) -> None:
    for name in sorted({*found, *wanted}):
        shapes = [tuple(side[name].shape) if name in side else None for side in (found, wanted)]
        if shapes[0] != shapes[1]:
            raise NasError(
                f"{path}: {name} has shape {shapes[0]} there and {shapes[1]} here; it was made by another version or "
                "its tokenizer was replaced: train in a new run folder"
            )


def _memory_mb(device: torch.device) -> float:
    """Peak memory so far, in MB: the device's, or of a CPU this process's."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6, 1)


def cut_metrics(path: Path, step: int) -> None:
    """Drop what was logged after ``step``, and a last line that was cut off: those steps will be made again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError):
            break
    partial = path.with_suffix(".partial")
    partial.write_text("".join(line + "\n" for line in kept))
    os.replace(partial, path)


def _settings(config: TrainConfig) -> dict[str, Any]:
    """The settings that shape the loss curve."""
    return {name: value for name, value in config.model_dump(mode="json").items() if name not in FREE_OF_TRAIN}
