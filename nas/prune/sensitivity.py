"""How much a UNet misses what was cut from it: the difference of its answer on noisy images, before any training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from nas.tasks.noise import Diffusion
from search_spaces.families.contract import Narrowable, Pruning

Noisy = tuple[Tensor, Tensor, Tensor]  # (B, C, H, W) samples, (B,) timesteps, (B, L, D) texts


class Sensitivity:
    """Compares UNets with the uncut one on the same noisy images.

    Args:
        whole: the uncut UNet, in evaluation mode. batches: what both are shown. pruning: of their family.
    """

    def __init__(self, whole: Any, batches: Sequence[Noisy], pruning: Pruning) -> None:
        self.batches, self.pruning = tuple(batches), pruning
        with torch.no_grad():
            self._answers = [pruning.answer(whole, *batch) for batch in self.batches]
        self._size = sum(float(one.double().square().sum()) for one in self._answers)

    @torch.no_grad()
    def loss(self, unet: Any) -> float:
        """Squared difference of the answers, as a share of the uncut UNet's own squared answer: 0 misses nothing."""
        missed = 0.0
        for batch, wanted in zip(self.batches, self._answers, strict=True):
            missed += float((self.pruning.answer(unet, *batch) - wanted).double().square().sum())
        return missed / self._size

    def widths(
        self, unet: Any, narrowable: Sequence[Narrowable], generator: torch.Generator, draws: int = 4
    ) -> dict[str, Tensor]:
        """Module -> by how much the loss grows, to second order, without each of its heads or inner channels.

        The answer changes by J, its derivative by a mask on the head or channel, so the loss by ``J'J``, of which
        ``(v'J)**2`` with random signs v is an unbiased estimate (Hutchinson 1990): one backward pass gives all of them.
        """
        with ExitStack() as hooks:
            masks: dict[str, Tensor] = {}
            for one in narrowable:
                masks[one.name] = torch.ones(one.width, device=unet.device, requires_grad=True)
                hooks.callback(one.last.register_forward_pre_hook(_masking(masks[one.name], one.each)).remove)
            found = {name: torch.zeros(len(mask)) for name, mask in masks.items()}
            for batch in self.batches:
                out = self.pruning.answer(unet, *batch)
                for turn in range(draws):
                    signs = torch.randint(0, 2, out.shape, generator=generator).to(out) * 2 - 1
                    slopes = torch.autograd.grad(
                        (out * signs).sum(), list(masks.values()), retain_graph=turn < draws - 1
                    )
                    for name, slope in zip(masks, slopes, strict=True):
                        found[name] += slope.cpu().square() / draws
        return {name: score / self._size for name, score in found.items()}


def _masking(mask: Tensor, each: int) -> Callable[[Any, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    def hook(module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0] * mask.repeat_interleave(each), *inputs[1:])

    return hook


def noisy_batches(
    images: Callable[[int], tuple[Tensor, Tensor]], count: int, diffusion: Diffusion, generator: torch.Generator
) -> Iterator[Noisy]:
    """``count`` batches of noisy images, their noise levels spread as in training.

    Args:
        images: turn -> (B, C, H, W) clean images or latents and (B, L, D) texts.
    """
    for turn in range(count):
        clean, text = images(turn)
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        level = diffusion.levels(len(clean), 0.0, 1.0, generator).to(clean.device)
        yield diffusion.noised(clean, noise, level), diffusion.timestep(level), text
