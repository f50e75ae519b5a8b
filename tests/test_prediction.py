"""Noise and v-prediction beside velocities: one straight line, three ways to learn it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor
from training_fixtures import clips, losses, run, short, tiny

from nas.supernet.supernet import Supernet
from nas.supernet.trained import load_supernet
from nas.tasks.noise import Diffusion, mix, velocity

KINDS: tuple[Any, ...] = ("epsilon", "v")


def drawn() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(5, 3, 2, 4, 4, generator=generator) for _ in range(2))
    return clean, noise, torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])


@pytest.mark.parametrize("kind", KINDS)
def test_samples_targets_and_timesteps_are_those_of_stable_diffusion(kind: Any) -> None:
    prediction = {"epsilon": "epsilon", "v": "v_prediction"}[kind]
    scheduler = DDPMScheduler(1000, 0.00085, 0.012, "scaled_linear", prediction_type=prediction)
    clean, noise, _ = drawn()
    steps = torch.tensor([0, 10, 400, 800, 999])
    kept = scheduler.alphas_cumprod[steps]
    level = (1 - kept).sqrt() / (kept.sqrt() + (1 - kept).sqrt())
    diffusion = Diffusion(kind)
    assert torch.allclose(diffusion.timestep(level), steps.float(), atol=0.02)
    assert torch.allclose(diffusion.noised(clean, noise, level), scheduler.add_noise(clean, noise, steps), atol=1e-4)
    wanted = noise if kind == "epsilon" else scheduler.get_velocity(clean, noise, steps)
    assert torch.allclose(diffusion.target(clean, noise, level), wanted, atol=1e-4)


@pytest.mark.parametrize("kind", ["velocity", *KINDS])
def test_a_perfect_answer_of_any_kind_is_the_same_velocity(kind: Any) -> None:
    clean, noise, level = drawn()
    diffusion = Diffusion(kind)

    def perfect(sample: Tensor, told: Tensor) -> Tensor:
        assert torch.allclose(sample, diffusion.noised(clean, noise, level), atol=1e-5)
        assert torch.allclose(told, diffusion.timestep(level))
        return diffusion.target(clean, noise, level)

    found = diffusion.as_velocity(mix(clean, noise, level), level, perfect)
    assert torch.allclose(found, velocity(clean, noise), atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_ends_of_the_line_are_finite(kind: Any) -> None:
    clean, noise, _ = drawn()
    level = torch.tensor([0.0, 1e-6, 0.5, 0.999, 1.0])
    found = Diffusion(kind).as_velocity(mix(clean, noise, level), level, lambda x, t: x)
    assert bool(torch.isfinite(found).all())


@pytest.mark.parametrize("kind", KINDS)
def test_levels_are_those_of_evenly_drawn_timesteps(kind: Any) -> None:
    diffusion = Diffusion(kind)
    steps = diffusion.timestep(diffusion.levels(4000, 0.0, 1.0, torch.Generator().manual_seed(0)))
    assert 0 <= float(steps.min()) < 3 and 996 < float(steps.max()) <= 999
    counts = torch.histc(steps, 4, 0, 1000)
    assert (counts - 1000).abs().max() < 150


@pytest.mark.parametrize("kind", KINDS)
def test_training_learns_it_and_what_is_loaded_gives_a_velocity(kind: Any, tmp_path: Path) -> None:
    run(tmp_path, short(steps=30, warmup_steps=20, clips=4, checkpoint_every=30, prediction=kind))
    values = [loss for _, loss, _ in losses(tmp_path)]
    assert sum(values[-6:]) < 0.9 * sum(values[:6])
    supernet, text, _ = load_supernet(tiny(), tmp_path)
    assert supernet.prediction == kind
    clip = torch.stack([clips()[0]["video"]])
    noise = torch.randn(clip.shape, generator=torch.Generator().manual_seed(1))
    level = torch.tensor([0.5])
    with torch.no_grad():
        context = text([clips()[0]["caption"]])
        out = supernet(mix(clip, noise, level)[0], 1000 * level, context, 8, tiny().empty())
    error = float((out - velocity(clip, noise)[0]).square().mean())
    assert error < 0.8 * float(velocity(clip, noise).square().mean())


def test_a_velocity_is_the_networks_own_answer() -> None:
    torch.manual_seed(0)
    supernet = Supernet(tiny()).eval()
    x, told, context = torch.randn(8, 3, 16, 16), torch.tensor([400.0]), torch.randn(1, 16, 32)
    path = tiny().empty()
    with torch.no_grad():
        inputs = {"x": x, "timestep": told, "context": context, "frames": 8}
        assert torch.equal(supernet(x, told, context, 8, path), supernet.predict(inputs, path))
