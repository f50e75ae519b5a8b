"""The backbone part by part: each is what the whole runs there, at the shape that its workload states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from latent_fixtures import SPACE

from device_profiler.device import Device
from device_profiler.lowering import lower
from device_profiler.profile import profile
from device_profiler.subject import Subject
from latency_tables.table import Table
from nas.cli import main
from search_spaces.errors import SpaceError
from search_spaces.families.unet.layout import unet_parts
from search_spaces.families.unet.run import part_of, run_unet
from search_spaces.network import build_module
from search_spaces.space import Space

LIKE_SD15 = {
    "block_out_channels": [8, 16, 32],
    "down_block_types": ["CrossAttnDownBlock2D"] * 2 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 2,
    "layers_per_block": [2, 1, 2],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
}


def uneven(folder: Path) -> Space:
    """Three stages of two, one and two layers with a mid block."""
    config = {**SPACE["backbone"]["config"], **LIKE_SD15}  # type: ignore[dict-item, index]
    path = folder / "uneven.yaml"
    backbone = {"name": "sd15_pruned", "config": config}
    clips = {"deployment": {"frames": 8, "height": 64, "width": 64, "fps": 8}}
    positions = {"down.0.1": {"max_layers": 1, "variants": ["Conv1D(kernel_size=3)"]}}
    path.write_text(yaml.safe_dump({**SPACE, "backbone": backbone, "clips": clips, "positions": positions}))
    return Space.load(path)


@pytest.mark.parametrize("which", ["tiny", "uneven"])
def test_the_parts_one_after_the_other_are_the_backbone(which: str, tmp_path: Path) -> None:
    """Run with the skips that the whole keeps, the parts give the whole's output."""
    from search_spaces.families import build_backbone

    space = Space.load("tiny") if which == "tiny" else uneven(tmp_path)
    torch.manual_seed(0)
    unet: Any = build_backbone(space.backbone).eval()
    frames, channels, height, width = space.latent_shape("training")
    x, timestep = torch.randn(frames, channels, height, width), torch.tensor([500.0])
    context = torch.randn(1, space.text.tokens, space.text.dim)
    workloads = {w.name.partition(".")[2]: w for w in space.spatial_workloads("fp32", "training")}
    with torch.no_grad():
        whole = run_unet(unet, x, timestep, context, frames, lambda name, x, beside: x)
        embedding = unet.time_embedding(unet.get_time_embed(x[:1], timestep))
        running, skips = x, []
        for part in unet_parts(space.backbone.config):
            if part.name.startswith("up.") and not part.name.endswith("upsample"):
                running = torch.cat([running, skips.pop()], dim=1)
            stated = workloads[part.name]
            assert tuple(running.shape) == (stated.frames, stated.channels, stated.height, stated.width)
            running = part_of(unet, part.name)(running, embedding, context)
            if part.name == "conv_in" or part.name.startswith("down."):
                skips.append(running)
    assert not skips and torch.allclose(running, whole, atol=1e-5)


def test_all_parts_of_snapgen_v_are_known_without_torch_and_add_up_to_its_parameters() -> None:
    from search_spaces.families import build_backbone

    space = Space.load("snapgen_v")
    parts = space.spatial_workloads("fp16")
    assert len(parts) == 15 and parts[0].key == "spatial:sd15_pruned.conv_in/t30/64x64/b1@fp16"
    with torch.device("meta"):
        unet: Any = build_backbone(space.backbone)
        counted = sum(p.numel() for w in parts for p in part_of(unet, w.name.partition(".")[2]).parameters())
    embedding = sum(p.numel() for p in unet.time_embedding.parameters())
    assert counted + embedding == sum(p.numel() for p in unet.parameters())
    for name in ("down.9x", "down.9.0", "down.0.7", "mid", "sideways"):
        with pytest.raises(SpaceError, match=f"no part '{name}'"):
            part_of(unet, name)


def test_a_part_is_lowered_to_onnx_and_core_ml(tmp_path: Path) -> None:
    part = Space.load("tiny").spatial_workloads("fp16")[3]
    module, inputs, names = build_module(part, Space.load("tiny"))
    assert names == ("x", "embedding", "context") and module(*inputs).shape[0] == part.frames
    package = lower(Subject(part, "tiny"), "coreml", "fused", tmp_path).stats
    assert package["operations"] > 3 and package["max_rank"] <= 5
    with pytest.raises(SpaceError, match="belongs to a space"):
        build_module(part)


def test_parts_are_profiled_on_request_and_shown_as_shares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    roofline = "iphone16_pro_max_roofline"
    with pytest.raises(SystemExit) as stop:
        main(["profile", "tiny", "--device", roofline, "--table", str(tmp_path), "--spatial"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert "up.0.upsample" in out and "the backbone whole" in out and "#" in out
    table = Table.load(tmp_path / roofline / "roofline.csv")
    parts = [row for row in table if row.block == "spatial"]
    space = Space.load("tiny")
    assert len(parts) == len(space.spatial_workloads("fp16")) == 10 and all(row.ok for row in parts)
    whole = table.get(space.backbone_workload("fp16").key)
    assert whole is not None and whole.latency_ms_median is not None
    # The sum leaves out the time embedding alone; an estimate is a sum over operations.
    total = sum(row.latency_ms_median or 0 for row in parts)
    assert total == pytest.approx(whole.latency_ms_median, rel=0.1)
    again = profile("tiny", Device.load(roofline), tmp_path, spatial=True)
    assert again.to_csv() == table.to_csv()
    with pytest.raises(SystemExit) as stop:
        main(["profile", "--block", "Conv1D", "--shape", "8x2x4x4", "--spatial"])
    assert stop.value.code == 2 and "--spatial measures the parts of a SPACE" in capsys.readouterr().err
