"""Train the supernet: images and videos together, one path a step, killed and resumed without a trace."""

from __future__ import annotations

import hashlib
import json
import math
import os
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas.checkpoint import Checkpoint, check_belongs, list_checkpoints, load_checkpoint, save_checkpoint, sync
from nas.config import TrainConfig
from nas.data import Dataset, Images
from nas.errors import NasError
from nas.flow import mix, noise_levels, velocity
from nas.paths import PATHS
from nas.supernet import Supernet
from nas.text import TextEncoder, drop_captions
from search_spaces.arrangement import Arrangement
from search_spaces.space import Space

METRICS = "metrics.jsonl"
TEXT = "text"
ROLLBACKS = 3  # of one step; more, and it will not get better
RECENT = 50  # losses that a spike is measured against


@dataclass(frozen=True)
class Step:
    """What one step reports: losses (mean over its paths), the largest-first path's key, and the time it took."""

    step: int
    loss: float
    loss_video: float
    loss_image: float
    learning_rate: float
    grad_norm: float
    seconds: float
    path: str


@dataclass(frozen=True)
class Batch:
    """video: (B, T, C, H, W) in [-1, 1]; one caption a clip."""

    video: Tensor
    captions: list[str]


def train(
    space: Space,
    data: Dataset,
    config: TrainConfig,
    folder: Path,
    *,
    seed: int = 0,
    progress: Callable[[Step], None] | None = None,
    warn: Callable[[str], None] = lambda message: None,
) -> None:
    """Train until ``config.steps``, from the newest checkpoint in ``folder`` if there is one.

    Every random choice (clips, captions dropped, noise, noise levels, path) is a pure function of the seed and the
    step, so a run that was killed and started again repeats the uninterrupted one exactly on the same device and
    thread count; ``metrics.jsonl`` then holds each step once.

    Args:
        space: in pixels; a space in latents needs its data encoded first.
        data: training clips of the space's training clip.
        folder: receives checkpoints, ``metrics.jsonl`` and the tokenizer.
        progress: called after each step. warn: called with a sentence when a step is rolled back or skipped.

    Raises:
        NasError: if the space works in latents, the folder holds another training, a step goes wrong again and again,
            or training cannot be saved.
    """
    if space.autoencoder.space != 1 or space.autoencoder.time != 1:
        raise NasError(
            f"space {space.name} works in the latents of an autoencoder, and this version trains in pixels only; "
            "train a space whose autoencoder divides by 1, such as tiny"
        )
    if config.threads:
        torch.set_num_threads(config.threads)
    folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(space, data, config, folder, seed, warn)
    trainer.resume()
    while trainer.step < config.steps:
        done = trainer.advance()
        if done is None:  # rolled back; the log was cut to the step it went back to
            continue
        with (folder / METRICS).open("a") as metrics:
            metrics.write(json.dumps(vars(done)) + "\n")
        if progress is not None:
            progress(done)
        if trainer.step % config.checkpoint_every == 0 or trainer.step == config.steps:
            trainer.save()


class Trainer:
    """The state of a training: supernet, text encoder, their averages, the optimiser, and the step."""

    def __init__(
        self, space: Space, data: Dataset, config: TrainConfig, folder: Path, seed: int, warn: Callable[[str], None]
    ) -> None:
        self.space, self.data, self.config, self.folder, self.seed = space, data, config, folder, seed
        self.images = Images(data, seed)
        self.warn = warn
        self.device = _device(config.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.supernet = Supernet(space).to(self.device).train()
            self.text = TextEncoder.small(space, data.captions).to(self.device).train()
        self.ema = {name: p.detach().clone() for name, p in self._named()}
        temporal = {id(p) for p in self.supernet.temporal_parameters()}
        self.shared = [p for _, p in self._named() if id(p) not in temporal]
        groups = [{"params": self.shared}, {"params": list(self.supernet.temporal_parameters())}]
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay)
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

    # One step -----------------------------------------------------------------------------------------------------

    def advance(self) -> Step | None:
        """One optimiser step; None when it went wrong and the last checkpoint was taken back."""
        started = time.perf_counter()
        config, warming = self.config, self.step < self.config.warmup_steps
        paths = [self.space.empty()] if warming else PATHS[config.paths](self.space, self.seed, self.step)
        rate = self._learning_rate()
        frozen = not warming and config.spatial_rate == 0
        for parameter in self.shared:
            parameter.requires_grad_(not frozen)
        self.optimizer.param_groups[0]["lr"] = rate * (1.0 if warming else config.spatial_rate)
        self.optimizer.param_groups[1]["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        videos, images = [], []
        for micro in range(config.accumulate):
            generator = self._generator(micro)
            video_loss, image_loss = self._losses(paths, micro, generator)
            videos.append(float(video_loss.detach()))
            images.append(float(image_loss.detach()))
            share = config.image_share if config.images else 0.0
            loss = (1 - share) * video_loss + share * image_loss
            if loss.requires_grad:
                (loss / config.accumulate).backward()
        total = statistics.fmean((1 - share) * v + share * i for v, i in zip(videos, images, strict=True))
        active = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = float(nn.utils.clip_grad_norm_(active, config.gradient_clip)) if active else 0.0
        if self._went_wrong(total, norm):
            self._roll_back(total)
            return None
        self.optimizer.step()
        self._average()
        self.step += 1
        if self.step >= self.bad:  # past it; the steps before it, made again, are no progress
            self.rollbacks = 0
        self.recent.append(total)
        return Step(
            step=self.step,
            loss=total,
            loss_video=statistics.fmean(videos),
            loss_image=statistics.fmean(images),
            learning_rate=rate,
            grad_norm=norm,
            seconds=time.perf_counter() - started,
            path=paths[0].key,
        )

    def _generator(self, micro: int) -> torch.Generator:
        mixed = (self.seed * 1_000_003 + self.step * 97 + micro) * 31 + self.salt
        return torch.Generator().manual_seed(mixed % 2**63)

    def _losses(self, paths: list[Arrangement], micro: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Mean loss over the paths on this micro-batch's videos, and the loss on its images (no path: T = 1)."""
        config = self.config
        turn = self.step * config.accumulate + micro
        batch = self._batch(self.data, turn * config.clips, config.clips)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            noisy, level, target, context = self._noised(batch, generator)
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
            pictures = self._batch(self.images, turn * config.images, config.images)
            noisy, level, target, context = self._noised(pictures, generator)
            predicted = self._predict(noisy, level, context, self.space.empty())
            return video_loss, nn.functional.mse_loss(predicted.float(), target)

    def _batch(self, data: Dataset, first: int, count: int) -> Batch:
        items = [data[(first + i) % len(data)] for i in range(count)]
        return Batch(
            torch.stack([item["video"] for item in items]).to(self.device), [item["caption"] for item in items]
        )

    def _noised(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        config = self.config
        noise = torch.randn(batch.video.shape, generator=generator).to(self.device)
        level = noise_levels(len(batch.captions), config.timestep_mean, config.timestep_std, generator).to(self.device)
        context = self.text(drop_captions(batch.captions, config.caption_dropout, generator))
        return mix(batch.video, noise, level), level, velocity(batch.video, noise), context

    def _predict(self, noisy: Tensor, level: Tensor, context: Tensor, path: Arrangement) -> Tensor:
        frames = noisy.shape[1]
        out = self.supernet(noisy.flatten(0, 1), 1000.0 * level, context, frames, path)
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

    # When it goes wrong ---------------------------------------------------------------------------------------------

    def _went_wrong(self, loss: float, norm: float) -> bool:
        if not math.isfinite(loss) or not math.isfinite(norm):
            return True
        return len(self.recent) == RECENT and loss > self.config.spike * statistics.median(self.recent)

    def _roll_back(self, loss: float) -> None:
        bad, salt = self.step + 1, self.salt + 1
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
            "settings": _settings(self.config),
        }

    def save(self) -> None:
        groups: dict[str, Mapping[str, Tensor]] = {
            "weights": dict(self._named()),
            "average": self.ema,
            "optimizer": _flat_optimizer(self.optimizer, dict((p, n) for n, p in self._named())),
        }
        state = {**self._facts(), "salt": self.salt, "recent": list(self.recent)}
        if (self.folder / METRICS).exists():
            sync(self.folder / METRICS)  # never behind the checkpoint, even where the power fails
        save_checkpoint(self.folder, self.step, Checkpoint(groups, state), self.config.keep)

    def resume(self) -> bool:
        """Take up the newest readable checkpoint; a damaged one is passed over with a sentence.

        A fresh folder gets a checkpoint of step 0, so that there is always one to go back to.
        """
        found = list_checkpoints(self.folder)
        last_error: NasError | None = None
        for path in reversed(found):
            try:
                checkpoint = load_checkpoint(path)
            except NasError as error:
                last_error = error
                self.warn(f"{error}. Going on from an earlier one")
                continue
            check_belongs(checkpoint.state, self._facts(), path)
            self._restore(checkpoint, path)
            cut_metrics(self.folder / METRICS, self.step)
            return True
        if last_error is not None:
            raise last_error
        if self.step:
            return False
        self.text.save(self.folder / TEXT)
        cut_metrics(self.folder / METRICS, 0)
        self.save()
        return True

    def _restore(self, checkpoint: Checkpoint, path: Path) -> None:
        named = dict(self._named())
        for group in ("weights", "average"):
            _check_shapes(checkpoint.tensors.get(group, {}), named, path)
        with torch.no_grad():
            for name, tensor in checkpoint.tensors["weights"].items():
                named[name].copy_(tensor)
            for name, tensor in checkpoint.tensors["average"].items():
                self.ema[name].copy_(tensor)
        self.optimizer.state.clear()
        for name, tensor in checkpoint.tensors["optimizer"].items():
            parameter, _, entry = name.rpartition("/")
            kept = tensor if entry == "step" else tensor.to(self.device)
            self.optimizer.state[named[parameter]][entry] = kept
        self.step = int(checkpoint.state["step"])
        self.salt = int(checkpoint.state["salt"])
        self.recent = deque(checkpoint.state["recent"], maxlen=RECENT)


def load_supernet(space: Space, folder: Path) -> tuple[Supernet, TextEncoder, int]:
    """The averaged supernet and text encoder of the newest checkpoint, in evaluation mode, and its step.

    Raises:
        NasError: if there is none, it is damaged, or it is of another space.
    """
    found = list_checkpoints(folder)
    if not found:
        raise NasError(f"{folder}: no checkpoint of a supernet there; train it with nas train {space.name} --out RUN")
    checkpoint = load_checkpoint(found[-1])
    check_belongs(checkpoint.state, {"space": space.fingerprint}, found[-1])
    supernet, text = Supernet(space), TextEncoder.load(folder / TEXT)
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


def _device(name: str) -> torch.device:
    """The device, once it has held a number.

    Raises:
        NasError: if this machine or this build of torch has none of that name.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first = str(error).strip().splitlines()[0]
        raise NasError(f"train.device: {name!r} cannot be used here ({first}); use cpu, or see nas doctor") from error
    return device


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


def _flat_optimizer(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> dict[str, Tensor]:
    return {
        f"{names[parameter]}/{entry}": value
        for parameter, entries in optimizer.state.items()
        for entry, value in entries.items()
    }


def _settings(config: TrainConfig) -> dict[str, Any]:
    """The settings that shape the loss curve; how often to save, and where to run, do not."""
    free = {"checkpoint_every", "keep", "threads", "device", "spike"}
    return {name: value for name, value in config.model_dump(mode="json").items() if name not in free}
