"""The passes of a step: path by path they make the gradient of one joint pass, and what learns nothing is left out."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from training_fixtures import clips, losses, run, short, tiny

from nas.supernet.passes import IMAGES, VIDEOS
from nas.supernet.paths import PATHS
from nas.supernet.stage import SupernetStage, begin
from nas.tasks.contract import Question
from nas.training.distributed import World
from nas.training.loader import Batch
from nas.training.loop import Loop
from search_spaces.arrangement import Arrangement


def trainer(folder: Path, **settings: Any) -> Loop[SupernetStage]:
    """One that draws the sandwich, its temporal layers moved off the identity so that all gradients count."""
    made = begin(tiny(), clips(), short(warmup_steps=0, paths="sandwich", **settings), folder, 5, lambda message: None)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in made.stage.supernet.temporal_parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return made


def gradients(made: Loop[SupernetStage]) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in made.named() if p.grad is not None}


def asked(
    made: Loop[SupernetStage], batch: Batch, micro: int, stream: int, count: int
) -> tuple[Question, torch.Tensor]:
    """A step's question, and the text's states with their graph."""
    question, read = made.stage.passes._ask(batch, micro, stream, count)
    return question, read._held[0][0]


def answered(made: Loop[SupernetStage], question: Question, states: torch.Tensor, path: Arrangement) -> torch.Tensor:
    noisy, level = question.inputs["noisy"], question.inputs["level"]
    inputs = {
        "x": noisy.flatten(0, 1),
        "timestep": 1000.0 * level,
        "context": states,
        "frames": noisy.shape[1],
    }
    return made.stage.supernet.predict(inputs, path).unflatten(0, noisy.shape[:2])


def joint(made: Loop[SupernetStage], everything: bool) -> dict[str, torch.Tensor]:
    """The gradients of the whole step's loss, all its graphs held until one backward pass."""
    config, share = made.stage.config, made.stage.config.image_share if everything else 0.0
    for parameter in made.stage.shared:
        parameter.requires_grad_(everything)
    made.stage.optimizer.zero_grad(set_to_none=True)
    total = torch.zeros(())
    for micro in range(config.accumulate):
        batch = made.stage.videos(micro)
        question, states = asked(made, batch, micro, VIDEOS, config.clips)
        several, teacher = [], None
        for path in PATHS["sandwich"](made.stage.space, made.stage.seed, 0):
            if not everything and not any(variants for _, variants in path.layers):
                continue
            out = answered(made, question, states, path)
            loss = nn.functional.mse_loss(out, question.truth["target"])
            if teacher is not None:
                loss = 0.5 * loss + 0.5 * nn.functional.mse_loss(out, teacher)
            teacher = out.detach() if teacher is None else teacher
            several.append(loss)
        total = total + (1 - share) * torch.stack(several).mean() / config.accumulate
        if share:
            stills, states = asked(made, made.stage.images(micro), micro, IMAGES, config.images)
            out = answered(made, stills, states, made.stage.space.empty())
            total = total + share * nn.functional.mse_loss(out, stills.truth["target"]) / config.accumulate
    total.backward()
    return gradients(made)


@pytest.mark.parametrize(("rate", "accumulate"), [(0.5, 2), (0.0, 1)])
def test_path_by_path_the_gradients_are_those_of_one_joint_pass(rate: float, accumulate: int, tmp_path: Path) -> None:
    made = trainer(tmp_path, spatial_rate=rate, accumulate=accumulate, gradient_clip=1e9)
    made.resume()
    wanted = joint(made, everything=rate > 0)
    done = made.advance()
    assert done is not None
    found = gradients(made)
    assert found.keys() == wanted.keys() and any(name.startswith("text.") for name in found) is (rate > 0)
    for name, gradient in wanted.items():
        assert torch.allclose(found[name], gradient, rtol=1e-3, atol=1e-6), name
    norm = torch.stack([gradient.norm() for gradient in wanted.values()]).norm()
    assert done["grad_norm"] == pytest.approx(float(norm), rel=1e-4)


class Held:
    """What a graph keeps of one tensor, as long as the graph is there."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def most_held(made: Loop[SupernetStage], paths: list[Any]) -> int:
    """The most bytes that graphs keep at one moment of a micro-batch."""
    alive: weakref.WeakSet[Held] = weakref.WeakSet()
    most = 0

    def keep(tensor: torch.Tensor) -> Held:
        nonlocal most
        held = Held(tensor)
        alive.add(held)
        stores = {h.tensor.untyped_storage().data_ptr(): h.tensor.untyped_storage().nbytes() for h in alive}
        most = max(most, sum(stores.values()))
        return held

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda held: held.tensor):
        made.stage._pass(paths, 0, 0.0)
    return most


def test_a_sandwich_holds_no_more_than_its_deepest_path(tmp_path: Path) -> None:
    made = trainer(tmp_path, clips=1, spatial_rate=0.5)
    paths = PATHS["sandwich"](made.stage.space, 5, 0)
    deepest = most_held(made, paths[:1])
    assert 0 < most_held(made, paths) <= 1.05 * deepest


def test_gradients_are_sent_once_a_step_however_many_passes_made_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = []
    monkeypatch.setattr(World, "average_gradients", lambda self, parameters: sent.append(len(list(parameters))))
    made = trainer(tmp_path, accumulate=2, spatial_rate=0.5)
    made.resume()
    made.advance()
    assert len(sent) == 1 and sent[0] > 0


def test_images_are_neither_loaded_nor_drawn_for_once_nothing_learns_from_them(tmp_path: Path) -> None:
    """And nothing else is drawn otherwise than with them."""
    asked: list[int] = []

    class Watched:
        skipped, captions = (), clips().captions

        def __len__(self) -> int:
            return len(clips())

        def __getitem__(self, index: int) -> Any:
            return clips()[index]

        def stills(self, seed: int) -> Any:
            from nas.data.clip import Images

            class Counted(Images):
                def __getitem__(self, index: int) -> Any:
                    asked.append(index)
                    return super().__getitem__(index)

            return Counted(clips(), seed)

    frozen = {"steps": 4, "paths": "sandwich"}
    run(tmp_path / "with", short(**frozen), data=Watched())
    assert sorted(asked) == [0, 1, 2, 3]  # of the two steps of the warm-up
    rows = (tmp_path / "with" / "metrics.jsonl").read_text().splitlines()
    assert ['"loss_image": null' in row for row in rows] == [False, False, True, True]
    run(tmp_path / "more", short(warmup_steps=0, images=6, **frozen))
    run(tmp_path / "none", short(warmup_steps=0, images=0, **frozen))
    assert losses(tmp_path / "more") == losses(tmp_path / "none")


def test_images_take_part_where_spatial_layers_train(tmp_path: Path) -> None:
    asked = {"steps": 2, "warmup_steps": 0, "spatial_rate": 0.5}
    run(tmp_path / "with", short(**asked))
    run(tmp_path / "none", short(images=0, **asked))
    assert losses(tmp_path / "with") != losses(tmp_path / "none")


def test_a_path_that_nothing_learns_along_is_not_walked(tmp_path: Path) -> None:
    walked: list[str] = []
    for rate in (0.0, 0.5):
        made = trainer(tmp_path / str(rate), spatial_rate=rate, images=0)
        real = made.stage.supernet.predict

        def watch(*arguments: Any, real: Any = real) -> Any:
            walked.append(arguments[-1].key)
            return real(*arguments)

        made.stage.supernet.predict = watch  # type: ignore[method-assign]
        made.resume()
        walked.clear()
        made.advance()
        keys = [path.key for path in PATHS["sandwich"](made.stage.space, 5, 0)]
        assert walked == (keys if rate else [keys[0], keys[2]])
