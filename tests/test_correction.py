"""A correction of sums: found where it is real, left out where it is not, and honest about its error."""

from __future__ import annotations

import numpy as np
import pytest

from latency_tables import TableError
from latency_tables.correction import Correction, fit_correction, interval_of, student_t


def networks(count: int, seed: int, noise: float, offset: float = 0.0, scale: float = 1.0, layer: float = 0.0):
    rng = np.random.default_rng(seed)
    sums, layers = rng.uniform(50, 150, count), rng.integers(1, 12, count)
    return sums, (offset + scale * sums + layer * layers) * (1 + noise * rng.standard_normal(count)), layers


def test_a_real_effect_is_found_and_its_error_is_that_of_new_networks() -> None:
    fit = fit_correction(*networks(30, 0, 0.005, offset=20, scale=1.02))
    assert fit.form == "scale + offset"
    sums, truth, layers = networks(2000, 1, 0.005, offset=20, scale=1.02)
    errors = np.abs((fit.offset_ms + fit.scale * sums + fit.per_layer_ms * layers) / truth - 1)
    assert errors.mean() == pytest.approx(fit.mape, rel=0.5)
    assert fit.bare_mape > 5 * fit.mape
    assert 0.8 <= np.mean(errors <= fit.interval) <= 0.99


def test_noise_alone_is_not_corrected() -> None:
    forms = [fit_correction(*networks(20, seed, 0.02)).form for seed in range(20)]
    assert forms.count("none") >= 15


def test_per_layer_overhead_is_told_from_a_scale() -> None:
    fit = fit_correction(*networks(40, 3, 0.002, layer=2.0))
    assert fit.form == "scale + per layer" and fit.per_layer_ms == pytest.approx(2.0, rel=0.1)


def test_the_interval_is_the_wider_of_ranks_and_student_s_t() -> None:
    ranked = [0.001] * 17 + [0.18, 0.19]
    assert interval_of(ranked) == pytest.approx(0.18)  # ceil(0.9 * 20) = 18th of 19
    even = [0.01] * 9
    assert interval_of(even) == pytest.approx(1.833 * 0.01 * np.sqrt(10 / 9), rel=1e-3)
    assert interval_of(even, free=3) == pytest.approx(1.943 * 0.01 * np.sqrt(12 / 9), rel=1e-3)


def test_student_s_t_is_the_tabulated_one() -> None:
    for freedom, value in {3: 2.353, 5: 2.015, 10: 1.812, 17: 1.740, 37: 1.687}.items():
        assert student_t(freedom) == pytest.approx(value, abs=0.002)


def test_a_header_keeps_it_and_damage_is_named() -> None:
    fit = fit_correction(*networks(12, 0, 0.01))
    back = Correction.from_mapping({"space": "small", **fit.to_mapping()})
    assert back.form == fit.form and back.interval == pytest.approx(fit.interval, abs=1e-6)
    with pytest.raises(TableError, match="correction.worst is 'many'"):
        Correction.from_mapping({**fit.to_mapping(), "worst": "many"})


def test_too_few_or_impossible_networks_are_refused() -> None:
    with pytest.raises(TableError, match="8 whole networks or more, got 3"):
        fit_correction([1, 2, 3], [1, 2, 3], [1, 1, 1])
    with pytest.raises(TableError, match="latencies over 0"):
        fit_correction([1.0] * 8, [1.0] * 7 + [0.0], [1] * 8)
