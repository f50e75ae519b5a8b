"""Stage preference: towards the clips that people or rewards prefer, against the model as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from nas.errors import NasError
from nas.preferences.clips import PreferenceClips
from nas.preferences.folder import PreferenceSet
from nas.recipes.adapters import Adapters
from nas.recipes.contract import Materials, Opening, Recipe
from nas.tasks.noise import mix, velocity
from nas.training.config import StageConfig
from nas.training.draws import Draws
from nas.training.single import OneOptimizer

KINDS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class PreferenceConfig(StageConfig):
    """Direct preference optimisation of a denoiser.

    Attributes:
        data: the set that `nas prefer` made. rewards: whose win rates count; all that judged it, if empty.
        clips: here, groups of clips a micro-batch; every member of a group gets the same noise and noise level.
        loss: `pairwise`, the best against the worst of a group (Diffusion-DPO, arXiv 2311.12908); `ranked`, all of
            them by how much their order matters (RankDPO, arXiv 2410.18013); `dense`, guided pairs segment by segment
            (DenseDPO, arXiv 2506.03517).
        beta: how sharply preferences are followed. It belongs to `reduction`: squared errors are averaged over
            channels, rows, columns and (dense: labelled) frames with `mean`; with `sum` they are added up, and the same
            strength is a beta smaller by the number of those values. 500 is DenseDPO's, of a mean.
        lora_rank: of LoRA matrices beside all linear layers, merged when the model is kept; 0 trains all weights.
        reference_precision, reference_device: how the frozen copy of the model is held where all weights train; the
            stage's own device, if empty. With LoRA there is no copy.
        timestep_mean, timestep_std: of the logit-normal noise level.
    """

    data: Path | None = None
    rewards: tuple[str, ...] = ()
    loss: Literal["pairwise", "ranked", "dense"] = "pairwise"
    beta: float = Field(500.0, gt=0.0)
    reduction: Literal["mean", "sum"] = "mean"
    lora_rank: int = Field(0, ge=0, le=4096)
    reference_precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    reference_device: str = ""
    timestep_mean: float = 0.0
    timestep_std: float = Field(1.0, gt=0.0)
    learning_rate: float = Field(1e-5, gt=0.0)
    ramp_steps: int = Field(250, ge=0)
    gradient_clip: float = Field(1.0, gt=0.0)
    clips: int = Field(4, ge=1)


class Preference(OneOptimizer):
    """One step of preference optimisation.

    The implicit reward of a clip is how much better than the frozen reference the network denoises it:
    s = |v - v_network|^2 - |v - v_reference|^2, lower is better, with one noise and noise level for a whole group.

    Args:
        given: the pipeline's network is trained in place; ``batches`` are ``PreferenceClips``.

    Raises:
        NasError: if LoRA is asked for together with sharding.
    """

    key = "preference"
    window = 1
    config: PreferenceConfig

    def __init__(self, given: Materials, config: PreferenceConfig) -> None:
        self.pipeline, self.batches, self.config, self.engine = given.pipeline, given.batches, config, given.engine
        self.loaders = self.batches.loaders
        if config.validate_every:
            raise NasError("preference.validate_every: a preference set has no split kept apart; leave it 0")
        given.pipeline.text_encoder.requires_grad_(False)
        unet = given.pipeline.unet.train()
        self.adapters: Adapters | None = None
        self.reference: Any = None
        if config.lora_rank:
            if config.shard:
                raise NasError(
                    "preference.lora_rank trains few weights, which preference.shard cannot split; leave one out"
                )
            unet.requires_grad_(False)
            self.adapters = Adapters(unet, config.lora_rank, given.seed).to(given.engine.device)
            unet.to(given.engine.device)
            self.modules: dict[str, nn.Module] = {"lora": self.adapters}
        else:
            self.modules = {"unet": unet}
            self.reference = copy.deepcopy(unet).eval().requires_grad_(False)
            where = torch.device(config.reference_device or given.engine.device)
            nn.Module.to(self.reference, where, KINDS[config.reference_precision])  # diffusers' own warns of nothing
        self.averaged = frozenset(self.modules)
        self.engine.prepare(unet, unet.blocks())
        trained = [p for module in self.modules.values() for p in module.parameters()]
        self.optimizer = torch.optim.AdamW(trained, config.learning_rate, weight_decay=config.weight_decay)
        self.optimizers = {"generator": self.optimizer}

    def learn(self, turn: int, draws: Draws) -> dict[str, float]:
        """How a batch of clips is ranked beside the reference; see ``OneOptimizer``."""
        config, batch = self.config, self.batches.groups(turn)
        clips, preferred = chosen(batch.video, batch.extras["preference"], config.loss)
        with self.engine.autocast():
            scores = self._scores(clips, batch.captions, draws)
        loss, right, margin = LOSSES[config.loss](scores, preferred, config.beta, config.reduction)
        self.engine.back(loss)
        told = {"loss": loss, "accuracy": right, "margin": margin}
        return {name: float(value.detach()) for name, value in told.items()}

    def _scores(self, clips: Tensor, captions: list[str], draws: Draws) -> Tensor:
        """s of clips (B, k, C, T, H, W): (B, k, T, N), the N values of each frame not yet reduced to one."""
        groups, members = clips.shape[:2]
        noise = draws.normal(clips[:, 0])[:, None].expand_as(clips).flatten(0, 1)
        level = draws.levels(groups, self.config.timestep_mean, self.config.timestep_std)
        level = level.repeat_interleave(members)
        flat = clips.flatten(0, 1)
        with torch.no_grad():
            context = self.pipeline.encode(captions).repeat_interleave(members, dim=0)
        noisy, wanted = mix(flat, noise, level), velocity(flat, noise)
        with torch.no_grad():
            before = self._reference(noisy, level, context)
        answer = self.pipeline.unet(noisy, 1000.0 * level, context).sample.float()
        scores = (wanted - answer).square() - (wanted - before).square()
        return scores.transpose(1, 2).flatten(2).unflatten(0, (groups, members))

    def _reference(self, noisy: Tensor, level: Tensor, context: Tensor) -> Tensor:
        """What the model as it was answers."""
        if self.reference is None:
            assert self.adapters is not None
            with self.adapters.without():
                return self.pipeline.unet(noisy, 1000.0 * level, context).sample.float()
        held = next(self.reference.parameters())
        told = (tensor.to(held.device, held.dtype) for tensor in (noisy, context))
        moved, text = told
        plain = torch.autocast(held.device.type, enabled=False) if held.dtype != torch.float32 else nullcontext()
        with plain:
            found = self.reference(moved, (1000.0 * level).to(held.device), text).sample
        return found.to(noisy.device).float()


def chosen(clips: Tensor, preference: Tensor, loss: str) -> tuple[Tensor, Tensor]:
    """The members of each group that a loss compares: the best and the worst for pairs, else all.

    Args:
        clips: (B, k, ...). preference: (B, k, T) win rates.
    """
    if loss != "pairwise":
        return clips, preference
    means = preference.mean(2)
    both = torch.stack([means.argmax(1), means.argmin(1)], dim=1)
    rows = torch.arange(len(clips), device=clips.device)[:, None]
    return clips[rows, both], preference[rows, both]


Compared = tuple[Tensor, Tensor, Tensor]  # loss, share of pairs that are in the right order, mean margin of them


def pairwise(scores: Tensor, preference: Tensor, beta: float, reduction: str) -> Compared:
    """-log sigmoid(-beta (s_best - s_worst)), averaged over groups; (B, 2, T, N) with the best first."""
    reduced = _reduced(scores, reduction)
    gap = -beta * (reduced[:, 0] - reduced[:, 1])
    return -nn.functional.logsigmoid(gap).mean(), (gap > 0).float().mean(), gap.mean()


def ranked(scores: Tensor, preference: Tensor, beta: float, reduction: str) -> Compared:
    """-sum over pairs, i better than j, of weight_ij log sigmoid(-beta (s_i - s_j)), averaged over groups.

    The weight is |G_i - G_j| |1 / D_i - 1 / D_j| with gains G = 2^phi - 1 of win rates phi and discounts
    D = log(1 + rank), rank 1 for the highest win rate; clips of equal win rate are not compared.

    Source: RankDPO (arXiv 2410.18013, section 3.2).
    """
    phi, reduced = preference.mean(2), _reduced(scores, reduction)
    weight, better = pair_weights(phi)
    gap = -beta * (reduced[:, :, None] - reduced[:, None, :])
    loss = -(weight * better * nn.functional.logsigmoid(gap)).sum((1, 2)).mean()
    pairs = better.sum((1, 2)).clamp(min=1)
    right, margin = ((better * value).sum((1, 2)) / pairs for value in ((gap > 0).float(), gap))
    return loss, right.mean(), margin.mean()  # over groups, so that processes with other groups agree


def pair_weights(phi: Tensor) -> tuple[Tensor, Tensor]:
    """RankDPO's weights (B, k, k) of win rates (B, k), and where i is better than j as ones."""
    gain = torch.exp2(phi) - 1
    rank = 1 + (phi[:, None, :] > phi[:, :, None]).sum(2)  # of equals the same
    order = phi.argsort(dim=1, descending=True, stable=True).argsort(dim=1) + 1
    discount = torch.log(1 + torch.where(rank == order, rank, order).float())
    weight = (gain[:, :, None] - gain[:, None]).abs() * (1 / discount[:, :, None] - 1 / discount[:, None]).abs()
    return weight, (phi[:, :, None] > phi[:, None]).float()


def dense(scores: Tensor, preference: Tensor, beta: float, reduction: str) -> Compared:
    """-log sigmoid(-beta l (s_0 - s_1)), l = 1 where the first clip is preferred, -1 where the second is.

    Frames of segments without a winner are left out; ``mean`` averages over the frames that are left, ``sum`` adds
    them up. A pair without any such frame adds nothing.

    Source: DenseDPO (arXiv 2506.03517, equation 6 and appendix A).
    """
    label = torch.sign(preference[:, 0] - preference[:, 1])  # (B, T)
    by_frame = scores.mean(3) if reduction == "mean" else scores.sum(3)
    signed = (label * (by_frame[:, 0] - by_frame[:, 1])).sum(1)
    frames = (label != 0).sum(1)
    gap = -beta * (signed / frames.clamp(min=1) if reduction == "mean" else signed)
    said = (frames > 0).float()
    return -(said * nn.functional.logsigmoid(gap)).mean(), (said * (gap > 0)).mean(), (said * gap).mean()


LOSSES: dict[str, Callable[[Tensor, Tensor, float, str], Compared]] = {
    "pairwise": pairwise,
    "ranked": ranked,
    "dense": dense,
}


def _reduced(scores: Tensor, reduction: str) -> Tensor:
    """(B, k, T, N) to (B, k)."""
    return scores.flatten(2).mean(2) if reduction == "mean" else scores.flatten(2).sum(2)


def _source(opening: Opening, config: PreferenceConfig) -> PreferenceClips:
    if config.data is None:
        raise NasError(
            "preference.data is missing; make a set with nas prefer MODEL --out DATA and --set preference.data=DATA"
        )
    kept, dense_one = PreferenceSet(config.data), config.loss == "dense"
    return PreferenceClips(opening.pipeline, kept, config, config.rewards, opening.seed, opening.world, dense_one)


def _finish(stage: Any, pipeline: Any) -> Any:
    if stage.adapters is not None:
        stage.adapters.merge()
    return pipeline


RECIPE = Recipe(
    name="preference",
    summary="towards preferred clips",
    config=PreferenceConfig,
    stage=Preference,
    source=_source,
    finish=_finish,
    improves="accuracy",
    raises=True,
)
