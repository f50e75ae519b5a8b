"""What a training takes before it is begun: counted with shapes alone, told, and nothing written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn
from training_fixtures import run, short, tiny
from typer.testing import CliRunner

from nas.cli import app
from nas.supernet.estimate import StepEstimate, estimate_step
from nas.supernet.room import surely
from nas.supernet.supernet import Supernet
from nas.training.checkpoint import list_checkpoints
from nas.training.counting import Counting, shapes_alone
from search_spaces.planning import load_plan

TINY = ["train", "tiny", "--dry-run", "--set", "train.clips=4", "--set", "train.warmup_steps=2"]


@pytest.fixture(scope="module")
def estimate() -> StepEstimate:
    return estimate_step(tiny(), short(paths="sandwich", clips=4), "fp32")


def step(counting: Counting) -> tuple[float, int]:
    """Operations, and bytes at the peak, of a step through a layer and attention."""
    torch.manual_seed(0)
    layer, x = nn.Linear(8, 16), torch.randn(2, 4, 10, 8)
    counting.mark()
    before = counting.now
    query = layer(x)
    nn.functional.scaled_dot_product_attention(query, query, query).square().mean().backward()
    return counting.operations, counting.peak - before


def test_shapes_alone_count_what_a_computation_takes() -> None:
    with shapes_alone() as fake:
        counted = step(fake)
    with Counting() as real:
        assert step(real) == counted
    linear, attention = 2 * 80 * 8 * 16, 2 * 8 * 2 * 10 * 10 * 16
    assert counted[0] == 2 * linear + attention + 2.5 * attention  # x itself wants no gradient


def test_counting_leaves_torchs_random_numbers_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with shapes_alone():
        torch.randn(10)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_steps_activations_are_those_of_a_real_one(estimate: StepEstimate) -> None:
    space = tiny()
    frames, channels, height, width = space.latent_shape("training")
    with Counting() as counting:
        supernet = Supernet(space).train().requires_grad_(True)
        peaks = []
        for clips in (1, 2):
            supernet.zero_grad(set_to_none=False)
            x = torch.randn(clips * frames, channels, height, width)
            context = torch.randn(clips, space.text.tokens, space.text.dim)
            before = counting.now
            counting.mark()
            inputs = {"x": x, "timestep": torch.full((clips,), 500.0), "context": context, "frames": frames}
            out = supernet.predict(inputs, load_plan(space).largest())
            out.square().mean().backward()
            peaks.append(counting.peak - before)
            del out
    everything = estimate_step(space, short(warmup_steps=0, spatial_rate=1.0), "fp32")
    assert everything.clip_bytes == pytest.approx(peaks[1] - peaks[0], rel=0.02)
    assert everything.clip_bytes < surely(space) / 2  # by which a training on a CPU may leave out the count
    assert estimate.clip_bytes <= everything.clip_bytes * 1.001  # a frozen frame keeps less
    assert everything.parameters == sum(p.numel() for p in supernet.parameters()) == estimate.parameters


def test_a_checkpoint_is_no_larger_than_was_said(tmp_path: Path, estimate: StepEstimate) -> None:
    run(tmp_path, short(steps=3, warmup_steps=1, clips=1, images=0, paths="sandwich"))
    size = 0
    for file in list_checkpoints(tmp_path)[-1].glob("*.safetensors"):
        with safe_open(str(file), "pt") as tensors:
            size += sum(4 * tensors.get_tensor(name).numel() for name in tensors.keys() if name.startswith("supernet"))
    assert 0.6 * estimate.state_bytes < size <= estimate.state_bytes * 1.01  # layers that met no step have no moments


def test_a_dry_run_says_all_of_it_and_writes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "run"
    said = CliRunner().invoke(app, [*TINY, "--set", "train.paths=fair", "--out", str(out)])
    assert said.exit_code == 0, said.output
    for word in ("parameters", "optimiser", "a clip of 8x3x16x16", "FLOP a step", "checkpoint", "3 kept", "minutes"):
        assert word in said.output, word
    assert "h100_roofline" in said.output and "bf16" in said.output
    assert not out.exists() and not list(tmp_path.iterdir())


def test_a_dry_run_for_scripts_and_what_it_refuses(
    tmp_path: Path, estimate: StepEstimate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nas.supernet.estimate.estimate_step", lambda *asked: estimate)
    more = ["--set", "train.paths=fair", "--set", "train.precision=fp32", "--json", "--out", str(tmp_path / "run")]
    told = json.loads(CliRunner().invoke(app, [*TINY, *more]).output)
    assert told["estimate"] is True and told["precision"] == "fp32" and told["clips_at_once"] == 4
    assert told["device_tflops"] == pytest.approx(0.4 * 66.9) and told["days"] > 0
    refused = CliRunner().invoke(app, [*TINY, "--on", "host_cpu", "--out", str(tmp_path / "run")])
    assert refused.exit_code != 0 and "states no roofline" in str(refused.exception)
    assert not list(tmp_path.iterdir())
