"""Stage adversarial: from many steps with guidance to a few without, against a discriminator of the model's own
encoder."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from nas.model.pipeline import TextToVideoPipeline
from nas.recipes.config import AdversarialConfig
from nas.recipes.discriminator import Encoder, Heads
from nas.tasks.noise import clean_estimate, mix
from nas.training.batches import Batch, Batches
from nas.training.draws import Draws
from nas.training.loop import Row, warmed_rate

FLAT = 1e-3  # difference between answers to real and generated clips below which a discriminator says nothing


class Adversarial:
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

    def __init__(self, pipeline: TextToVideoPipeline, batches: Batches, config: AdversarialConfig, seed: int) -> None:
        self.pipeline, self.batches, self.config = pipeline, batches, config
        self.window = config.collapse_window
        unet = pipeline.unet.train()
        pipeline.text_encoder.requires_grad_(False)
        self.modules: dict[str, nn.Module] = {"unet": unet}
        self.averaged = frozenset({"unet"})
        decay = config.weight_decay
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "generator": torch.optim.AdamW(unet.parameters(), config.learning_rate, (0.0, 0.99), weight_decay=decay)
        }
        if config.adversarial_weight:
            self.encoder = Encoder(unet)
            width = int(pipeline.text_encoder.config.hidden_size)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                heads = Heads(self.encoder.channels, config.head_stages, config.heads, width, config.head_width)
            self.modules["heads"] = heads.to(unet.device)
            self.optimizers["heads"] = torch.optim.AdamW(
                heads.parameters(), config.head_rate, (0.0, 0.99), weight_decay=decay
            )

    def advance(self, step: int, draws: Draws, sane: Callable[[float], bool]) -> Row | None:
        """One step of the discriminator and one of the generator; see ``loop.Stage``."""
        config = self.config
        parts = [(1 - (config.image_share if config.images else 0.0), self.batches.videos(step))]
        if config.images:
            parts.append((config.image_share, self.batches.pictures(step)))
        device = parts[0][1].video.device
        rate = warmed_rate(config, step)
        sums: dict[str, float] = {}

        def count(name: str, share: float, value: Tensor) -> None:
            sums[name] = sums.get(name, 0.0) + share * float(value.detach())

        adversarial = bool(config.adversarial_weight)
        optimizer = self.optimizers["generator"]
        optimizer.zero_grad(set_to_none=True)
        generated = []
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            for share, batch in parts:
                with torch.no_grad():
                    context, pooled = self.pipeline.states(batch.captions)
                fake = self._generate(batch, context, draws)
                rebuilt = pseudo_huber(fake.float() - batch.video, config.huber).mean()
                count("loss", share, rebuilt)
                generated.append((share, batch, context, pooled, fake, rebuilt))
            world = self.batches.world
            if not sane(world.mean([sums["loss"]])[0]):
                return None
            if adversarial:
                for _ in range(config.head_steps):
                    if not self._teach(generated, draws, count, config.head_rate * min(1.0, rate * 10)):
                        return None
                if step < config.head_warmup:
                    told = dict(zip(sums, world.mean(list(sums.values())), strict=True))
                    return {**told, "loss_generator": 0.0, "learning_rate": 0.0, "grad_norm": 0.0}
                self.modules["heads"].requires_grad_(False)
            for share, _, context, pooled, fake, rebuilt in generated:
                loss = rebuilt
                if adversarial:
                    answers = self._answers(fake, context, pooled, draws)
                    fooled = -torch.stack([answer.float().mean() for answer in answers]).mean()
                    count("loss_generator", share, fooled)
                    loss = rebuilt + config.adversarial_weight * fooled
                (share * loss).backward()
            if adversarial:
                self.modules["heads"].requires_grad_(True)
        world.average_gradients(self.modules["unet"].parameters())
        norm = nn.utils.clip_grad_norm_(self.modules["unet"].parameters(), config.gradient_clip)
        if not torch.isfinite(norm):
            return None
        self._step("generator", config.learning_rate * rate)
        told = dict(zip(sums, world.mean(list(sums.values())), strict=True))
        return {**told, "learning_rate": config.learning_rate * rate, "grad_norm": float(norm)}

    def _teach(
        self, generated: list[Any], draws: Draws, count: Callable[[str, float, Tensor], None], rate: float
    ) -> bool:
        """One step of the heads; False, and none taken, if it went wrong."""
        self.optimizers["heads"].zero_grad(set_to_none=True)
        for share, batch, context, pooled, fake, _ in generated:
            loss = self._judge(batch, context, pooled, fake.detach(), draws, share / self.config.head_steps, count)
            (share * loss).backward()
        parameters = list(self.modules["heads"].parameters())
        self.batches.world.average_gradients(parameters)
        if not torch.isfinite(nn.utils.clip_grad_norm_(parameters, self.config.gradient_clip)):
            return False
        self._step("heads", rate)
        return True

    def _step(self, name: str, rate: float) -> None:
        for group in self.optimizers[name].param_groups:
            group["lr"] = rate
        self.optimizers[name].step()

    def _generate(self, batch: Batch, context: Tensor, draws: Draws) -> Tensor:
        """A clean clip from a noisy one at one of the fixed levels, one evaluation."""
        which = draws.choices(len(batch.captions), len(self.config.levels))
        level = torch.tensor(self.config.levels, device=which.device)[which]
        noisy = mix(batch.video, draws.normal(batch.video), level)
        return clean_estimate(noisy, self.pipeline.unet(noisy, 1000.0 * level, context).sample, level)

    def _renoised(self, video: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """What the discriminator sees: noise-to-signal ratio log-normal, so noise level logit-normal."""
        level = draws.levels(len(video), self.config.noise_mean, self.config.noise_std)
        return mix(video, draws.normal(video), level), level

    def _answers(self, video: Tensor, context: Tensor, pooled: Tensor, draws: Draws) -> list[Tensor]:
        noisy, level = self._renoised(video, draws)
        return self.modules["heads"](self.encoder(noisy, level, context), video.shape[2], pooled)

    def _judge(
        self,
        batch: Batch,
        context: Tensor,
        pooled: Tensor,
        fake: Tensor,
        draws: Draws,
        share: float,
        count: Callable[[str, float, Tensor], None],
    ) -> Tensor:
        """The discriminator's loss: hinge on both sides, and what holds its slope down at real clips."""
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
