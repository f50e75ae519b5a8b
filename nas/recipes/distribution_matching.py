"""Stage distribution_matching: to a few steps without guidance, by the difference of two scores."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from nas.recipes.adversarial import Levels
from nas.recipes.contract import Materials, Recipe
from nas.recipes.discriminator import Encoder, Heads
from nas.tasks.noise import clean_estimate, mix, velocity
from nas.training.batches import Batch
from nas.training.config import StageConfig
from nas.training.draws import Draws
from nas.training.engine import Engine
from nas.training.loop import Row, Stage, warmed_rate

SMALL = 1e-6  # a clip that the teacher leaves as it is has no scale of its own


class MatchingConfig(StageConfig):
    """Distribution matching of a few-step generator with a teacher.

    Attributes:
        levels: the noise levels of the generator, falling from 1: the steps that it will be sampled at.
        guidance: of the teacher, which the generator learns to do without.
        fake_steps: steps of the fake score for each of the generator (two time scales; DMD2 found 5 to hold it
            stable). fake_rate: their learning rate.
        noise_mean, noise_std: of the logit-normal level at which the two scores are compared.
        adversarial_weight: of a hinge loss against heads on the frozen encoder, beside the matching; 0 goes without,
            and then no real clip is looked at. heads, head_width, head_rate: as of `adversarial`.
    """

    learning_rate: float = Field(2e-5, gt=0.0)
    ema_decay: float = Field(0.95, ge=0.0, lt=1.0)
    images: int = Field(0, ge=0)
    levels: Levels = (1.0, 0.75, 0.5, 0.25)
    guidance: float = Field(2.0, ge=0.0)
    fake_steps: int = Field(5, ge=1, le=1000)
    fake_rate: float = Field(5e-5, gt=0.0)
    noise_mean: float = 0.0
    noise_std: float = Field(1.0, gt=0.0)
    adversarial_weight: float = Field(0.0, ge=0.0)
    heads: Literal["unified", "separate", "spatial", "temporal"] = "unified"
    head_width: int = Field(64, ge=8, multiple_of=8)
    head_rate: float = Field(2e-4, gt=0.0)


class Matching(Stage):
    """Some steps of the fake score, then one of the generator.

    The teacher, the model as it was with guidance, knows how likely a noisy clip is among good ones; the fake score, a
    copy that is trained all along on what the generator makes, how likely it is among the generator's. The difference
    of their clean estimates is the direction in which the generator's clips move, divided by how far the teacher's
    estimate is from them. The generator is trained on its own earlier steps (backward simulation), so training meets
    what sampling meets.

    Args:
        given: the pipeline's network is trained in place; its text encoder stays as it is.

    Source: DMD2 (arXiv 2405.14867, sections 4.1 to 4.5); its classifier reads the fake score, ours, if any, the frozen
    encoder of the stage ``adversarial``.
    """

    key = "distribution_matching"
    window = 1
    averaged = frozenset({"unet"})
    config: MatchingConfig

    def __init__(self, given: Materials, config: MatchingConfig) -> None:
        self.pipeline, self.batches, self.config = given.pipeline, given.batches, config
        self.engine: Engine = given.engine
        self.loaders = self.batches.loaders
        given.pipeline.text_encoder.requires_grad_(False)
        unet = given.pipeline.unet.train()
        self.teacher: Any = copy.deepcopy(unet).eval().requires_grad_(False)
        fake = copy.deepcopy(unet).train()
        self.modules: dict[str, nn.Module] = {"unet": unet, "fake": fake}
        if config.adversarial_weight:
            self.encoder = Encoder(unet)
            width = int(given.pipeline.text_encoder.config.hidden_size)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(given.seed)
                heads = Heads(self.encoder.channels, (), config.heads, width, config.head_width)
            self.modules["heads"] = heads.to(unet.device)
        for network in (unet, fake):
            self.engine.prepare(network, network.blocks())
        rates = {"unet": config.learning_rate, "fake": config.fake_rate, "heads": config.head_rate}
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            name: torch.optim.AdamW(module.parameters(), rates[name], (0.0, 0.99), weight_decay=config.weight_decay)
            for name, module in self.modules.items()
        }
        self.rates = rates

    def advance(self, step: int, draws: Draws, sane: Callable[[float], bool]) -> Row | None:
        """Steps of the fake score (and of the heads) and one of the generator; see ``loop.Stage``."""
        config, engine = self.config, self.engine
        rate = warmed_rate(config, step)
        sums: dict[str, float] = {}

        def count(name: str, share: float, value: Tensor) -> None:
            sums[name] = sums.get(name, 0.0) + share * float(value.detach()) / config.accumulate

        taken = [self._taken(step * config.accumulate + micro) for micro in range(config.accumulate)]
        with engine.autocast():
            for _ in range(config.fake_steps):
                if not self._follow(taken, draws, rate, count):
                    return None
            if "heads" in self.modules:
                self.modules["heads"].requires_grad_(False)
            self.optimizers["unet"].zero_grad(set_to_none=True)
            for parts in taken:
                for share, batch, context, pooled in parts:
                    engine.back(share * self._loss(batch, context, pooled, share, draws, count))
            if "heads" in self.modules:
                self.modules["heads"].requires_grad_(True)
        norm = engine.norm(self.optimizers["unet"])
        told = dict(zip(sums, engine.world.mean(list(sums.values())), strict=True))
        if not engine.usable(told["loss"], norm, sane):
            return None
        self._step("unet", rate)
        return {**told, "learning_rate": config.learning_rate * rate, "grad_norm": norm}

    def _taken(self, turn: int) -> list[tuple[float, Batch, Tensor, Tensor]]:
        """Videos and images of a turn, with their shares of the loss and their text."""
        config = self.config
        share = config.image_share if config.images else 0.0
        parts = [(1 - share, self.batches.videos(turn))]
        if config.images:
            parts.append((share, self.batches.pictures(turn)))
        with torch.no_grad():
            return [(part, batch, *self.pipeline.states(batch.captions)) for part, batch in parts]

    def _follow(self, taken: Any, draws: Draws, rate: float, count: Callable[[str, float, Tensor], None]) -> bool:
        """One step of the fake score, and of the heads, on clips that the generator makes now; False if it failed."""
        names = [name for name in self.modules if name != "unet"]
        for name in names:
            self.optimizers[name].zero_grad(set_to_none=True)
        for parts in taken:
            for share, batch, context, pooled in parts:
                with torch.no_grad():
                    made = self._made(batch, context, draws)
                noisy, level, noise = self._noised(made, draws)
                answer = self.modules["fake"](noisy, 1000.0 * level, context).sample.float()
                loss = nn.functional.mse_loss(answer, velocity(made, noise).float())
                count("loss_fake", share / self.config.fake_steps, loss)
                if "heads" in self.modules:
                    hinge = torch.relu(1 - self._answers(batch.video, context, pooled, draws)).mean()
                    hinge = hinge + torch.relu(1 + self._answers(made, context, pooled, draws)).mean()
                    count("loss_discriminator", share / self.config.fake_steps, hinge)
                    loss = loss + hinge
                self.engine.back(share * loss)
        if not all(self.engine.sound(self.engine.norm(self.optimizers[name])) for name in names):
            return False
        for name in names:
            self._step(name, rate)
        return True

    def _loss(
        self,
        batch: Batch,
        context: Tensor,
        pooled: Tensor,
        share: float,
        draws: Draws,
        count: Callable[[str, float, Tensor], None],
    ) -> Tensor:
        """The generator's loss, whose gradient at a clip is the difference of the two clean estimates."""
        made = self._made(batch, context, draws)
        with torch.no_grad():
            noisy, level, _ = self._noised(made, draws)
            good = clean_estimate(noisy, self._guided(noisy, level, batch, context), level)
            own = clean_estimate(noisy, self.modules["fake"](noisy, 1000.0 * level, context).sample, level)
            scale = (made - good).abs().flatten(1).mean(1).clamp(min=SMALL)
            gap = (own - good).float() / scale.reshape(-1, *[1] * (made.dim() - 1))
        loss = 0.5 * nn.functional.mse_loss(made.float(), (made - gap).detach().float())
        count("loss", share, loss)
        if "heads" in self.modules:
            fooled = -self._answers(made, context, pooled, draws).mean()
            count("loss_generator", share, fooled)
            loss = loss + self.config.adversarial_weight * fooled
        return loss

    def _made(self, batch: Batch, context: Tensor, draws: Draws) -> Tensor:
        """What the generator makes at one of its levels, of a clip that its own earlier steps led to."""
        levels, clips = self.config.levels, len(batch.captions)
        which = draws.choices(clips, len(levels))
        state = draws.normal(batch.video)
        began = state
        for place, level in enumerate(levels[:-1]):
            with torch.no_grad():
                clean = self._step_of(state, torch.full((clips,), level, device=which.device), context)
            following = torch.full((clips,), levels[place + 1], device=which.device)
            state = mix(clean, draws.normal(batch.video), following)
            began = torch.where((which == place + 1).reshape(-1, *[1] * (state.dim() - 1)), state, began)
        return self._step_of(began, torch.tensor(levels, device=which.device)[which], context)

    def _step_of(self, noisy: Tensor, level: Tensor, context: Tensor) -> Tensor:
        return clean_estimate(noisy, self.modules["unet"](noisy, 1000.0 * level, context).sample, level)

    def _guided(self, noisy: Tensor, level: Tensor, batch: Batch, context: Tensor) -> Tensor:
        """The teacher's velocity with guidance."""
        found: Tensor = self.teacher(noisy, 1000.0 * level, context).sample
        if self.config.guidance == 1.0:
            return found
        empty = self.pipeline.encode([""] * len(batch.captions))
        plain = self.teacher(noisy, 1000.0 * level, empty).sample
        return plain + self.config.guidance * (found - plain)

    def _noised(self, clips: Tensor, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        noise = draws.normal(clips)
        level = draws.levels(len(clips), self.config.noise_mean, self.config.noise_std)
        return mix(clips, noise, level), level, noise

    def _answers(self, clips: Tensor, context: Tensor, pooled: Tensor, draws: Draws) -> Tensor:
        noisy, level, _ = self._noised(clips, draws)
        found = self.modules["heads"](self.encoder(noisy, level, context), clips.shape[2], pooled)
        return torch.cat([answer.float().flatten() for answer in found])

    def _step(self, name: str, rate: float) -> None:
        for group in self.optimizers[name].param_groups:
            group["lr"] = self.rates[name] * rate
        self.engine.step(self.optimizers[name])


RECIPE = Recipe(
    name="distribution_matching",
    summary="to a few steps without guidance, by matching a teacher's distribution",
    config=MatchingConfig,
    stage=Matching,
    sampling=lambda config: {"sigmas": list(config.levels), "guidance": 1.0, "renoise": True},
)
