"""What a training can be told beside its schedule: memory, precision, speed, and what is seen of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_fixtures import clips, losses, run, short, tiny

from nas.data import Dataset
from nas.data.clip import Buckets, Images, images_of
from nas.errors import NasError
from nas.supernet.stage import SupernetStage, begin
from nas.supernet.supernet import Supernet
from nas.training.checkpoint import list_checkpoints
from nas.training.engine import compile_parts
from nas.training.loader import Loader
from nas.training.log import Step, read_best
from nas.training.loop import Loop
from nas.training.optimizers import unpack_state


def trainer(folder: Path, **settings: Any) -> Loop[SupernetStage]:
    return begin(tiny(), clips(), short(warmup_steps=0, **settings), folder, 5, lambda message: None)


def test_recomputed_activations_change_no_loss_and_keep_less(tmp_path: Path) -> None:
    run(tmp_path / "plain", short(steps=4))
    run(tmp_path / "again", short(steps=4, activation_checkpoints=True))
    assert losses(tmp_path / "again") == losses(tmp_path / "plain")
    kept = {}
    for name, again in (("plain", False), ("again", True)):
        made = trainer(tmp_path / f"{name}2", activation_checkpoints=again)
        saved: dict[int, int] = {}

        def keep(tensor: torch.Tensor, saved: dict[int, int] = saved) -> torch.Tensor:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            made.stage._pass([tiny().sample(np.random.default_rng(0))], 0, 0.0)
        kept[name] = sum(saved.values())
        assert kept[name]
    assert kept["again"] < 0.5 * kept["plain"]


def test_half_precision_scales_its_loss_and_goes_on_exactly(tmp_path: Path) -> None:
    config = short(precision="fp16", steps=3, warmup_steps=1, images=0, clips=1)
    run(tmp_path / "whole", config)

    class Stop(Exception):
        pass

    def stop(done: Step) -> None:
        if done.step == 3:
            raise Stop

    with pytest.raises(Stop):
        run(tmp_path / "stopped", config, progress=stop)
    run(tmp_path / "stopped", config)
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")


def test_an_overflow_of_half_precision_is_no_step_and_lowers_the_scale(tmp_path: Path) -> None:
    made = trainer(tmp_path, precision="fp16")
    made.resume()
    made.stage.engine.scaler._init_scale = 2.0**60
    before = made.stage.supernet.unet.conv_in.weight.detach().clone()  # type: ignore[union-attr]
    done = made.advance()
    assert done is not None and torch.equal(made.stage.supernet.unet.conv_in.weight, before)  # type: ignore[union-attr, arg-type]
    assert made.stage.engine.scaler.get_scale() == 2.0**59 and made.step == 1


def test_half_precision_passes_a_step_without_any_gradient(tmp_path: Path) -> None:
    """An empty path over a frozen backbone; a scaler refuses to step then."""
    nothing = [tiny().empty()]
    config = short(warmup_steps=0, precision="fp16", images=0, clips=1, spatial_rate=0.0)
    made = begin(tiny(), clips(), config, tmp_path, 5, lambda message: None, draw=lambda step: nothing)
    made.resume()
    done = made.advance()
    assert done is not None and done["grad_norm"] == 0.0 and made.step == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_blocks_walk_any_path_and_answer_the_same() -> None:
    """Traced as for any back-end, without its minutes of code generation."""
    torch.manual_seed(0)
    plain, compiled = Supernet(tiny()), Supernet(tiny())
    compiled.load_state_dict(plain.state_dict())
    compile_parts(compiled.blocks(), "eager")
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    told, context = torch.full((1,), 500.0), torch.randn(1, 16, 32)
    for path in (tiny().empty(), tiny().sample(np.random.default_rng(1))):
        for frames in (8, 1):
            x = torch.randn(frames, 3, 16, 16)
            found = [model(x, told, context, frames, path) for model in (plain, compiled)]
            assert torch.allclose(*found, atol=1e-5)
            for out in found:
                out.square().mean().backward()
    assert torch.allclose(plain.unet.conv_in.weight.grad, compiled.unet.conv_in.weight.grad, atol=1e-4)  # type: ignore[union-attr, arg-type]


def test_an_optimiser_that_is_not_installed_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    with pytest.raises(NasError, match="pip install torchao") as caught:
        trainer(tmp_path, optimizer="adamw8bit")
    assert "\n" not in str(caught.value)


def test_the_step_of_a_fused_optimiser_comes_back_beside_its_parameter() -> None:
    """Where torch's own ``load_state_dict`` puts it; meta stands in for CUDA."""
    weight = torch.nn.Parameter(torch.empty(3, device="meta"))
    packed = {"w/step": torch.tensor(5.0), "w/exp_avg": torch.zeros(3), "w/exp_avg_sq": torch.zeros(3)}
    for fused, device in ((True, "meta"), (False, "cpu")):
        optimizer = torch.optim.AdamW([weight])
        optimizer.param_groups[0]["fused"] = fused
        unpack_state(optimizer, packed, {"w": weight})
        assert optimizer.state[weight]["step"].device.type == device


def test_reading_ahead_changes_nothing(tmp_path: Path) -> None:
    config = {"steps": 4, "accumulate": 2}
    run(tmp_path / "none", short(**config))
    run(tmp_path / "three", short(**config, workers=3))
    assert losses(tmp_path / "three") == losses(tmp_path / "none")


def test_a_loader_goes_back_when_training_does() -> None:
    loaders = [Loader(clips(), 2, lambda count: range(count), workers) for workers in (0, 2)]
    for turn in (0, 1, 2, 1, 2, 7, 0):
        one, other = (loader(turn) for loader in loaders)
        assert torch.equal(one.video, other.video) and one.captions == other.captions
    assert all(loader.frames_per_s > 0 for loader in loaders)
    loaders[1].close()


class Fixed:
    """Clips of one shape, whose level is their number."""

    skipped, captions = (), ("a",)

    def __init__(self, width: int) -> None:
        self.width = width

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> Any:
        return {"video": torch.full((2, 3, 4, self.width), float(index)), "caption": "a"}


def test_a_batch_comes_from_one_bucket_drawn_by_its_weight() -> None:
    parts: list[Dataset] = [Fixed(4), Fixed(8)]
    buckets = Buckets(parts, [1.0, 3.0])
    loader = Loader(buckets, 3, lambda count: range(count))
    widths = [loader(turn).video.shape[-1] for turn in range(200)]
    assert 0.65 < widths.count(8) / 200 < 0.85
    assert [loader(turn).video.shape[-1] for turn in range(50)] == widths[:50]
    stills = Loader(images_of(buckets, 0), 3, lambda count: range(count))
    assert stills(0).video.shape[:2] == (3, 1)
    assert isinstance(images_of(parts[0], 0), Images) and len(buckets) == 200


def test_the_best_validated_checkpoint_is_marked_and_outlives_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.9, 0.4, 0.6, 0.7, 0.8, 0.95])
    monkeypatch.setattr(SupernetStage, "validate", lambda self: next(scores))
    config = short(steps=6, validate_every=1, checkpoint_every=1, keep=1)
    run(tmp_path, config, validation=clips("validation"))
    assert read_best(tmp_path) == {"step": 2, "loss": 0.4}
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000002", "step-00000006"]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["validation"] for row in rows] == [0.9, 0.4, 0.6, 0.7, 0.8, 0.95]


def test_validation_scores_the_average_and_leaves_the_training_as_it_was(tmp_path: Path) -> None:
    run(tmp_path / "plain", short(steps=4))
    run(tmp_path / "watched", short(steps=4, validate_every=2, sample_every=2), validation=clips("validation"))
    assert losses(tmp_path / "plain") == losses(tmp_path / "watched")
    rows = [json.loads(line) for line in (tmp_path / "watched" / "metrics.jsonl").read_text().splitlines()]
    assert [row["validation"] is not None for row in rows] == [False, True, False, True]
    assert read_best(tmp_path / "watched") is not None


def test_a_row_says_how_fast_it_was_and_what_it_took(tmp_path: Path) -> None:
    run(tmp_path, short(steps=2))
    row = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["frames_per_s"] * row["seconds"] == pytest.approx(2 * 8 + 2, rel=1e-3)
    assert row["loader_frames_per_s"] > 0 and row["memory_mb"] > 50 and 0 <= row["waited"] < row["seconds"]


def test_curves_and_strips_go_to_tensorboard(tmp_path: Path) -> None:
    config = short(steps=4, trackers=("tensorboard",), sample_every=2, validate_every=2)
    run(tmp_path, config, validation=clips("validation"))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx([loss for _, loss, _ in losses(tmp_path)])
    assert [event.step for event in events.Scalars("validation")] == [2, 4]
    assert [event.step for event in events.Images("samples")] == [2, 4]
    strips = sorted(path.name for path in (tmp_path / "strips").glob("*.png"))
    assert strips == ["step-00000002.png", "step-00000004.png"]


def test_a_tracker_that_is_not_installed_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerate.utils.is_wandb_available", lambda: False)
    with pytest.raises(NasError, match="pip install wandb"):
        run(tmp_path, short(trackers=("wandb",)))
