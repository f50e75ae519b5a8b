"""Stage adversarial: from many steps with guidance to a few without, against a discriminator of the model's own
encoder."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from nas.model.pipeline import TextToVideoPipeline
from nas.recipes.contract import Recipe
from nas.recipes.discriminator import Encoder, Heads
from nas.tasks.noise import clean_estimate, mix
from nas.training.batches import Batch, Batches, validated
from nas.training.config import StageConfig
from nas.training.draws import Draws
from nas.training.engine import Engine
from nas.training.loop import Row, Stage, warmed_rate

FLAT = 1e-3  # difference between answers to real and generated clips below which a discriminator says nothing


Count = Callable[[str, float, Tensor], None]  # a loss's name, its share, and it


def check_levels(levels: tuple[float, ...]) -> tuple[float, ...]:
    """Noise levels of a generator: from pure noise downwards.

    Raises:
        ValueError: if they do not start at 1 and fall.
    """
    if not levels or levels[0] != 1 or not all(a > b > 0 for a, b in zip(levels, [*levels[1:], 1e-12], strict=True)):
        raise ValueError("must start at 1 and fall, staying above 0")
    return levels


Levels = Annotated[tuple[float, ...], AfterValidator(check_levels)]


class AdversarialConfig(StageConfig):
    """From many steps with guidance to few without.

    Attributes:
        levels: the noise levels of the generator, falling from 1: the steps that it will be sampled at.
        heads: `unified` (SnapGen-V), `separate` (a spatial and a temporal one, SF-V), `spatial` or `temporal` alone.
        head_stages: the family's features (a UNet's down blocks) that carry a head, counted from 0; all, if empty.
        head_width: channels inside a head. head_rate: learning rate of the heads. head_steps: their steps for each of
            the generator. head_warmup: first steps in which the heads alone learn, so that the generator does not
            begin by following a discriminator that knows nothing.
        adversarial_weight: of the generator's hinge loss beside its reconstruction; 0 trains without a discriminator.
        huber: c of the Pseudo-Huber reconstruction sqrt(error^2 + c^2) - c.
        noise_mean, noise_std: of the logarithm of the discriminator's noise-to-signal ratio (SF-V: -1 and 1).
        r1: how the discriminator's slope at real clips is held down: `exact` (squared gradient, R1), `finite` (its
            finite difference along random directions of size `r1_step`), or `off`: no weight from 1e-4 to 100 gained
            accuracy in a short benchmarks/four_steps.py of one seed, and a step took 1.4 times as long. r1_weight: of
            that term beside the hinge loss; there, the slope at 1 was a 37th of that at 1e-4.
        renoise: whether sampling draws fresh noise between steps, as the generator was trained, or follows the
            predicted noise.
        collapse_window, collapse_low: the discriminator counts as collapsed when its hinge loss, averaged over this
            many steps, falls below `collapse_low` (it tells every clip apart and teaches nothing more), or when its
            answers to real and generated clips no longer differ.
    """

    learning_rate: float = Field(5e-5, gt=0.0)
    gradient_clip: float = Field(1.0, gt=0.0)
    ema_decay: float = Field(0.95, ge=0.0, lt=1.0)
    levels: Levels = (1.0, 0.75, 0.5, 0.25)
    heads: Literal["unified", "separate", "spatial", "temporal"] = "unified"
    head_stages: tuple[int, ...] = ()
    head_width: int = Field(64, ge=8, multiple_of=8)
    head_rate: float = Field(2e-4, gt=0.0)
    head_steps: int = Field(1, ge=1)
    head_warmup: int = Field(0, ge=0)
    adversarial_weight: float = Field(0.1, ge=0.0)
    huber: float = Field(0.03, gt=0.0)
    noise_mean: float = -1.0
    noise_std: float = Field(1.0, gt=0.0)
    r1: Literal["exact", "finite", "off"] = "off"
    r1_weight: float = Field(1.0, ge=0.0)
    r1_step: float = Field(0.02, gt=0.0)
    renoise: bool = True
    collapse_window: int = Field(100, ge=2)
    collapse_low: float = Field(0.02, ge=0.0)


@dataclass(frozen=True)
class Made:
    """Clips that the generator made, (B, C, T, H, W), of what, and how much they count.

    Attributes:
        context: (B, L, D) text. pooled: (B, D). noisy, level: what the generator was given. fake: what it made.
    """

    share: float
    batch: Batch
    context: Tensor
    pooled: Tensor
    noisy: Tensor
    level: Tensor
    fake: Tensor


class Adversarial(Stage):
    """Generator and discriminator, one step of each in turn, on videos and on images.

    The generator makes a clean clip of a noisy one in one evaluation, at one of ``config.levels``. The discriminator
    sees real and generated clips under fresh noise: the frozen encoder of the model as it was at the start, with a
    trained head after each down block. Losses: hinge for both, a Pseudo-Huber reconstruction for the generator, and for
    the discriminator, if asked for, R1 or its finite difference.

    Args:
        pipeline: its network is trained in place; its text encoder stays as it is.

    Source: SnapGen-V (arXiv 2412.10494, section on adversarial fine-tuning and figure 2); noise of the discriminator,
    reconstruction and weights after SF-V (arXiv 2406.04324, section 4); the finite difference after Seaweed-APT
    (arXiv 2501.08316, section 3.4).
    """

    key = "adversarial"
    averaged = frozenset({"unet"})
    config: AdversarialConfig

    def __init__(
        self,
        pipeline: TextToVideoPipeline,
        batches: Batches,
        config: AdversarialConfig,
        seed: int,
        engine: Engine,
    ) -> None:
        self.pipeline, self.batches, self.config, self.engine = pipeline, batches, config, engine
        self.loaders, self.window = batches.loaders, config.collapse_window
        unet = pipeline.unet.train()
        pipeline.text_encoder.requires_grad_(False)
        self.modules: dict[str, nn.Module] = {"unet": unet}
        if config.adversarial_weight:
            self.encoder = Encoder(unet)  # a copy of the network as it is, before it is split or compiled
            width = int(pipeline.text_encoder.config.hidden_size)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                heads = Heads(self.encoder.channels, config.head_stages, config.heads, width, config.head_width)
            self.modules["heads"] = heads.to(unet.device)
        engine.prepare(unet, unet.blocks())
        decay = config.weight_decay
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "generator": torch.optim.AdamW(unet.parameters(), config.learning_rate, (0.0, 0.99), weight_decay=decay)
        }
        if config.adversarial_weight:
            self.optimizers["heads"] = torch.optim.AdamW(
                heads.parameters(), config.head_rate, (0.0, 0.99), weight_decay=decay
            )

    def advance(self, step: int, draws: Draws, sane: Callable[[float], bool]) -> Row | None:
        """One step of the discriminator and one of the generator; see ``loop.Stage``."""
        config, engine = self.config, self.engine
        rate = warmed_rate(config, step)
        sums: dict[str, float] = {}

        def count(name: str, share: float, value: Tensor) -> None:
            sums[name] = sums.get(name, 0.0) + share * float(value.detach()) / config.accumulate

        def told() -> Row:
            return dict(zip(sums, engine.world.mean(list(sums.values())), strict=True))

        adversarial = bool(config.adversarial_weight)
        self.optimizers["generator"].zero_grad(set_to_none=True)
        with engine.autocast():
            made = [one for micro in range(config.accumulate) for one in self._make(step, micro, draws, count)]
            if not sane(engine.world.mean([sums["loss"]])[0]):
                return None
            if adversarial:
                for _ in range(config.head_steps):
                    if not self._teach(made, draws, count, config.head_rate * min(1.0, rate * 10)):
                        return None
                if step < config.head_warmup:
                    return {**told(), "loss_generator": 0.0, "learning_rate": 0.0, "grad_norm": 0.0}
            self._follow(made, draws, count)
        norm = engine.norm(self.optimizers["generator"])
        if not engine.sound(norm):
            return None
        self._step("generator", config.learning_rate * rate)
        return {**told(), "learning_rate": config.learning_rate * rate, "grad_norm": norm}

    def _make(self, step: int, micro: int, draws: Draws, count: Count) -> list[Made]:
        """What the generator makes of a micro-batch's videos, and of its images."""
        config, turn = self.config, step * self.config.accumulate + micro
        parts = [(1 - (config.image_share if config.images else 0.0), self.batches.videos(turn))]
        if config.images:
            parts.append((config.image_share, self.batches.pictures(turn)))
        found = []
        for share, batch in parts:
            with torch.no_grad():
                context, pooled = self.pipeline.states(batch.captions)
            noisy, level = self._noisy(batch, draws)
            with torch.set_grad_enabled(config.accumulate == 1):  # of several the graphs would be too much to hold
                fake = self._generate(noisy, level, context)
            count("loss", share, self._rebuilt(fake, batch))
            found.append(Made(share, batch, context, pooled, noisy, level, fake))
        return found

    def _follow(self, made: list[Made], draws: Draws, count: Count) -> None:
        """The generator's gradients: to rebuild its clips, and to have the heads believe them."""
        config, adversarial = self.config, bool(self.config.adversarial_weight)
        if adversarial:
            self.modules["heads"].requires_grad_(False)
        for one in made:
            fake = one.fake if config.accumulate == 1 else self._generate(one.noisy, one.level, one.context)
            loss = self._rebuilt(fake, one.batch)
            if adversarial:
                answers = self._answers(fake, one.context, one.pooled, draws)
                fooled = -torch.stack([answer.float().mean() for answer in answers]).mean()
                count("loss_generator", one.share, fooled)
                loss = loss + config.adversarial_weight * fooled
            self.engine.back(one.share * loss)
        if adversarial:
            self.modules["heads"].requires_grad_(True)

    def _teach(self, made: list[Made], draws: Draws, count: Count, rate: float) -> bool:
        """One step of the heads; False, and none taken, if it went wrong."""
        self.optimizers["heads"].zero_grad(set_to_none=True)
        for one in made:
            loss = self._judge(one, draws, one.share / self.config.head_steps, count)
            self.engine.back(one.share * loss)
        if not self.engine.sound(self.engine.norm(self.optimizers["heads"])):
            return False
        self._step("heads", rate)
        return True

    def _step(self, name: str, rate: float) -> None:
        for group in self.optimizers[name].param_groups:
            group["lr"] = rate
        self.engine.step(self.optimizers[name])

    def _noisy(self, batch: Batch, draws: Draws) -> tuple[Tensor, Tensor]:
        """Clips under noise, each at one of the fixed levels, and those."""
        which = draws.choices(len(batch.captions), len(self.config.levels))
        level = torch.tensor(self.config.levels, device=which.device)[which]
        return mix(batch.video, draws.normal(batch.video), level), level

    def _generate(self, noisy: Tensor, level: Tensor, context: Tensor) -> Tensor:
        """A clean clip from a noisy one, one evaluation."""
        return clean_estimate(noisy, self.pipeline.unet(noisy, 1000.0 * level, context).sample, level)

    def _rebuilt(self, fake: Tensor, batch: Batch) -> Tensor:
        return pseudo_huber(fake.float() - batch.video, self.config.huber).mean()

    @torch.no_grad()
    def validate(self) -> float | None:
        """The reconstruction of unseen videos, with the same noise and levels each time."""

        def loss(batch: Batch, draws: Draws) -> Tensor:
            noisy, level = self._noisy(batch, draws)
            with self.engine.autocast():
                return self._rebuilt(self._generate(noisy, level, self.pipeline.encode(batch.captions)), batch)

        return validated(self.batches, loss)

    def _renoised(self, video: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """What the discriminator sees: noise-to-signal ratio log-normal, so noise level logit-normal."""
        level = draws.levels(len(video), self.config.noise_mean, self.config.noise_std)
        return mix(video, draws.normal(video), level), level

    def _answers(self, video: Tensor, context: Tensor, pooled: Tensor, draws: Draws) -> list[Tensor]:
        noisy, level = self._renoised(video, draws)
        return self.modules["heads"](self.encoder(noisy, level, context), video.shape[2], pooled)

    def _judge(self, one: Made, draws: Draws, share: float, count: Count) -> Tensor:
        """The discriminator's loss: hinge on both sides, and what holds its slope down at real clips."""
        batch, context, pooled, fake = one.batch, one.context, one.pooled, one.fake.detach()
        config, heads, frames = self.config, self.modules["heads"], batch.video.shape[2]
        on_fake = self._answers(fake, context, pooled, draws)
        seen, level = self._renoised(batch.video, draws)
        seen.requires_grad_(config.r1 == "exact")
        plain = sdpa_kernel(SDPBackend.MATH)  # fused ones have no second gradient
        with plain if config.r1 == "exact" else nullcontext():
            on_real = heads(self.encoder(seen, level, context), frames, pooled)
        real = torch.cat([answer.float().flatten() for answer in on_real])
        false = torch.cat([answer.float().flatten() for answer in on_fake])
        hinge = torch.relu(1 - real).mean() + torch.relu(1 + false).mean()
        count("loss_discriminator", share, hinge)
        count("real", share, real.mean())
        count("fake", share, false.mean())
        if config.r1 == "off" or not config.r1_weight:
            return hinge
        if config.r1 == "exact":
            answers = torch.stack([answer.float().mean(1) for answer in on_real]).sum()
            (slope,) = torch.autograd.grad(answers, seen, create_graph=True)
            r1 = slope.pow(2).flatten(1).sum(1).mean()
        else:
            step = config.r1_step
            moved = seen + step * draws.normal(seen)
            there = heads(self.encoder(moved, level, context), frames, pooled)
            gaps = [(a.float().mean(1) - b.float().mean(1)).pow(2).mean() for a, b in zip(there, on_real, strict=True)]
            r1 = torch.stack(gaps).sum() / step**2
        count("r1", share, r1)
        return hinge + config.r1_weight * r1

    def trouble(self, rows: list[Row]) -> str | None:
        """Whether the discriminator collapsed over the last ``collapse_window`` steps."""
        config = self.config
        if not config.adversarial_weight or len(rows) < config.collapse_window:
            return None
        latest = rows[-config.collapse_window :]
        hinge = statistics.fmean(row["loss_discriminator"] for row in latest)
        gap = statistics.fmean(abs(row["real"] - row["fake"]) for row in latest)
        hold = "set adversarial.r1=finite" if config.r1 == "off" else "raise adversarial.r1_weight"
        remedy = f"{hold} or lower adversarial.head_rate"
        if hinge < config.collapse_low:
            return (
                f"the discriminator had collapsed: it told all clips apart (hinge loss {hinge:.2g} over "
                f"{len(latest)} steps, under {config.collapse_low:g}); {remedy}"
            )
        if gap < FLAT:
            lower = "" if config.r1 == "off" else " or lower adversarial.r1_weight"
            return (
                f"the discriminator had collapsed: its answers to real and generated clips differed by {gap:.2g} over "
                f"{len(latest)} steps; raise adversarial.head_rate{lower}"
            )
        return None


def pseudo_huber(error: Tensor, c: float) -> Tensor:
    """sqrt(error^2 + c^2) - c, elementwise: square near zero, absolute far from it."""
    return torch.sqrt(error.pow(2) + c * c) - c


RECIPE = Recipe(
    name="adversarial",
    summary="to a few steps, against a discriminator",
    config=AdversarialConfig,
    stage=lambda given, config: Adversarial(given.pipeline, given.batches, config, given.seed, given.engine),
    sampling=lambda config: {"sigmas": list(config.levels), "guidance": 1.0, "renoise": config.renoise},
)
