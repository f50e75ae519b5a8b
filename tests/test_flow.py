"""Flow matching: straight lines between data and noise."""

from __future__ import annotations

import torch

from nas.tasks.noise import clean_estimate, mix, noise_levels, velocity


def test_the_true_velocity_leads_back_to_the_data_from_any_level() -> None:
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(5, 2, 3, 4, 4, generator=generator) for _ in range(2))
    level = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0])
    noisy = mix(clean, noise, level)
    assert torch.equal(noisy[0], clean[0]) and torch.equal(noisy[-1], noise[-1])
    assert torch.allclose(clean_estimate(noisy, velocity(clean, noise), level), clean, atol=1e-6)


def test_noise_levels_are_logit_normal() -> None:
    levels = noise_levels(20_000, 0.5, 1.2, torch.Generator().manual_seed(0))
    logits = torch.logit(levels)
    assert ((levels > 0) & (levels < 1)).all()
    assert abs(float(logits.mean()) - 0.5) < 0.03 and abs(float(logits.std()) - 1.2) < 0.03
