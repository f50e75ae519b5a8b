"""What is written is what was predicted: forms, and attention as one operation or spelled out, layer by layer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training_fixtures import clips, tiny

from latency_tables.lookup import load_table
from nas.export import export_model
from nas.export.forms import BACKBONE, apply_lowerings, best_lowerings
from nas.export.network import bound_at
from nas.model.network import VideoUNet
from nas.model.pipeline import TextToVideoPipeline, save_pipeline
from nas.pretrained.text import TextEncoder
from nas.supernet.supernet import Supernet
from search_spaces.plan import Plan

DEVICE = "amd_epyc_zen5"


def attentions(space: Any) -> dict[str, list[str]]:
    """An attention at two places of the tiny space, of two workloads: a table has one fastest row of each."""
    found: dict[str, list[str]] = {}
    keys: set[str] = set()
    for position in space.positions:
        for variant in position.variants:
            key = space.workload(position, variant, "fp32").key
            if "Attention" in variant.block and key not in keys and position.name not in found and len(found) < 2:
                found[position.name] = [variant.label]
                keys.add(key)
    return found


@pytest.fixture(scope="module")
def unet() -> VideoUNet:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    arrangement = tiny().arrange(attentions(tiny()))
    return VideoUNet.of(tiny(), Supernet(tiny()).eval().extract(arrangement), arrangement)


def table_with(unet: VideoUNet, folder: Path, backbone: str, first: str, second: str) -> dict[str, list[str]]:
    """A table in which these lowerings are the fastest; what they are, by place."""
    table = load_table(DEVICE, folder)
    wanted = {BACKBONE: [backbone]}
    chosen = [(position, variants) for position, variants in unet.arrangement.layers if variants]
    for (position, variants), lowering in zip(chosen, (first, second), strict=True):
        row = table.get(unet.space.workload(position, variants[0], table.header.precision).key)
        assert row is not None and row.latency_ms_median is not None
        table.append(replace(row, lowering=lowering, latency_ms_median=0.1 * row.latency_ms_median))
        wanted[position] = [lowering]
    row = table.get(f"{Plan.load('tiny').backbone_workload}@{table.header.precision}")
    assert row is not None and row.latency_ms_median is not None
    table.append(replace(row, lowering=backbone, latency_ms_median=0.1 * row.latency_ms_median))
    table.save(folder / DEVICE / "onnxruntime.csv")
    return wanted


@pytest.mark.parametrize(
    ("backbone", "first", "second"),
    [
        ("fused", "decomposed+conv1x1", "fused"),
        ("decomposed", "fused+conv1x1", "decomposed"),
    ],
)
def test_a_package_holds_each_attention_as_its_row_was_lowered(
    backbone: str, first: str, second: str, unet: VideoUNet, tmp_path: Path
) -> None:
    wanted = table_with(unet, tmp_path, backbone, first, second)
    assert best_lowerings(unet, load_table(DEVICE, tmp_path)) == wanted
    text = TextEncoder.small(tiny(), clips().captions).eval()
    from diffusers import FlowMatchEulerDiscreteScheduler

    save_pipeline(
        TextToVideoPipeline(unet, text.model, text.tokenizer, FlowMatchEulerDiscreteScheduler()), tmp_path / "model"
    )
    clip = unet.space.clip("deployment")
    facts = export_model(
        tmp_path / "model",
        tmp_path / "coreml",
        shapes=[(clip.frames, clip.height, clip.width)],
        parts=["network"],
        device=DEVICE,
        tables=tmp_path,
    )
    own = facts["fused_attention"] - sum(lowering.startswith("fused") for lowering in (first, second))
    assert facts["lowerings"] == wanted
    assert (own == 0) == (backbone == "decomposed"), "the backbone's own attention"
    assert facts["predicted"]["device"].startswith(DEVICE)


def test_what_is_lowered_otherwise_computes_the_same(unet: VideoUNet) -> None:
    bound, inputs = bound_at(unet, (4, 16, 16))
    names = [position for position, variants in unet.arrangement.layers if variants]
    with torch.no_grad():
        before = bound(*inputs)
        apply_lowerings(unet, {BACKBONE: ["decomposed"], names[0]: ["decomposed+conv1x1"], names[1]: ["decomposed"]})
        assert torch.allclose(bound(*inputs), before, atol=1e-4 * float(before.abs().max()))
