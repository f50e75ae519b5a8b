"""The score: the same clips, noise and noise levels for everybody, with motion in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from search_problems import tiny_problem
from training_fixtures import clips, tiny

from latency_tables.budget import Budget
from nas.config import QualityConfig
from nas.errors import NasError
from nas.pretrained.text import TextEncoder
from nas.search.studies import open_study
from nas.search.study import search
from nas.supernet.quality import Quality
from nas.supernet.supernet import Supernet
from search_spaces.arrangement import Arrangement

CONFIG = QualityConfig(clips=6, batch=3)


@pytest.fixture(scope="module")
def parts() -> tuple[Supernet, TextEncoder]:
    torch.manual_seed(0)
    supernet = Supernet(tiny())
    with torch.no_grad():
        for parameter in supernet.layers.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return supernet, TextEncoder.small(tiny(), clips().captions)


def quality(parts: tuple[Supernet, TextEncoder], **changes: object) -> Quality:
    return Quality(*parts, clips("validation"), CONFIG.model_copy(update=changes))


def test_the_score_is_the_same_every_time_and_in_any_batches(parts: tuple[Supernet, TextEncoder]) -> None:
    arrangement = tiny().sample(np.random.default_rng(0))
    first = quality(parts).score(arrangement)
    assert np.array_equal(first.samples, quality(parts).score(arrangement).samples)
    other = quality(parts, batch=4).score(arrangement)
    assert first.loss != 0 and len(first.samples) == 6
    assert other.samples == pytest.approx(first.samples, rel=1e-4)


def test_paired_differences_are_far_tighter_than_the_scores_themselves(parts: tuple[Supernet, TextEncoder]) -> None:
    rng = np.random.default_rng(0)
    score = quality(parts, clips=8)
    a, b = tiny().sample(rng), tiny().sample(rng)
    assert score.paired_difference(a, a) == (0.0, 0.0)
    mean, stderr = score.paired_difference(a, b)
    assert mean == pytest.approx(score.score(a).loss - score.score(b).loss)
    assert 0 < stderr < 0.5 * score.score(a).stderr


def test_the_parts_weigh_as_configured(parts: tuple[Supernet, TextEncoder]) -> None:
    arrangement = tiny().sample(np.random.default_rng(0))
    plain = quality(parts, weights={"velocity": 1.0}).score(arrangement)
    motion = quality(parts, weights={"velocity": 0.0, "motion": 1.0}).score(arrangement)
    assert plain.loss == pytest.approx(plain.parts["velocity"])
    assert motion.loss == pytest.approx(motion.parts["motion"])
    assert plain.parts["velocity"] == pytest.approx(motion.parts["velocity"])


def test_a_part_that_the_task_has_not_is_refused_with_the_nearest(parts: tuple[Supernet, TextEncoder]) -> None:
    with pytest.raises(NasError, match="quality.weights: unknown part of denoise 'motoin'. Did you mean 'motion'?"):
        quality(parts, weights={"motoin": 1.0})
    with pytest.raises(NasError, match="all are 0"):
        quality(parts, weights={"motion": 0.0})


def test_the_one_weight_of_earlier_versions_is_read() -> None:
    """Runs of 0.1 hold it; as it was by default it is today's default."""
    assert QualityConfig.model_validate({"motion_weight": 0.5}).weights == {}
    assert QualityConfig.model_validate({"motion_weight": 0.25}).weights == {"velocity": 0.75, "motion": 0.25}
    with pytest.raises(ValueError, match="motion_weight"):
        QualityConfig.model_validate({"motion_weight": 2.0})


def test_errors_that_are_independent_between_frames_count_alike_in_both_terms(
    parts: tuple[Supernet, TextEncoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And an error that all frames share, such as a wrong colour, is no motion error at all."""
    score = quality(parts, clips=8)
    noise = torch.Generator().manual_seed(0)
    targets = iter([batch.truth["target"] for batch in score._batches] * 2)
    shared = False

    def wrong(*arguments: object) -> torch.Tensor:
        target = next(targets)
        shape = (target.shape[0], 1, *target.shape[2:]) if shared else target.shape
        return (target + torch.randn(shape, generator=noise)).flatten(0, 1)

    monkeypatch.setattr(score.supernet, "predict", wrong)
    independent = score.score(tiny().empty())
    assert independent.parts["velocity"] == pytest.approx(1.0, rel=0.05)
    assert independent.parts["motion"] == pytest.approx(1.0, rel=0.05)
    shared = True
    common = score.score(tiny().sample(np.random.default_rng(0)))
    assert common.parts["velocity"] == pytest.approx(1.0, rel=0.1)
    assert common.parts["motion"] == pytest.approx(0.0, abs=1e-9)


def test_repeats_of_a_clip_are_no_clips_of_their_own(parts: tuple[Supernet, TextEncoder]) -> None:
    """They lower the error of the noise, not that of the clips: the standard error counts clips."""
    score = quality(parts, repeats=3)
    a, b = tiny().empty(), tiny().sample(np.random.default_rng(0))
    samples = score.score(a).samples
    assert samples.shape == (6,)
    assert score.score(a).stderr == pytest.approx(samples.std(ddof=1) / 6**0.5)
    assert score.paired_difference(a, b)[0] == pytest.approx(score.score(a).loss - score.score(b).loss)


def test_each_sample_belongs_to_one_clip(parts: tuple[Supernet, TextEncoder], monkeypatch: pytest.MonkeyPatch) -> None:
    score = quality(parts, repeats=2, batch=5)
    means = [clips("validation")[i]["video"].square().mean() for i in range(6)]
    turn = iter(range(12))

    def wrong(*arguments: object) -> torch.Tensor:
        target = next(targets)
        size = torch.stack([means[next(turn) % 6] for _ in target]).reshape(-1, 1, 1, 1, 1)
        return (target + size).flatten(0, 1)  # an error that depends on the clip alone

    targets = iter([batch.truth["target"] for batch in score._batches])
    monkeypatch.setattr(score.supernet, "predict", wrong)
    plain = 2 * score.score(tiny().empty()).samples  # half the weight is motion, which this error has not
    assert plain == pytest.approx([float(mean) ** 2 for mean in means], rel=1e-4)


def test_one_clip_is_refused_for_it_has_no_standard_error(parts: tuple[Supernet, TextEncoder]) -> None:
    class One:
        skipped, captions = (), ("a red circle",)

        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> object:
            return clips("validation")[index]

    with pytest.raises(NasError, match="data.validation_clips"):
        Quality(*parts, One(), CONFIG)  # type: ignore[arg-type]


def test_instalments_add_up_to_the_score(parts: tuple[Supernet, TextEncoder]) -> None:
    arrangement = tiny().sample(np.random.default_rng(1))
    part, whole = quality(parts, batch=2, repeats=2), quality(parts, batch=2, repeats=2)
    assert part.rungs == (2, 3, 6)
    part.prepare([arrangement], 2)
    first = part.samples(arrangement)
    assert len(first) == 4 and len(whole.samples(arrangement)) == 0
    assert part.score(arrangement) is part.score(arrangement)
    assert np.array_equal(part.score(arrangement).samples, whole.score(arrangement).samples)
    assert np.array_equal(part.samples(arrangement)[:4], first) and len(part.samples(arrangement)) == 12


def test_arrangements_scored_together_get_the_scores_they_get_alone(parts: tuple[Supernet, TextEncoder]) -> None:
    rng = np.random.default_rng(2)
    several = [tiny().sample(rng) for _ in range(3)] + [tiny().empty()]
    together, alone = quality(parts), quality(parts)
    together.prepare([*several, several[0]])
    for arrangement in several:
        assert together.score(arrangement).samples == pytest.approx(alone.score(arrangement).samples, rel=1e-4)


def test_what_does_not_fit_into_memory_together_is_scored_in_smaller_groups(
    parts: tuple[Supernet, TextEncoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(3)
    several = [tiny().sample(rng) for _ in range(5)]
    score = quality(parts)
    errors, sizes = score._errors, []

    def small(arrangements: list[Arrangement], *batch: torch.Tensor) -> object:
        sizes.append(len(arrangements))
        if len(arrangements) > 2:
            raise torch.cuda.OutOfMemoryError("full")
        return errors(arrangements, *batch)

    monkeypatch.setattr(score, "_errors", small)
    score.prepare(several)
    assert sizes == [5, 2, 2, 1, 2, 2, 1], "what was found out is kept"
    assert all(len(score.samples(one)) == 6 for one in several)


def test_a_search_stops_the_same_arrangements_however_many_noise_levels_a_clip_has(
    parts: tuple[Supernet, TextEncoder], tmp_path: Path
) -> None:
    """Losses are compared one by one: those of a part against the same ones of a rival, not against its averages."""
    problem = tiny_problem(Budget(latency_ms=150.0))
    score = quality(parts, clips=6, batch=3, repeats=4)
    found = search(
        problem,
        score.score,
        tmp_path / "j",
        identity={},
        trials=8,
        sampler="random",
        seed=0,
        gradual=score,
        halving=True,
    )
    study = open_study(tmp_path / "j", {}, problem)
    kept = [t.user_attrs["score"]["samples"] for t in study.get_trials() if "samples" in t.user_attrs.get("score", {})]
    assert kept and all(len(samples) == 24 for samples in kept)
    for one in found:
        whole = quality(parts, clips=6, batch=3, repeats=4).score(one.arrangement)
        near = 6 * one.loss_stderr if one.pruned else 1e-5
        assert one.loss == pytest.approx(whole.loss, abs=near)
